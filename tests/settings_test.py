"""Every field of a config is checked; every shipped config is possible."""

import importlib.util
import math

import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax import families
from ms_ranas_jax import fields
from ms_ranas_jax import settings
from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.baselines import resnet8
from ms_ranas_jax.data import datasets
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import grid

_DEFAULTS = fields.flatten(default_config.get_config().to_dict())

# What no field of that type may be, whatever its range.
_BAD = {
  bool: (None, 1, 0, 'yes', ()),
  int: (None, True, 1.0, '1', (1,), -1, math.nan),
  float: (None, True, '0.1', (0.1,), -0.1, math.nan, math.inf, 10**400),
  str: (None, True, 1, ('text',)),
  tuple: (None, True, 1, 'unknown', (None,), ('unknown',)),
}
_ALSO_BAD = [
  ('stages', ('search', 'deploy')),
  ('stages', ('search', 1)),
  ('seed', 2**31),
  ('dtype', 'float64'),
  ('lowering', 'fast'),
  ('dataset.holdout', -1),
  ('search.order', -1),
  ('search.order', 3),
  ('search.select', 'best'),
  ('search.num_seeds', 0),
  ('search.seeds_at_once', 0),
  ('search.candidates.budget_range', (2.0, 1.0)),
  ('search.train_fraction', 0.0),
  ('search.train_fraction', 1),
  ('search.alphas_learning_rate', 0.0),
  ('search.guards.max_skips', -2),
  ('search.guards.auxiliary_decay', 'steep'),
  ('search.guards.partial_channels', 0),
  ('search.guards.early_stop_window', 0),
  ('search.guards.early_stop_factor', 0.9),
  ('train.drop_path', 1.0),
  ('train.schedule', 'linear'),
  ('train.network.family', 'resnet'),
  ('train.network.blocks', 0),
  ('train.network.base', 0),
  ('train.network.step', 0),
  ('train.network.step_mode', 'odd'),
  ('train.network.growth', 0),
  ('train.network.growth_factors', (0,)),
  ('train.network.bottleneck_factors', (1.0,)),
  ('train.network.bottleneck_factors', (-1,)),
  ('train.network.prune', 'none'),
  ('train.network.stem', 'vgg'),
  ('evaluate.batch_size', 0),
  ('evaluate.budget_range', (1.0,)),
  ('evaluate.budget_range', (2.0, 1.0)),
  ('evaluate.budget_range', (1.0, 1.0)),
  ('evaluate.budget_range', (0, math.inf)),
  ('evaluate.budget_range', (0, 1, 2)),
  ('dataset.train_images', -1),
  ('dataset.image_size', '0'),
  ('dataset.image_size', '96x96x3'),
  ('dataset.test_fraction', 0.0),
  ('dataset.test_fraction', 1.0),
  ('dataset.unreadable', 'mend'),
  ('study.figure', 'figure7'),
  ('study.size', 'tpu'),
  ('study.seeds', ()),
  ('study.seeds', (0, 0)),
  ('study.seeds', (0, -1)),
  ('study.seeds', (2**31,)),
  ('study.cutout', 0),
  *(
    (f'{section}.{field}', value)
    for section in ('search', 'train')
    for field, value in [
      ('epochs', 0),
      ('batch_size', 0),
      ('chunk_steps', 0),
      ('learning_rate', 0.0),
      ('momentum', 1.1),
      ('exit_weights', (1.0, -1.0)),
      ('exit_weights', (1.0, math.nan)),
      ('exit_weights', (True,)),
      ('exit_weights', (10**400,)),
      ('network.channels', 0),
      ('network.layers', 0),
      ('network.nodes', 0),
      ('network.scales', 0),
      ('network.scale_growth', 0),
      ('network.exits', 1),
      ('network.exits', (1.0,)),
      ('network.exits', (True,)),
    ]
  ),
]
_ALSO_GOOD = [
  ('stages', ()),
  ('stages', ['search', 'report']),  # lists come from config.json
  ('seed', 2**31 - 1),
  ('dtype', 'bfloat16'),
  ('lowering', 'conv'),
  ('search.order', 2),
  ('search.guards.max_skips', 0),
  ('search.guards.auxiliary_skip', 1),
  ('search.guards.auxiliary_decay', 'cosine'),
  ('search.guards.early_stop_factor', 1.0),
  ('search.learning_rate', 1),
  ('search.momentum', 1.0),
  ('search.exit_weights', (0, 1.5)),
  ('search.network.exits', 'last'),
  ('train.network.exits', (1, 3)),
  ('train.network.exits', [1, 3]),
  ('train.drop_path', 0),
  ('train.schedule', 'step'),
  ('train.network.family', 'msdnet'),
  ('train.network.family', 'resnet8'),
  ('train.network.growth_factors', [1, 2]),
  ('train.network.bottleneck_factors', (0, 0)),
  ('train.network.prune', 'min'),
  ('train.network.step_mode', 'lin_grow'),
  ('train.network.stem', 'imagenet'),
  ('evaluate.budget_range', (0, 1e6)),
  ('study.figure', 'figure10'),
  ('study.seeds', [3, 1]),
  ('dataset.holdout', 0),
  ('dataset.image_size', '96x128'),
  ('dataset.test_fraction', 0.5),
  ('dataset.unreadable', 'skip'),
]
# Without these, a field does nothing and is refused.
_MSDNET = {'train.network.family': 'msdnet'}
_STUDY = {'study.figure': 'figure4'}
_FOLDER = {'dataset.name': 'folder'}
_NEEDED = {
  'dataset.image_size': _FOLDER,
  'dataset.test_fraction': _FOLDER,
  'dataset.unreadable': _FOLDER,
  'search.guards.auxiliary_decay': {'search.guards.auxiliary_skip': 1.0},
  'search.guards.early_stop_factor': {'search.guards.early_stop': True},
  'search.guards.early_stop_window': {'search.guards.early_stop': True},
  'search.guards.early_stop_batches': {'search.guards.early_stop': True},
  'search.cost.tolerance': {'search.cost.target': 1e6},
  'train.final_learning_rate': {'train.schedule': 'cosine'},
  'train.network.growth_factors': _MSDNET,
  'train.network.bottleneck_factors': _MSDNET,
  'train.network.prune': _MSDNET,
  'train.network.step_mode': _MSDNET,
  'train.network.stem': _MSDNET,
  'study.size': _STUDY,
  'study.seeds': _STUDY,
  'study.cutout': _STUDY,
  'study.published': _STUDY,
}


