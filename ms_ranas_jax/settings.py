"""What a config must look like, and what it means for networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import math
import sys
from typing import Any

from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.runtime import parallel
from ms_ranas_jax.search import auxiliary_skip
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import linear_cost
from ms_ranas_jax.space import width
from ms_ranas_jax.studies import entries
from ms_ranas_jax.training import optimizers

STAGES = ('describe', 'search', 'train', 'evaluate', 'report')
GRID = 'grid'
MSDNET = 'msdnet'
# The width of the network to train is the widest in the budget.
AUTO = 'auto'
# The costs of a search are those of this width, where that is not known yet.
_NOMINAL_CHANNELS = 16

_Check = tuple[Callable[[Any], bool], str]


def _is_int(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
  # Not math.isfinite, which cannot take an integer beyond the floats.
  largest = sys.float_info.max
  return (_is_int(value) or isinstance(value, float)) and abs(value) <= largest


def _int(low: int, high: int | None = None) -> _Check:
  end = '' if high is None else f' and at most {high}'
  return (
    lambda v: _is_int(v) and v >= low and (high is None or v <= high),
    f'a whole number of at least {low}{end}',
  )


def _number(low: float, high: float = math.inf, open_: bool = False) -> _Check:
  start = f'above {low:g}' if open_ else f'of at least {low:g}'
  end = '' if high == math.inf else f' and at most {high:g}'
  return (
    lambda v: _is_number(v) and low <= v <= high and not (open_ and v == low),
    f'a number {start}{end}',
  )


def _one_of(*values: Any) -> _Check:
  return (
    lambda v: type(v) in {type(x) for x in values} and v in values,
    f'one of {", ".join(map(repr, values))}',
  )


def _is_sequence_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
  return lambda v: isinstance(v, (tuple, list)) and all(map(check, v))


_SEED = _int(0, 2**31 - 1)
_TEXT: _Check = (lambda v: isinstance(v, str), 'a text')
_FLAG: _Check = (lambda v: isinstance(v, bool), 'True or False')
_NUMBERS: _Check = (
  _is_sequence_of(lambda v: _is_number(v) and v >= 0),
  'a tuple of numbers of at least 0',
)
_BUDGET_RANGE: _Check = (
  lambda v: _NUMBERS[0](v) and (len(v) == 0 or (len(v) == 2 and v[0] < v[1])),
  'empty, or two numbers of macs, the smaller first',
)
_NETWORK: dict[str, _Check] = {
  'channels': _int(1),
  'layers': _int(1),
  'nodes': _int(1),
  'scales': _int(1),
  'scale_growth': _int(1),
  'exits': (
    lambda v: isinstance(v, str) or _is_sequence_of(_is_int)(v),
    f"'{grid.ALL_BUT_FIRST}', '{grid.LAST}' or a tuple of layers",
  ),
}


_MSDNET: dict[str, _Check] = {
  'family': _one_of(GRID, MSDNET),
  'blocks': _int(1),
  'base': _int(1),
  'step': _int(1),
  'step_mode': _one_of(*msdnet_plan.STEP_MODES),
  'growth': _int(1),
  'growth_factors': (
    _is_sequence_of(lambda v: _is_int(v) and v >= 1),
    'a tuple of whole numbers of at least 1',
  ),
  'bottleneck_factors': (
    _is_sequence_of(lambda v: _is_int(v) and v >= 0),
    'a tuple of whole numbers of at least 0',
  ),
  'prune': _one_of(*msdnet_plan.PRUNES),
  'stem': _one_of(*msdnet_plan.STEMS),
}


def _optimisation(section: str) -> dict[str, _Check]:
  fields = {
    'epochs': _int(1),
    'batch_size': _int(1),
    'cutout': _int(0),
    'learning_rate': _number(0, open_=True),
    'final_learning_rate': _number(0),
    'momentum': _number(0, 1),
    'weight_decay': _number(0),
    'clip': _number(0),
    'exit_weights': _NUMBERS,
    'chunk_steps': _int(1),
    'remat': _FLAG,
    'on_nonfinite': _one_of(*parallel.NONFINITE_CHOICES),
    **{f'network.{name}': check for name, check in _NETWORK.items()},
  }
  return {f'{section}.{name}': check for name, check in fields.items()}


_FIELDS: Mapping[str, _Check] = {
  'stages': (
    lambda v: isinstance(v, (tuple, list)) and all(s in STAGES for s in v),
    f'a tuple of any of {", ".join(STAGES)}',
  ),
  'seed': _SEED,
  'num_devices': _int(0),
  'dtype': _one_of('float32', 'bfloat16'),
  'lowering': _one_of(*lowering.CHOICES),
  'checkpoint_seconds': _number(0),
  'dataset.name': _TEXT,
  'dataset.dir': _TEXT,
  'dataset.train_images': _int(0),
  'dataset.holdout': _int(1),
  'dataset.crop_padding': _int(0),
  'dataset.flip': _FLAG,
  'search.order': _one_of(0, 1, 2),
  'search.num_seeds': _int(1),
  'search.seeds_at_once': _int(1),
  'search.select': _one_of('last', 'area'),
  'search.candidates.last_epochs': _int(0),
  'search.candidates.random': _int(0),
  'search.candidates.images': _int(0),
  'search.candidates.budget_range': _BUDGET_RANGE,
  'search.mixed_derivative': _one_of('exact', 'difference'),
  'search.train_fraction': (
    lambda v: _is_number(v) and 0 < v < 1,
    'a number between 0 and 1',
  ),
  'search.alphas_learning_rate': _number(0, open_=True),
  'search.alphas_weight_decay': _number(0),
  'search.cost.metric': _one_of(*linear_cost.METRICS),
  'search.cost.exit': _int(-(2**31)),
  'search.cost.weight': _number(0),
  'search.cost.target': _number(0),
  'search.cost.temperature': _number(0, open_=True),
  'search.cost.tolerance': _number(0, 1, open_=True),
  'search.guards.max_skips': _int(-1),
  'search.guards.auxiliary_skip': _number(0),
  'search.guards.auxiliary_decay': _one_of(*auxiliary_skip.DECAYS),
  'search.guards.partial_channels': _int(1),
  'search.guards.early_stop': _FLAG,
  'search.guards.early_stop_batches': _int(1),
  'search.guards.early_stop_window': _int(1),
  'search.guards.early_stop_factor': _number(1),
  **_optimisation('search'),
  'train.genotype': _TEXT,
  'train.drop_path': (
    lambda v: _is_number(v) and 0 <= v < 1,
    'a number of at least 0 and below 1',
  ),
  'train.schedule': _one_of(*optimizers.SCHEDULES),
  **_optimisation('train'),
  **{f'train.network.{name}': check for name, check in _MSDNET.items()},
  'train.network.channels': (
    lambda v: v == AUTO or (_is_int(v) and v >= 1),
    f"a whole number of at least 1, or '{AUTO}'",
  ),
  **{f'train.budget.{name}': _number(0) for name in width.LIMITS},
  'evaluate.batch_size': _int(1),
  'evaluate.budget_range': _BUDGET_RANGE,
  'evaluate.dataset.name': _TEXT,
  'evaluate.dataset.dir': _TEXT,
  'study.figure': _one_of('', *entries.NAMES),
  'study.size': _one_of(*entries.SIZES),
  'study.seeds': (
    lambda v: (
      _is_sequence_of(_SEED[0])(v) and len(v) > 0 and len(set(v)) == len(v)
    ),
    f'a tuple of different seeds, each {_SEED[1]}',
  ),
  'study.cutout': _int(1),
  'study.published': _FLAG,
}


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns a nested config as {'section.field': value}."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = value
  return flat


def check_config(config: Mapping[str, Any]) -> None:
  """Refuses a config with unknown, missing or impossible fields.

  Args:
    config: nested mappings, such as `ConfigDict.to_dict` makes.

  Raises:
    UsageError: names the field, its value and what it may be.
  """
  flat = flatten(config)
  for name in flat:
    if name not in _FIELDS:
      raise UsageError(
        f'config.{name} is not a field; remove it, or see '
        'ms_ranas_jax/default_config.py for the fields there are.'
      )
  for name, (holds, expected) in _FIELDS.items():
    if name not in flat:
      raise UsageError(
        f'config.{name} is missing; set it, or start from '
        'ms_ranas_jax/default_config.py.'
      )
    if not holds(flat[name]):
      raise UsageError(f'config.{name} = {flat[name]!r}: give {expected}.')


def network_spec(
  network: Mapping[str, Any],
  image_shape: tuple[int, int, int],
  num_classes: int,
) -> grid.NetworkSpec:
  """Returns the sizes of a grid.

  Args:
    network: `config.search.network` or `config.train.network`; where its width
      is still to be chosen, a nominal one is taken.
    image_shape: (height, width, channels) of the images.
    num_classes: how many classes there are.
  """
  exits = network['exits']
  channels = network['channels']
  return grid.NetworkSpec(
    channels=_NOMINAL_CHANNELS if channels == AUTO else channels,
    layers=network['layers'],
    nodes=network['nodes'],
    scales=network['scales'],
    scale_growth=network['scale_growth'],
    exits=exits if isinstance(exits, str) else tuple(exits),
    image_shape=image_shape,
    num_classes=num_classes,
  )


def msdnet_spec(
  network: Mapping[str, Any],
  image_shape: tuple[int, int, int],
  num_classes: int,
) -> msdnet_plan.MSDNetSpec:
  """Returns the sizes of an MSDNet.

  Args:
    network: `config.train.network`.
    image_shape: (height, width, channels) of the images.
    num_classes: how many classes there are.
  """
  return msdnet_plan.MSDNetSpec(
    channels=network['channels'],
    scales=network['scales'],
    blocks=network['blocks'],
    base=network['base'],
    step=network['step'],
    step_mode=network['step_mode'],
    growth=network['growth'],
    growth_factors=tuple(network['growth_factors']),
    bottleneck_factors=tuple(network['bottleneck_factors']),
    prune=network['prune'],
    stem=network['stem'],
    image_shape=image_shape,
    num_classes=num_classes,
  )
