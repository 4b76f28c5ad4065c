"""A study of the smallest networks on digits, and stages that only pretend."""

import os
import pathlib

import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax.runtime import files
from ms_ranas_jax.space import genotype
from ms_ranas_jax.studies import entries

# Two entries share the search of the baseline.
_FIGURE = entries.Figure(
  'A small study',
  'settings',
  tuple(
    entries.Entry(f'{s.name}_to_{t.name}', f'{s.label} → {t.label}', s, t)
    for s, t in (
      (entries.Setting(), entries.Setting()),
      (entries.Setting(), entries.Setting(exits=True)),
      (entries.Setting(exits=True), entries.Setting(exits=True)),
    )
  ),
)
_ONE_NODE = genotype.Genotype(
  normal=(('sep_conv_3x3', 0), ('skip_connect', 1)),
  normal_concat=(2,),
  reduction=(('max_pool_3x3', 0), ('skip_connect', 1)),
  reduction_concat=(2,),
)


def _config(**fields):
  """Returns the config of a study on digits, of one node and two layers.

  Args:
    **fields: of the section `study`.
  """
  config = default_config.get_config()
  config.num_devices = 1
  config.stages = ('search', 'train', 'evaluate')
  config.dataset.train_images = 400
  config.study.update(figure='figure5', size='cpu', seeds=(0, 1), cutout=2)
  config.study.update(fields)
  for section in (config.search, config.train):
    section.epochs = 1
    section.batch_size = 32
    section.network.update(channels=4, layers=2, nodes=1)
  return config


def _result(accuracies, macs, params=1000):
  """Returns the content of an `evaluate/anytime.json`."""
  return {
    'dataset': 'digits',
    'num_examples': 360,
    'exits': [
      {
        'exit': index,
        'layer': index + 1,
        'accuracy': accuracy,
        'macs': cost,
        'flops_msdnet': 2 * cost,
        'params': params // 2,
        'total_params': params,
      }
      for index, (accuracy, cost) in enumerate(
        zip(accuracies, macs, strict=True)
      )
    ],
  }


class _Pretended:
  """Stands in for `run_stages`: writes what the stages would, and counts.

  Attributes:
    log: the work directories in which stages ran, in order.
    before: called with the number of the run, from 0.
  """

  def __init__(self, before=lambda number: None):
    self.log = []
    self.before = before

  def __call__(self, config, workdir, say, interruption):
    """Runs the stages of a config."""
    self.log.append(os.path.relpath(workdir, pathlib.Path(workdir).parents[2]))
    self.before(len(self.log) - 1)
    folder = pathlib.Path(workdir)
    if 'search' in config.stages:
      files.write_text(folder / 'search/genotype.json', _ONE_NODE.to_json())
    if 'evaluate' in config.stages:
      assert (folder / 'search/genotype.json').is_file()
      exits = 1 if config.train.network.exits == 'last' else 2
      better = 0.1 * (config.search.network.exits != 'last')
      accuracies = [
        0.5 + better + 0.01 * config.seed + k / 10 for k in range(2)
      ]
      files.write_json(
        folder / 'evaluate/anytime.json',
        _result(accuracies[-exits:], [1000, 2000][-exits:]),
      )
      files.write_json(folder / 'evaluate/budgeted.json', {'points': []})


@pytest.fixture(scope='session')
def tiny_config():
  """Makes the config of a study of the smallest networks on digits."""
  return _config


@pytest.fixture(scope='session')
def tiny_figure():
  """Three entries, of which two share a search."""
  return _FIGURE


@pytest.fixture(scope='session')
def result():
  """Makes the content of an `evaluate/anytime.json`."""
  return _result


@pytest.fixture(scope='session')
def pretend():
  """Makes stages that only pretend."""
  return _Pretended
