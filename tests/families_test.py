"""The families through the stages: MSDNet learns on digits, with no search."""

import json
import pathlib

import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax import stages
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import metrics

_BLOCKS = 2
_EPOCHS = 4


def _config(**network):
  """The smallest MSDNet with two scales, two exits and a transition."""
  config = default_config.get_config()
  config.stages = ('describe', 'train', 'evaluate', 'report')
  config.num_devices = 1
  config.train.epochs = _EPOCHS
  config.train.batch_size = 64
  config.train.learning_rate = 0.1
  config.train.schedule = 'step'
  config.train.clip = 0.0
  config.train.network.update(
    family='msdnet', channels=4, growth=4, scales=2, blocks=_BLOCKS, base=1
  )
  config.train.network.update(network)
  return config


def _run(config, workdir):
  said = []
  stages.run_stages(config, str(workdir), said.append)
  return '\n'.join(said)


def _json(path):
  return json.loads(path.read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> pathlib.Path:
  """The work directory of a run of all stages, to be left as it is."""
  workdir = tmp_path_factory.mktemp('runs') / 'msdnet'
  said = _run(_config(), workdir)
  assert 'train network: ' in said and 'search' not in said
  return workdir


def test_every_exit_learns(finished):
  exits = _json(finished / 'evaluate/anytime.json')['exits']
  assert [exit_['layer'] for exit_ in exits] == [0, 1]
  for exit_ in exits:
    assert exit_['accuracy'] > 0.7, exit_
  cost = _json(finished / 'describe/train_network.json')
  for exit_, counted in zip(exits, cost['exits'], strict=True):
    assert counted.items() <= exit_.items()


def test_the_rate_falls_at_a_half_and_three_quarters(finished):
  rates = {
    record['epoch']: record['learning_rate']
    for record in metrics.read_metrics(finished / 'train/metrics.jsonl')
  }
  assert rates == pytest.approx({0: 0.1, 1: 0.1, 2: 0.01, 3: 0.001})


def test_the_report_shows_what_there_is(finished):
  markup = (finished / 'report.html').read_text(encoding='utf-8')
  for word in 'Results', 'Network', 'Training', 'Config':
    assert f'>{word}</h2>' in markup
  for word in 'Cells', 'Search':
    assert f'>{word}</h2>' not in markup
  assert (finished / 'figures/train_grid.svg').is_file()
  for name in 'search', 'train/genotype.json', 'describe/search_network.json':
    assert not (finished / name).exists()


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'stages': ('search', 'train')}, ["'search'", 'family', 'remove']),
    ({'train.genotype': 'NASNet'}, ['config.train.genotype', 'msdnet']),
    ({'train.drop_path': 0.2}, ['config.train.drop_path', 'msdnet']),
    ({'train.remat': True}, ['config.train.remat', 'msdnet']),
    ({'train.network.scales': 5}, ['train.network.scales = 5', 'at most']),
    (
      {'train.network.growth_factors': (1, 2, 4)},
      ['train.network.growth_factors', '2 scales'],
    ),
    ({'train.exit_weights': (1.0,)}, ['train.exit_weights', '2 exits']),
  ],
  ids=repr,
)
def test_what_does_not_fit_is_refused_before_anything_starts(
  fields, words, tmp_path
):
  config = _config()
  config.update_from_flattened_dict(fields)
  with pytest.raises(UsageError) as caught:
    _run(config, tmp_path / 'new')
  for word in words:
    assert word in str(caught.value)
  assert not (tmp_path / 'new').exists()