def _nested(flat):
  config = {}
  for name, value in flat.items():
    *sections, field = name.split('.')
    place = config
    for section in sections:
      place = place.setdefault(section, {})
    place[field] = value
  return config


def _check(flat):
  settings.check_config(_nested(flat))


def _bad_values(name):
  default = _DEFAULTS[name]
  # A tuple is not of the wrong type for exits, though their default is a word,
  # and modules may have any name.
  words = name.endswith('.exits')
  modules = name.endswith('.freeze')
  # And an exit may be counted from the end, a cap be off.
  last = name.endswith(('.exit', '.max_skips'))
  yield from (
    b
    for b in _BAD[type(default)]
    if not (words and b == ('text',))
    and not (modules and b == ('unknown',))
    and not (last and b == -1)
  )
  yield from (value for field, value in _ALSO_BAD if field == name)


def test_flatten_names_every_field_once():
  nested = {'a': 1, 'b': {'c': (2,), 'd': {'e': None}}, 'f': {}}
  assert fields.flatten(nested) == {'a': 1, 'b.c': (2,), 'b.d.e': None}
  assert _nested(_DEFAULTS) == default_config.get_config().to_dict()


def test_the_default_config_is_allowed():
  _check(_DEFAULTS)


@pytest.mark.parametrize(('name', 'value'), _ALSO_GOOD, ids=repr)
def test_possible_values_are_allowed(name, value):
  _check(_DEFAULTS | _NEEDED.get(name, {}) | {name: value})


