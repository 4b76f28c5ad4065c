"""The shipped configs: they load, are locked and documented, and say facts."""

import ast
import pathlib

from absl import flags
from ml_collections import ConfigDict
from ml_collections import config_flags
import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax import families
from ms_ranas_jax import fields
from ms_ranas_jax import sections
from ms_ranas_jax import settings
from ms_ranas_jax.baselines import cells
from ms_ranas_jax.costs import cost
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import operations

# ml_collections loads config files by a method that is on its way out.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')

_PATHS = sorted(
  (pathlib.Path(__file__).resolve().parent.parent / 'configs').glob('*.py')
)
_NAMES = {
  'cifar10',
  'cifar100',
  'cifar10_cpu',
  'darts',
  'darts_exits',
  'default',
  'digits',
  'msdnet_cifar10',
  'msdnet_cifar100',
  'resnet8',
  'study',
}
# The recipe of DARTS, which the paper follows.
_SGD = {'momentum': 0.9, 'weight_decay': 3e-4, 'clip': 5.0}
_DARTS_SEARCH = _SGD | {
  'epochs': 50,
  'batch_size': 64,
  'learning_rate': 0.025,
  'final_learning_rate': 0.001,
  'alphas_learning_rate': 3e-4,
  'alphas_weight_decay': 1e-3,
  'train_fraction': 0.5,
  'order': 2,
}
_DARTS_TRAIN = _SGD | {
  'epochs': 600,
  'batch_size': 96,
  'learning_rate': 0.025,
  'final_learning_rate': 0.0,
  'cutout': 16,
  'drop_path': 0.2,
}


# Configs that take an argument: configs/NAME.py:ARGUMENT.
_ARGUMENTS = {'study': ':figure4.cpu'}


def _load(path, *overrides, argument=None):
  """Loads a config as the command does, and without its global flags."""
  argument = _ARGUMENTS.get(path.stem, '') if argument is None else argument
  argv = ['main', f'--config={path}{argument}', *overrides]
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file(
    'config', lock_config=True, flag_values=values, sys_argv=argv
  )
  values(argv)
  return holder.value


@pytest.fixture
def load(tmp_path, monkeypatch):
  """Loads the config of a name from another working directory."""
  monkeypatch.chdir(tmp_path)
  by_name = {path.stem: path for path in _PATHS}
  return lambda name, *overrides, **fields: _load(
    by_name[name], *overrides, **fields
  )


def _fields(section):
  """The fields of a section, without its network."""
  return {k: v for k, v in section.to_dict().items() if k != 'network'}


def _has(section, expected):
  found = _fields(section)
  assert {name: found[name] for name in expected} == expected


def test_all_configs_are_there():
  assert {path.stem for path in _PATHS} >= _NAMES


@pytest.mark.parametrize('path', _PATHS, ids=lambda path: path.stem)
def test_a_config_loads_from_anywhere_and_is_locked(load, path):
  config = load(path.stem)
  assert isinstance(config, ConfigDict) and config.is_locked
  for name in ('dataset', 'search', 'train', 'evaluate'):
    with pytest.raises((AttributeError, KeyError)):
      config[name].no_such_field = 1
  settings.check_config(config.to_dict())
  changed = load(path.stem, '--config.search.epochs=7', '--config.seed=5')
  assert (changed.search.epochs, changed.seed) == (7, 5)


@pytest.mark.parametrize('path', _PATHS, ids=lambda path: path.stem)
def test_get_config_makes_a_new_config_each_time(load, path):
  load(path.stem).search.network.layers = 99
  assert load(path.stem).search.network.layers != 99


@pytest.mark.parametrize('path', _PATHS, ids=lambda path: path.stem)
def test_the_header_says_the_command(path):
  header = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))
  assert f'./launch/local.sh --config=configs/{path.name}' in header


@pytest.mark.parametrize('section', ['search', 'train'])
@pytest.mark.parametrize(
  ('text', 'exits'),
  [
    ('last', 'last'),
    ('all_but_first', 'all_but_first'),
    ('(1,3)', (1, 3)),
    ('(2,)', (2,)),
    ('(1, 2)', (1, 2)),
  ],
)
def test_exits_can_be_given_on_the_command_line(load, section, text, exits):
  config = load('default', f'--config.{section}.network.exits={text}')
  typed = getattr(settings.parse(config), section)
  spec = grid.network_spec(typed.network, (32, 32, 3), 10)
  assert spec.exits == exits


