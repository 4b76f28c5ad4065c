"""Figures 9 and 10 compare networks of equally many params, or refuse to."""

import dataclasses
import importlib.util

import pytest

from ms_ranas_jax import sections
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import genotype
from ms_ranas_jax.studies import entries
from ms_ranas_jax.studies import plan as plan_lib

_SIZES = [
  f'{name}.{size}'
  for name in ('figure9', 'figure10')
  for size in sections.SIZES
]


@pytest.fixture(scope='module')
def study_config(repo_root):
  """Makes the config of a study."""
  spec = importlib.util.spec_from_file_location(
    'study', repo_root / 'configs/study.py'
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config


def _plan(config):
  return plan_lib.build_plan(
    config, entries.of(config.study.figure, config.study.size)
  )


@pytest.mark.parametrize('argument', _SIZES)
def test_the_sizes_agree(study_config, argument):
  """The search aims at the MSDNet's params; the others are checked."""
  config = study_config(argument)
  config.study.seeds = (0, 1)
  plan = _plan(config)
  searches = [job for job in plan.jobs if job.kind == plan_lib.SEARCH]
  methods = [(job.config.search.method, job.config.seed) for job in searches]
  assert methods == [('bilevel', 0), ('ghn', 0), ('bilevel', 1), ('ghn', 1)]
  low, high = plan.trainings['ms_ranas', 0].params
  assert high / low == pytest.approx(1.03 / 0.97)
  for search in searches:
    cost = search.config.search.cost
    assert cost.target == pytest.approx((low + high) / 2)
    assert (cost.metric, cost.exit, cost.tolerance) == ('params', -1, 0.03)
  for seed in (0, 1):
    assert plan.trainings['ms_ranas', seed].search is searches[2 * seed]
    assert plan.trainings['ghn', seed].search is searches[2 * seed + 1]
    for name in ('msdnet', 'darts'):
      assert plan.trainings[name, seed].search is None


def test_the_paper_compares_with_the_msdnet_of_5_47_m_params(study_config):
  config = study_config('figure9')
  job = _plan(config).trainings['msdnet', 0]
  low, high = job.params
  assert (low + high) / 2 == pytest.approx(5_470_050)


@pytest.mark.parametrize('argument', _SIZES)
def test_all_get_one_recipe(study_config, argument):
  plan = _plan(study_config(argument))
  names = 'ms_ranas', 'msdnet', 'ghn', 'darts'
  jobs = [plan.trainings[name, 0] for name in names]
  for section in ('dataset', 'evaluate'):
    assert len({str(job.config[section]) for job in jobs}) == 1
  recipes = [job.config.train.to_dict() for job in jobs]
  for recipe in recipes:
    del recipe['network'], recipe['genotype']
  assert all(recipe == recipes[0] for recipe in recipes)


def test_networks_of_other_sizes_are_refused(study_config):
  """Before anything runs, where the cells are known."""
  config = study_config('figure9.cpu')
  figure = entries.of('figure9', 'cpu')
  *others, darts = figure.entries
  larger = dataclasses.replace(
    darts, changes={**darts.changes, 'train.network.channels': 32}
  )
  figure = dataclasses.replace(figure, entries=(*others, larger))
  with pytest.raises(
    UsageError, match=r'^DARTS with exits, seed 0: the network has 8\d\d,\d\d\d'
  ):
    plan_lib.build_plan(config, figure)


def test_a_target_out_of_reach_is_refused(study_config):
  config = study_config('figure9.cpu')
  config.train.network.channels = 4
  with pytest.raises(
    UsageError, match=r'^MS-RANAS: search.cost.target = 743,654'
  ):
    _plan(config)


def test_a_found_network_of_another_size_is_refused(study_config, tmp_path):
  """As a file that was put in the place of the search's would make."""
  job = _plan(study_config('figure9.cpu')).trainings['ms_ranas', 0]
  path = tmp_path / 'search/genotype.json'
  path.parent.mkdir()

  def cell(operation):
    edges = tuple((operation, state) for state in (0, 1)) * 2
    return genotype.Genotype(edges, (2, 3), edges, (2, 3)).to_json()

  path.write_text(cell('sep_conv_3x3'))
  with pytest.raises(UsageError, match='MS-RANAS, seed 0: the network has'):
    plan_lib.check_params(job, str(tmp_path))
  path.write_text(cell('skip_connect'))
  with pytest.raises(UsageError, match='MS-RANAS, seed 0: the network has'):
    plan_lib.check_params(job, str(tmp_path))
