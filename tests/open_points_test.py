"""Things of one's own, named in a config, through the command.

Each toy is a module and a config at once, in a folder that is no part of the
package: a family of networks, a search method, an operation, a data set.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax import families
from ms_ranas_jax import fields
from ms_ranas_jax import importing
from ms_ranas_jax import same_run
from ms_ranas_jax import sections
from ms_ranas_jax import settings
from ms_ranas_jax.data import datasets
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.search import methods
from ms_ranas_jax.space import operations
from ms_ranas_jax.space import protocol

_TOYS = pathlib.Path(__file__).parent / 'toys'
_LINES = {'my_family': 80, 'my_method': 60, 'my_operation': 25, 'my_images': 20}
# Small enough to compile within seconds.
_SMALL = (
  'num_devices=1',
  'dataset.train_images=260',
  'search.epochs=1',
  'search.batch_size=16',
  'search.network.layers=2',
  'search.network.nodes=1',
  'search.network.scales=1',
  'search.network.channels=4',
  'train.epochs=1',
  'train.batch_size=32',
  'train.network.channels=4',
)
_OF_CELLS = ('my_method', 'my_operation')
_SMALL_CELLS = (
  'train.network.layers=2',
  'train.network.nodes=1',
  'train.network.scales=1',
)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """(module, program, flags) -> (work directory, what it said)."""
  folder = tmp_path_factory.mktemp('toys')
  for name in _LINES:
    shutil.copy(_TOYS / f'{name}.py', folder)

  def run(module, *fields, program='main', flags=None):
    if flags is None:
      cells = _SMALL_CELLS if module in _OF_CELLS else ()
      flags = [
        f'--config={module}.py',
        f'--workdir=runs/{module}',
        *(f'--config.{field}' for field in (*_SMALL, *cells, *fields)),
      ]
    process = subprocess.run(
      [sys.executable, '-m', f'ms_ranas_jax.{program}', *flags],
      cwd=folder,
      env=os.environ
      | {
        'JAX_PLATFORMS': 'cpu',
        'PYTHONPATH': str(pathlib.Path(__file__).parent.parent),
      },
      capture_output=True,
      text=True,
      timeout=300,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return folder / 'runs' / module, process.stdout

  return run


def _json(path):
  return json.loads(path.read_text())


@pytest.mark.parametrize('name', _LINES)
def test_a_toy_is_short(name):
  lines = (_TOYS / f'{name}.py').read_text().splitlines()
  assert len(lines) <= _LINES[name]


@pytest.mark.slow
def test_a_family(run):
  """Described, trained, judged and reported, and loaded by its name."""
  workdir, said = run(
    'my_family',
    'stages=("describe", "train", "evaluate", "report")',
    'train.learning_rate=0.1',
    # An own field, at its default until it is set here.
    'train.network.length=3',
  )
  assert 'train network:' in said
  # Nine weights a channel, a bias-free convolution, BN, dense; three times.
  params = 9 * 4 * (1 + 4 + 4) + 3 * 8 + 3 * (4 * 10 + 10)
  assert _json(workdir / 'describe/train_network.json')['params'] == params
  config = _json(workdir / 'config.json')
  assert config['train']['network']['family'] == 'my_family:FAMILY'
  assert config['train']['network']['length'] == 3
  model = _json(workdir / 'model/model.json')
  assert model['network']['family'] == 'my_family:FAMILY'
  assert model['network']['sizes'] == {'channels': 4, 'length': 3}
  assert len(_json(workdir / 'evaluate/anytime.json')['exits']) == 3
  page = (workdir / 'report.html').read_text()
  assert 'my_family:FAMILY' in page
  _, said = run('my_family', program='predict', flags=_picture(workdir))
  assert json.loads(said)['exit'] in range(3)


def _picture(workdir):
  from PIL import Image

  path = workdir / 'one.png'
  Image.new('L', (8, 8), 100).save(path)
  return [f'--model={workdir}', '--json', str(path)]


@pytest.mark.slow
def test_a_search_method(run):
  """It has no alphas, and a field of its own."""
  workdir, said = run(
    'my_method',
    'stages=("search", "train", "evaluate", "report")',
    'search.candidates.random=2',
  )
  assert 'search found' in said
  config = _json(workdir / 'config.json')
  assert config['search']['method'] == 'my_method:Fair'
  assert config['search']['paths'] == 2  # its default is written down too
  content = _json(workdir / 'search/candidates.json')
  (best,) = (c for c in content['candidates'] if c['chosen'])
  assert best['genotype'] == _json(workdir / 'search/genotype.json')
  assert not (workdir / 'search/alphas.npz').exists()
  assert (workdir / 'report.html').exists()


@pytest.mark.slow
def test_an_operation(run):
  """It is searched, derived, trained and loaded by the same name."""
  name = 'my_operation:conv_1x1'
  workdir, _ = run('my_operation', 'stages=("search",)')
  assert _json(workdir / 'config.json')['search']['primitives'][1] == name
  # Of two operations and two edges a node, skips would cost nothing.
  genotype = _json(workdir / 'search/genotype.json')
  genotype['normal'][0][0] = name
  path = workdir.parent / 'genotype.json'
  path.write_text(json.dumps(genotype))
  other, _ = run(
    'my_operation',
    flags=[
      '--config=my_operation.py',
      '--workdir=runs/with_it',
      *(f'--config.{field}' for field in (*_SMALL, *_SMALL_CELLS)),
      '--config.stages=("train", "evaluate", "report")',
      f'--config.train.genotype={path}',
    ],
  )
  other = other.parent / 'with_it'
  model = _json(other / 'model/model.json')
  assert model['network']['genotype']['normal'][0][0] == name
  assert name in (other / 'report.html').read_text()
  _, said = run('my_operation', program='predict', flags=_picture(other))
  assert 0 <= json.loads(said)['confidence'] <= 1


@pytest.mark.slow
def test_a_data_set(run):
  workdir, said = run(
    'my_images',
    'stages=("train", "evaluate")',
    'train.network.family=msdnet',
    'train.network.blocks=2',
    'train.network.base=1',
    'train.network.growth=2',
    'train.network.scales=2',
    'dataset.holdout=60',
  )
  assert 'my_images:squares: 260 training and 100 test images' in said
  assert _json(workdir / 'config.json')['dataset']['name'] == (
    'my_images:squares'
  )
  model = _json(workdir / 'model/model.json')
  assert model['class_names'] == ['dark', 'bright']
  assert model['data']['name'] == 'my_images:squares'


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('no_such_module:x', "ModuleNotFoundError.* 'no_such_module'"),
    ('json:no_such_name', "json has no 'no_such_name'"),
    (':x', 'ValueError'),
  ],
)
def test_what_cannot_be_imported_is_refused(name, message):
  with pytest.raises(UsageError, match=message):
    importing.load(name)


def test_what_is_neither_known_nor_imported_is_refused():
  known = {'one': 1, 'two': 2}
  assert importing.find('two', known, 'some.field') == 2
  assert importing.find('json:loads', known, 'some.field') is json.loads
  with pytest.raises(UsageError, match="some.field = 'three': .* one, two"):
    importing.find('three', known, 'some.field')
  with pytest.raises(UsageError, match="some.field = 'json:three'"):
    importing.find('json:three', known, 'some.field')


@pytest.mark.parametrize(
  ('find', 'message'),
  [
    (
      families.named,
      'config.train.network.family = .* an ms_ranas_jax.families.Family',
    ),
    (
      methods.named,
      'config.search.method = .* ms_ranas_jax.search.methods.Method has',
    ),
    (
      lambda name: operations.named([name]),
      'operation = .* such as an ms_ranas_jax.Custom',
    ),
    (
      lambda name: datasets.load_dataset(name),
      'returned a str: return an ms_ranas_jax.Data',
    ),
  ],
)
def test_what_is_something_else_is_refused(find, message):
  with pytest.raises(UsageError, match=message):
    find('json:dumps')


@dataclasses.dataclass(frozen=True)
class _Config(sections.SearchConfig):
  epochs: int = fields.field(9, fields.whole(1), 'passes over the images')
  threads: int = fields.field(1, fields.whole(1), 'at once', free=True)
  depth: int = fields.field(2, fields.whole(1), 'of something')


class _Method(methods.SharedParams):
  config = _Config

  def step(self, state, train_batch, valid_batch):
    raise NotImplementedError


@pytest.fixture
def own_config(monkeypatch):
  """The config of a method of one's own, with a default and two fields."""
  module = types.ModuleType('module_of_a_test')
  module.Method = _Method
  monkeypatch.setitem(sys.modules, module.__name__, module)
  return default_config.get_config(method='module_of_a_test:Method')


