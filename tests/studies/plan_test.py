"""The jobs of a study: names, what they share, what they are."""

import copy

import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax import fields
from ms_ranas_jax import settings
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.studies import entries
from ms_ranas_jax.studies import plan as plan_lib


@pytest.fixture
def plan_of(tiny_config):
  """Plans a figure of the paper, of tiny networks."""

  def plan_of(name, **fields):
    config = tiny_config(figure=name, **fields)
    config.dataset.name = 'cifar10'  # not read; digits have no room for scales
    return plan_lib.build_plan(config, entries.of(name, 'cpu'))

  return plan_of


@pytest.fixture
def whole(tiny_config):
  """Makes the config of a search and a training."""

  def whole(**fields):
    config = tiny_config()
    config.update_from_flattened_dict(fields)
    return config

  return whole


@pytest.fixture
def search_identity(whole):
  """Returns the identity of the search of a config with some fields changed."""

  def search_identity(**fields):
    return plan_lib.identity(plan_lib.search_config(whole(**fields)))

  return search_identity


@pytest.mark.parametrize(
  ('name', 'searches', 'trainings'),
  # Figure 5: baseline, cutout, exits, both; 2 and 3 scales, alone and with
  # exits. Figure 6 leaves out all with cutout.
  [('figure4', 12, 12), ('figure5', 8, 11), ('figure6', 6, 6)],
)
def test_a_search_that_is_shared_is_there_once(
  plan_of, name, searches, trainings
):
  plan = plan_of(name)
  for seed in (0, 1):
    jobs = [job for job in plan.jobs if job.config.seed == seed]
    kinds = [job.kind for job in jobs]
    assert kinds.count(plan_lib.SEARCH) == searches
    assert kinds.count(plan_lib.TRAIN) == trainings
  assert len(plan.jobs) == 2 * (searches + trainings)
  folders = {job.workdir('w') for job in plan.jobs}
  assert len(folders) == len(plan.jobs)
  assert set(plan.trainings) == {
    (entry.name, seed)
    for entry in entries.of(name, 'cpu').entries
    for seed in (0, 1)
  }


def test_figure_5_trains_the_cells_of_one_search_in_two_ways(plan_of):
  plan = plan_of('figure5')
  first = plan.trainings['cutout_to_exits', 0]
  second = plan.trainings['cutout_to_cutout+exits', 0]
  assert first.search is second.search
  assert first.search.label == 'cutout → exits, seed 0'
  assert plan.trainings['cutout_to_exits', 1].search is not first.search
  assert (first.config.train.cutout, second.config.train.cutout) == (0, 2)
  assert first.config.search.cutout == first.search.config.search.cutout == 2


def test_a_search_stands_before_its_trainings(plan_of):
  jobs = plan_of('figure5').jobs
  for place, job in enumerate(jobs):
    if job.search is not None:
      assert jobs.index(job.search) < place


def test_jobs_are_ordinary_runs(plan_of):
  """Their config is one that the program takes, and no study."""
  for job in plan_of('figure4').jobs:
    settings.check_config(job.config.to_dict())
    assert job.config.is_locked
    assert job.config.study == default_config.get_config().study
    assert job.config.dataset.train_images == 400
  kinds = {
    job.kind: tuple(job.config.stages) for job in plan_of('figure4').jobs
  }
  assert kinds == {
    plan_lib.SEARCH: ('search',),
    plan_lib.TRAIN: ('train', 'evaluate'),
  }


def test_fields_reach_every_run(tiny_config):
  config = tiny_config(figure='figure4')
  config.dataset.name = 'cifar10'
  config.train.epochs = 7
  config.search.epochs = 3
  plan = plan_lib.build_plan(config, entries.of('figure4', 'cpu'))
  assert {job.config.search.epochs for job in plan.jobs} == {3}
  assert {job.config.train.epochs for job in plan.trainings.values()} == {7}


def test_adding_seeds_changes_no_run(plan_of):
  few = plan_of('figure5', seeds=(0,))
  many = plan_of('figure5', seeds=(0, 1, 2))
  for old, new in zip(few.jobs, many.jobs):
    assert (old.kind, old.name) == (new.kind, new.name)
    assert plan_lib.identity(old.config) == plan_lib.identity(new.config)


@pytest.mark.parametrize(
  'fields',
  [
    {'train.epochs': 9},
    {'train.cutout': 3},
    {'train.network.scales': 1},
    {'train.network.nodes': 2},
    {'train.learning_rate': 0.5},
    {'evaluate.batch_size': 7},
    {'dataset.holdout': 13},
    {'dataset.dir': 'elsewhere'},
    {'num_devices': 2},
    {'search.remat': True},
  ],
  ids=repr,
)
def test_a_search_does_not_depend_on(search_identity, fields):
  assert search_identity(**fields) == search_identity()


@pytest.mark.parametrize(
  'name',
  sorted(
    name
    for name, entry in settings.known_fields().items()
    if (name.startswith('search.') or name in ('seed', 'dtype'))
    and not entry.field.free
  ),
)
def test_a_search_depends_on(whole, search_identity, name):
  config = whole().to_dict()
  value = fields.flatten(config)[name]
  other = {
    bool: lambda: not value,
    int: lambda: value + 1,
    float: lambda: value / 2 + 0.01,
    str: lambda: value + '!',
    tuple: lambda: (1.0,),
  }[type(value)]()
  # A word need not make sense to be another one.
  assert search_identity(**{name: other}) != search_identity()


def test_a_search_for_a_cost_depends_on_the_network_that_it_is_for(
  search_identity,
):
  for cost in {'search.cost.target': 2e4}, {'search.cost.weight': 1.0}:
    same, other = (
      search_identity(**cost, **{'train.network.channels': channels})
      for channels in (4, 8)
    )
    assert same != other


def test_the_config_of_a_search_leaves_the_whole_one_alone(whole):
  config = whole()
  before = copy.deepcopy(config.to_dict())
  plan_lib.search_config(config)
  assert config.to_dict() == before


def test_a_study_needs_its_stages(tiny_config):
  config = tiny_config(figure='figure4')
  config.stages = ('search', 'train')
  with pytest.raises(UsageError, match='config.stages .* add evaluate'):
    plan_lib.build_plan(config, entries.of('figure4', 'cpu'))


def test_an_impossible_network_is_refused_before_anything_runs(tiny_config):
  config = tiny_config(figure='figure4')
  with pytest.raises(
    UsageError, match=r'^3 scales: search.network.scales = 3 .* 8x8 image'
  ):
    plan_lib.build_plan(config, entries.of('figure4', 'cpu'))