@pytest.mark.parametrize(
  ('name', 'value', 'without'),
  [
    ('search.guards.auxiliary_decay', 'cosine', 'search.guards.auxiliary_skip'),
    ('search.guards.early_stop_factor', 2.0, 'search.guards.early_stop'),
    ('search.guards.early_stop_window', 2, 'search.guards.early_stop'),
    ('search.guards.early_stop_batches', 2, 'search.guards.early_stop'),
    ('search.cost.tolerance', 0.1, 'search.cost.target'),
    ('study.size', 'cpu', 'study.figure'),
    ('study.cutout', 8, 'study.figure'),
    ('study.published', True, 'study.figure'),
  ],
)
def test_what_is_set_and_does_nothing_is_refused(name, value, without):
  with pytest.raises(UsageError) as caught:
    _check(_DEFAULTS | {name: value})
  assert str(caught.value) == (
    f'config.{name} = {value!r} does nothing while config.{without} = '
    f'{_DEFAULTS[without]!r}; set {without}, or leave it at '
    f'{_DEFAULTS[name]!r}.'
  )
  _check(_DEFAULTS | _NEEDED[name] | {name: value})


def test_a_step_schedule_has_no_end_of_a_cosine():
  changes = {'train.final_learning_rate': 0.001, 'train.schedule': 'step'}
  with pytest.raises(UsageError, match="set train.schedule = 'cosine'"):
    _check(_DEFAULTS | changes)


@pytest.mark.parametrize(
  ('family', 'name', 'value'),
  [
    ('resnet8', 'stem', 'imagenet'),
    ('grid', 'blocks', 5),
    ('grid', 'prune', 'min'),
    ('grid', 'growth', 7),
    ('msdnet', 'layers', 7),
    ('msdnet', 'nodes', 3),
    ('msdnet', 'exits', 'last'),
    ('msdnet', 'scale_growth', 3),
    ('resnet8', 'scales', 3),
    ('resnet8', 'blocks', 4),
  ],
)
def test_what_a_family_has_not_is_refused(family, name, value):
  changes = {'train.network.family': family, f'train.network.{name}': value}
  with pytest.raises(UsageError) as caught:
    _check(_DEFAULTS | changes)
  assert str(caught.value) == (
    f'config.train.network.{name} = {value!r}, but train.network.family = '
    f'{family!r} has none; leave it at {_DEFAULTS[f"train.network.{name}"]!r}.'
  )


@pytest.mark.parametrize(
  ('method', 'name', 'value'),
  [
    ('random', 'order', 2),
    ('random', 'ghn.rounds', 2),
    ('ghn', 'order', 2),
    ('ghn', 'learning_rate', 0.1),
    ('ghn', 'final_learning_rate', 0.1),
    ('ghn', 'momentum', 0.5),
    ('ghn', 'weight_decay', 0.1),
    ('bilevel', 'ghn.learning_rate', 0.1),
  ],
)
def test_what_a_method_has_not_is_refused(method, name, value):
  changes = {'search.method': method, f'search.{name}': value}
  with pytest.raises(UsageError) as caught:
    _check(_DEFAULTS | changes)
  assert str(caught.value) == (
    f'config.search.{name} = {value!r}, but search.method = {method!r} has '
    f'none; leave it at {_DEFAULTS[f"search.{name}"]!r}.'
  )


@pytest.mark.parametrize('name', _DEFAULTS)
def test_impossible_values_are_refused(name):
  for value in _bad_values(name):
    with pytest.raises(UsageError) as caught:
      _check(_DEFAULTS | {name: value})
      pytest.fail(f'{name} = {value!r} was let through')
    message = str(caught.value)
    assert message.startswith(f'config.{name} = {value!r}: give ')
    assert '\n' not in message


def test_the_table_of_impossible_values_names_fields():
  assert {name for name, _ in _ALSO_BAD} <= set(_DEFAULTS)


@pytest.mark.parametrize('name', _DEFAULTS)
def test_a_missing_field_is_refused(name):
  rest = {key: value for key, value in _DEFAULTS.items() if key != name}
  with pytest.raises(UsageError, match=f'config.{name} is missing; set it'):
    _check(rest)


@pytest.mark.parametrize(
  'name', ['foo', 'search.epoch', 'train.network.channel', 'train.x.y']
)
def test_an_unknown_field_is_refused(name):
  with pytest.raises(UsageError, match=f'config.{name} is not a field; remove'):
    _check(_DEFAULTS | {name: 1})