def test_a_default_of_ones_own_counts(own_config):
  assert (own_config.search.epochs, own_config.search.depth) == (9, 2)
  assert default_config.get_config().search.epochs == 5
  assert settings.parse(own_config).search == _Config(
    method='module_of_a_test:Method'
  )


def test_a_field_of_ones_own_may_change_where_it_is_free(own_config, tmp_path):
  values = own_config.to_dict()
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(values))
  own_config.search.threads = 4
  same_run.compare(own_config.to_dict(), str(tmp_path))
  own_config.search.depth = 3
  with pytest.raises(UsageError, match='search.depth was 2, now 3'):
    same_run.compare(own_config.to_dict(), str(tmp_path))
  # It had its default before there was such a field.
  del values['search']['depth']
  path.write_text(json.dumps(values))
  with pytest.raises(UsageError, match='search.depth was 2, now 3'):
    same_run.compare(own_config.to_dict(), str(tmp_path))


def test_a_field_is_refused_with_a_file_that_is_there(own_config, repo_root):
  values = own_config.to_dict()
  values['search']['deep'] = 3
  with pytest.raises(UsageError, match='config.search.deep is not') as caught:
    settings.check_config(values)
  (place,) = re.findall(r'\S+\.py', str(caught.value))
  assert (repo_root / place).is_file()


def test_a_genotype_that_could_not_be_written_down_is_refused_at_once():
  """Not when the model folder is read again, after the training."""
  spec = families.FAMILIES['msdnet'].sizes(
    families.FAMILIES['msdnet'].config(), (8, 8, 1), 10
  )
  network = types.SimpleNamespace(plan=protocol.PlainPlan(spec, ()))
  family = dataclasses.replace(families.FAMILIES['msdnet'], takes_genotype=True)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(families, '_find', lambda *_: family)
    with pytest.raises(UsageError, match='takes a genotype, but its network'):
      families.network_to_json(network, 'mine:FAMILY')