@pytest.mark.parametrize('text', ["('search','train')", 'search'])
def test_stages_can_be_given_on_the_command_line(load, text):
  stages = load('default', f'--config.stages={text}').stages
  assert stages == (('search', 'train') if '(' in text else ('search',))


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_the_paper(load, name):
  config = load(name)
  assert config.dataset.name == name
  _has(config.dataset, {'crop_padding': 4, 'flip': True, 'holdout': 5000})
  # Sections 4.1 and 4.4: what is searched; equal weights of all exits.
  _has(config.search, _DARTS_SEARCH | {'cutout': 16, 'exit_weights': ()})
  assert config.search.network.to_dict() == {
    'channels': 16,
    'layers': 5,
    'nodes': 2,
    'scales': 3,
    'scale_growth': 2,
    'exits': 'all_but_first',
    'stem_multiplier': 0,
    'stem': 'cifar',
    'links': 'dense',
  }
  # Section 4.2: "only three scales and seven layers", two nodes.
  _has(config.train, _DARTS_TRAIN | {'genotype': '', 'exit_weights': ()})
  assert {
    'family': 'grid',
    'channels': 16,
    'layers': 7,
    'nodes': 2,
    'scales': 3,
    'scale_growth': 2,
    'exits': 'all_but_first',
    'stem_multiplier': 0,
    'stem': 'cifar',
    'links': 'dense',
    'boosting': 0.0,
  }.items() <= config.train.network.to_dict().items()


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_msdnet_has_its_own_recipe(load, name):
  config = load(f'msdnet_{name}')
  assert config.dataset.name == name
  _has(config.dataset, {'crop_padding': 4, 'flip': True, 'holdout': 5000})
  assert config.stages == ('describe', 'train', 'evaluate', 'report')
  _has(
    config.train,
    {
      'epochs': 300,
      'batch_size': 64,
      'learning_rate': 0.1,
      'schedule': 'step',
      'momentum': 0.9,
      'weight_decay': 1e-4,
      'clip': 0.0,
      'cutout': 0,
      'exit_weights': (),
    },
  )
  assert {
    'family': 'msdnet',
    'blocks': 11,
    'base': 4,
    'step': 2,
    'step_mode': 'even',
    'channels': 16,
    'growth': 6,
    'scales': 3,
    'growth_factors': (1, 2, 4),
    'bottleneck_factors': (1, 2, 4),
    'prune': 'max',
    'stem': 'cifar',
  }.items() <= config.train.network.to_dict().items()


def test_resnet8_is_that_of_mlperf_tiny(load):
  config = load('resnet8')
  assert config.dataset.name == 'cifar10'
  _has(config.dataset, {'crop_padding': 4, 'flip': True, 'holdout': 2000})
  assert config.stages == ('describe', 'train', 'evaluate', 'report')
  network = config.train.network
  assert (network.family, network.channels) == ('resnet8', 16)
  assert network.exits == 'last'
  config = load('resnet8', '--config.train.network.exits=0,1')
  assert settings.parse(config).train.network.exits == (0, 1)


@pytest.mark.parametrize('name', ['flowers', 'vww96'])
def test_photographs_are_read_and_augmented(load, name):
  config = load(name)
  _has(config.dataset, {'name': 'folder', 'crop_padding': 0, 'flip': True})
  size = settings.parse(config).dataset.picture_options.image_size
  for network in (config.search.network, config.train.network):
    assert network.stem != 'cifar'
  assert 0 < config.dataset.crop_scale < 1 and min(size) >= 96
  assert config.stages == sections.DEFAULT_STAGES


def test_a_microcontroller_has_a_budget(load):
  budget = load('vww96').train.budget
  assert (budget.macs, budget.params_deployed) == (7.5e6, 220_000)