@pytest.mark.parametrize('section', ['dataset', 'search', 'train', 'evaluate'])
def test_a_section_that_is_none_is_refused(section):
  config = default_config.get_config().to_dict()
  with pytest.raises(UsageError, match=f'config.{section} is not a field'):
    settings.check_config(config | {section: 3})
  with pytest.raises(UsageError, match=rf'config.{section}\..* is missing'):
    settings.check_config(config | {section: {}})


@pytest.mark.parametrize('exits', ['last', (1, 3), [1, 3]])
def test_network_spec_takes_the_sizes_over(exits):
  section = {
    'channels': 6,
    'layers': 4,
    'nodes': 3,
    'scales': 2,
    'scale_growth': 1,
    'exits': exits,
  }
  spec = grid.network_spec(
    fields.typed(grid.GridConfig, section), (9, 10, 2), 7
  )
  assert spec == grid.NetworkSpec(
    channels=6,
    layers=4,
    nodes=3,
    scales=2,
    scale_growth=1,
    exits='last' if exits == 'last' else (1, 3),
    image_shape=(9, 10, 2),
    num_classes=7,
  )


def test_msdnet_spec_takes_the_sizes_over():
  section = {
    'channels': 6,
    'scales': 2,
    'blocks': 4,
    'base': 3,
    'step': 2,
    'step_mode': 'lin_grow',
    'growth': 4,
    'growth_factors': [1, 2],
    'bottleneck_factors': [0, 3],
    'prune': 'min',
    'stem': 'imagenet',
    'layers': 99,
  }
  assert msdnet_plan.msdnet_spec(
    fields.typed(msdnet_plan.MSDNetConfig, section), (9, 10, 2), 7
  ) == msdnet_plan.MSDNetSpec(
    channels=6,
    scales=2,
    blocks=4,
    base=3,
    step=2,
    step_mode='lin_grow',
    growth=4,
    growth_factors=(1, 2),
    bottleneck_factors=(0, 3),
    prune='min',
    stem='imagenet',
    image_shape=(9, 10, 2),
    num_classes=7,
  )


def test_a_field_of_two_families_has_the_default_of_the_one_asked_for():
  for family in families.FAMILIES:
    config = default_config.get_config(family)
    own = 'last' if family == 'resnet8' else _DEFAULTS['train.network.exits']
    assert config.train.network.exits == own
    settings.parse(config)


@pytest.mark.parametrize('exits', ['all_but_first', [0, 1]])
def test_resnet8_spec_takes_the_sizes_over(exits):
  config = default_config.get_config('resnet8')
  config.train.network.update(channels=6, exits=exits)
  network = settings.parse(config).train.network
  assert resnet8.resnet8_spec(network, (9, 10, 2), 7) == resnet8.ResNet8Spec(
    channels=6,
    exits=exits if isinstance(exits, str) else (0, 1),
    image_shape=(9, 10, 2),
    num_classes=7,
  )


def test_exits_may_be_set_to_layers():
  """The type of the default does not stand in the way."""
  config = default_config.get_config()
  config.train.network.exits = (1, 3)
  config.search.network.update(exits=(2,))
  settings.check_config(config.to_dict())
  assert config.train.network.exits == (1, 3)
  config.train.network.exits = 'last'
  settings.check_config(config.to_dict())


def test_every_shipped_config_is_possible(repo_root):
  paths = sorted((repo_root / 'configs').glob('*.py'))
  assert len(paths) >= 6
  for path in paths:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    argument = ('figure4.cpu',) if path.stem == 'study' else ()
    config = module.get_config(*argument)
    typed = settings.parse(config)
    if config.dataset.name == 'folder':
      # Of the user, in the sizes of the model that is started from.
      image_format = (32, 32, 3), 10
    else:
      image_format = datasets.image_format(
        config.dataset.name, config.dataset.dir
      )
    family = families.named(config.train.network.family)
    plans = {'train': families.train_plan(typed.train, image_format)}
    if family.takes_genotype:
      spec = grid.network_spec(typed.search.network, *image_format)
      plans['search'] = grid.build_plan(spec)
    for plan in plans.values():
      assert plan.exits[-1].layer == plan.spec.layers - 1, path
    # What the search finds fits the network that is trained.
    assert config.search.network.nodes == config.train.network.nodes, path
