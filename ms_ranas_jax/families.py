"""The families of networks that a config can ask for, each as its functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import json
from typing import Any

from ms_ranas_jax import settings
from ms_ranas_jax.baselines import msdnet
from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space import width
from ms_ranas_jax.space.genotype import Genotype
from ms_ranas_jax.space.protocol import AnytimeNetwork
from ms_ranas_jax.space.protocol import Plan

Config = Any
ImageFormat = tuple[tuple[int, int, int], int]
_FIELD = 'train.network'


@dataclasses.dataclass(frozen=True)
class Family:
  """A family of networks to train.

  Attributes:
    takes_genotype: whether its network is made from a genotype.
    plan: (config, image format) -> the plan, refused where it is impossible;
      the image format is (image shape, number of classes).
    build: (config, image format, genotype or None, **fields) -> the network;
      fields are attributes that all families have.
    spec: the dataclass of its sizes.
    restore: (sizes, genotype or None, **fields) -> the network.
    fields: config -> attributes of its own that decide nothing but how it is
      computed.
  """

  takes_genotype: bool
  plan: Callable[[Config, ImageFormat], Plan]
  build: Callable[..., AnytimeNetwork]
  spec: type
  restore: Callable[..., AnytimeNetwork]
  fields: Callable[[Config], Mapping[str, Any]]


def _grid_plan(config: Config, images: ImageFormat) -> grid.Plan:
  spec = settings.network_spec(config.train.network, *images)
  return grid.build_plan(spec, field=_FIELD)


def _build_grid(
  config: Config,
  images: ImageFormat,
  genotype: Genotype,
  **fields: Any,
) -> network_lib.Network:
  return network_lib.derived_network(
    settings.network_spec(config.train.network, *images),
    genotype,
    ops.OPERATIONS,
    field=_FIELD,
    **_grid_fields(config),
    **fields,
  )


def _grid_fields(config: Config) -> dict[str, Any]:
  return {'remat': config.train.remat}


def _msdnet_fields(config: Config) -> dict[str, Any]:
  del config
  return {}


def _msdnet_plan(config: Config, images: ImageFormat) -> msdnet_plan.Plan:
  train = config.train
  family = train.network.family
  # What it has not is refused, so that nobody believes it was done.
  for name, value in (
    ('genotype', train.genotype),
    ('drop_path', train.drop_path),
    ('remat', train.remat),
  ):
    if value:
      raise UsageError(
        f'config.train.{name} = {value!r}, but config.{_FIELD}.family = '
        f'{family!r} has none; leave it at its default.'
      )
  spec = settings.msdnet_spec(train.network, *images)
  return msdnet_plan.build_plan(spec, field=_FIELD)


def _build_msdnet(
  config: Config,
  images: ImageFormat,
  genotype: Genotype | None,
  **fields: Any,
) -> msdnet.MSDNet:
  del genotype
  return msdnet.MSDNet(plan=_msdnet_plan(config, images), **fields)


# Of a plan before the genotype, and so the width, is known. All that has to be
# split in halves can be.
_ANY_WIDTH = 16


def _with_channels(config: Config, channels: int) -> Config:
  copy = config.copy_and_resolve_references()
  with copy.ignore_type():
    copy.train.network.channels = channels
  return copy


def train_plan(config: Config, images: ImageFormat) -> Plan:
  """Returns the plan of the network to train, before its genotype is known.

  Args:
    config: the whole config; where the width is 'auto' the plan is of any.
    images: (image shape, number of classes).

  Raises:
    UsageError: it is impossible.
  """
  if config.train.network.channels == settings.AUTO:
    config = _with_channels(config, _ANY_WIDTH)
  return FAMILIES[config.train.network.family].plan(config, images)


def train_network(
  config: Config,
  images: ImageFormat,
  genotype: Genotype | None,
  **fields: Any,
) -> AnytimeNetwork:
  """Returns the network to train, the widest in the budget if that is asked.

  Args:
    config: the whole config.
    images: (image shape, number of classes).
    genotype: None where the family takes none.
    **fields: attributes that all families have.

  Raises:
    UsageError: it is impossible, or does not fit `config.train.budget`.
  """
  family = FAMILIES[config.train.network.family]
  limits = {n: v for n, v in config.train.budget.items() if v}
  channels = config.train.network.channels
  if channels == settings.AUTO:
    _, network = width.widest(
      lambda channels: family.build(
        _with_channels(config, channels), images, genotype, **fields
      ),
      limits,
    )
    return network
  network = family.build(config, images, genotype, **fields)
  costs = width.measured(network) if limits else {}
  for name, limit in limits.items():
    if costs[name] > limit:
      raise UsageError(
        f'config.train.budget.{name} = {limit:,.0f}, but the network of '
        f'config.{_FIELD}.channels = {channels} has {costs[name]:,}; allow '
        f"more, or set channels = '{settings.AUTO}' for the widest that fits."
      )
  return network


def check_budget(config: Config, images: ImageFormat, nodes: int) -> None:
  """Refuses a budget that no genotype can keep to.

  Args:
    config: the whole config, of a family that takes a genotype.
    images: (image shape, number of classes).
    nodes: of the genotype.

  Raises:
    UsageError: not even pools alone fit; with what they cost.
  """
  cell = tuple(
    ('max_pool_3x3', state) for _ in range(nodes) for state in (0, 1)
  )
  concat = tuple(range(2, 2 + nodes))
  train_network(config, images, Genotype(cell, concat, cell, concat))


def _restore_grid(
  spec: grid.NetworkSpec, genotype: Genotype, **fields: Any
) -> network_lib.Network:
  return network_lib.derived_network(
    spec, genotype, ops.OPERATIONS, field='network.sizes', **fields
  )


def _restore_msdnet(
  spec: msdnet_plan.MSDNetSpec, genotype: None, **fields: Any
) -> msdnet.MSDNet:
  del genotype
  return msdnet.build_msdnet(spec, field='network.sizes', **fields)


FAMILIES: Mapping[str, Family] = {
  settings.GRID: Family(
    takes_genotype=True,
    plan=_grid_plan,
    build=_build_grid,
    spec=grid.NetworkSpec,
    restore=_restore_grid,
    fields=_grid_fields,
  ),
  settings.MSDNET: Family(
    takes_genotype=False,
    plan=_msdnet_plan,
    build=_build_msdnet,
    spec=msdnet_plan.MSDNetSpec,
    restore=_restore_msdnet,
    fields=_msdnet_fields,
  ),
}
# Of the sizes, these are facts of the images and not of the network.
_OF_IMAGES = ('image_shape', 'num_classes')


def genotype_of(network: AnytimeNetwork) -> Genotype | None:
  """Returns the genotype of a derived network, None where there is none.

  Raises:
    UsageError: it is a search network, whose cells are mixed.
  """
  if not isinstance(network, network_lib.Network):
    return None
  if network.search:
    raise UsageError(
      'a search network has no genotype: derive one from its alphas, and '
      'train the network of that.'
    )
  edges = {
    kind: tuple(
      (edge.operations[0], edge.state) for edge in getattr(network, kind).edges
    )
    for kind in network_lib.KINDS
  }
  return Genotype(
    edges['normal'],
    network.normal.concat,
    edges['reduction'],
    network.reduction.concat,
  )


def network_to_json(network: AnytimeNetwork) -> dict[str, Any]:
  """Returns what a network is made from, ready for JSON.

  Args:
    network: of one of `FAMILIES`, of operations that the package has.

  Returns:
    `family`, `sizes` and, where there is one, `genotype`; not what the images
    give, their shape and the number of classes.

  Raises:
    UsageError: it could not be made again from that.
  """
  spec = network.plan.spec
  names = [n for n, f in FAMILIES.items() if isinstance(spec, f.spec)]
  if not names:
    raise UsageError(
      f'a {type(network).__name__} is of no family that a model folder can '
      f'name; there are {", ".join(FAMILIES)}.'
    )
  # Through JSON and back, where tuples become lists.
  sizes = json.loads(json.dumps(dataclasses.asdict(spec)))
  value = {
    'family': names[0],
    'sizes': {k: v for k, v in sizes.items() if k not in _OF_IMAGES},
  }
  genotype = genotype_of(network)
  if genotype is not None:
    for operation in genotype.operations():
      if network.operations[operation] != ops.OPERATIONS.get(operation):
        raise UsageError(
          f'the operation "{operation}" is not the one of the package, so the '
          'network could not be made again from its model folder; keep its '
          'variables in a file of your own.'
        )
    value['genotype'] = json.loads(genotype.to_json())
  return value


def network_from_json(
  value: Mapping[str, Any], images: ImageFormat, **fields: Any
) -> AnytimeNetwork:
  """Returns the network that `network_to_json` told of.

  Args:
    value: as that returned it.
    images: (image shape, number of classes).
    **fields: attributes that all families have.

  Raises:
    UsageError: it is not of that form, or makes no network.
  """
  name = value.get('family')
  if not isinstance(name, str) or name not in FAMILIES:
    raise UsageError(
      f'network.family = {name!r}: there are {", ".join(FAMILIES)}.'
    )
  family = FAMILIES[name]
  names = {field.name for field in dataclasses.fields(family.spec)}
  names -= set(_OF_IMAGES)
  sizes = value.get('sizes')
  if not isinstance(sizes, dict) or set(sizes) != names:
    raise UsageError(f'network.sizes has not the fields {sorted(names)}.')
  spec = family.spec(
    **{k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()},
    image_shape=tuple(images[0]),
    num_classes=images[1],
  )
  genotype = None
  if family.takes_genotype:
    genotype = Genotype.from_json(json.dumps(value.get('genotype')))
  return family.restore(spec, genotype, **fields)