def test_imagenet_is_trained_as_darts_does(load):
  config = load('imagenet')
  _has(config.dataset, {'image_size': '224', 'crop_scale': 0.08, 'flip': True})
  recipe = {'epochs': 250, 'batch_size': 128, 'learning_rate': 0.1}
  recipe |= {'weight_decay': 3e-5, 'label_smoothing': 0.1, 'clip': 5.0}
  _has(config.train, recipe | {'genotype': 'DARTS_V2'})
  network = families.train_network(
    settings.parse(config).train,
    ((224, 224, 3), 1000),
    cells.load_genotype('DARTS_V2', operations.REAL),
    dtype='float32',
  )
  found = cost.network_cost(network)
  # Of the public code, without its auxiliary head.
  assert (found.params, found.macs) == (4_718_752, 529_911_552)


def test_darts_with_exits(load):
  config = load('darts_exits')
  _has(config.train, _DARTS_TRAIN | {'genotype': 'DARTS_V2'})
  network = config.train.network
  assert (network.family, network.scales, network.nodes) == ('grid', 1, 4)
  assert len(network.exits) > 1


def test_darts(load):
  config = load('darts')
  assert config.dataset.name == 'cifar10'
  _has(config.dataset, {'crop_padding': 4, 'flip': True})
  _has(config.search, _DARTS_SEARCH | {'cutout': 0})
  _has(config.train, _DARTS_TRAIN)
  one_exit = {'nodes': 4, 'scales': 1, 'exits': 'last'}
  _has(config.search.network, {'channels': 16, 'layers': 8} | one_exit)
  _has(config.train.network, {'channels': 36, 'layers': 20} | one_exit)


def test_cifar10_on_a_cpu_has_scales_and_exits(load):
  config = load('cifar10_cpu')
  assert config.dataset.name == 'cifar10'
  assert config.stages == sections.DEFAULT_STAGES
  for network in (config.search.network, config.train.network):
    assert network.scales > 1 and network.exits == 'all_but_first'


_STUDIES = [
  f':figure{number}{size}'
  for number in (4, 5, 6, 9, 10)
  for size in ('', '.paper', '.cpu')
]


@pytest.mark.parametrize('argument', _STUDIES)
def test_a_study_of_every_figure(load, argument):
  config = load('study', argument=argument)
  settings.check_config(config.to_dict())
  name, _, size = argument[1:].partition('.')
  assert config.study.figure == name
  assert config.study.size == (size or 'paper')
  assert config.dataset.name == (
    'cifar100' if name == 'figure10' else 'cifar10'
  )
  assert len(config.study.seeds) >= 2
  # Nothing that a figure varies is left to chance: what is not in the paper's
  # size is said by the size.
  assert config.study.published == (config.study.size == 'paper')
  assert (config.dataset.train_images > 0) == (size == 'cpu')


def test_the_paper_s_ablations(load):
  """Section 4.1: "a 5-layer, 16-initial channels" network; 3.3: four nodes."""
  config = load('study', argument=':figure4')
  for section in (config.search, config.train):
    sizes = section.network
    assert (sizes.layers, sizes.channels, sizes.nodes) == (5, 16, 4)
  _has(config.search, _DARTS_SEARCH)
  _has(config.train, _DARTS_TRAIN)


@pytest.mark.parametrize(
  ('argument', 'field'),
  [
    ('', "study.figure = 'FIGURE': give one of '', 'figure4'"),
    (':figure7', "study.figure = 'figure7': give one of '', 'figure4'"),
    (':figure4.tpu', "study.size = 'tpu': give one of 'paper', 'cpu'"),
  ],
)
def test_a_study_of_what_is_no_figure(load, argument, field):
  config = load('study', argument=argument)
  with pytest.raises(UsageError, match=field):
    settings.check_config(config.to_dict())


def test_digits_needs_no_path_and_runs_every_stage(load):
  config = load('digits')
  assert (config.dataset.name, config.dataset.dir) == ('digits', '')
  assert config.stages == sections.DEFAULT_STAGES


def test_every_field_is_explained():
  known = settings.known_fields()
  assert set(known) == set(
    fields.flatten(default_config.get_config().to_dict())
  )
  for name, entry in known.items():
    assert len(entry.field.meaning) > 5, name
    assert set(entry.field.stages) <= set(sections.STAGES), name
    assert entry.field.stages or not name.startswith(
      ('dataset', 'search', 'train', 'evaluate', 'export')
    ), name
    assert entry.field.rule.holds(entry.default), name
