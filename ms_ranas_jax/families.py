"""The families of networks that a config can ask for, each as its functions.

One of one's own is named in a config as 'my_module:my_family', a `Family`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import json
import types
from typing import Any

from ms_ranas_jax import importing
from ms_ranas_jax import plain_form as plain_form_lib
from ms_ranas_jax.baselines import msdnet
from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.baselines import resnet8
from ms_ranas_jax.costs import width
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.plain_forms import grid as grid_form
from ms_ranas_jax.plain_forms import msdnet as msdnet_form
from ms_ranas_jax.plain_forms import resnet8 as resnet8_form
from ms_ranas_jax.sections import TrainConfig
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space.genotype import Genotype
from ms_ranas_jax.space.protocol import AUTO
from ms_ranas_jax.space.protocol import AnytimeNetwork
from ms_ranas_jax.space.protocol import NetworkConfig
from ms_ranas_jax.space.protocol import Plan

ImageFormat = tuple[tuple[int, int, int], int]
_FIELD = 'train.network'
GRID, MSDNET, RESNET8 = 'grid', 'msdnet', 'resnet8'
# Fields of `config.train` that only networks of cells have.
_OF_CELLS = ('genotype', 'drop_path', 'remat')


@dataclasses.dataclass(frozen=True)
class Family:
  """A family of networks to train.

  Attributes:
    config: the class of `train.network` in a config.
    spec: the dataclass of its sizes; it has `image_shape` and `num_classes`
      and, where `channels` may be 'auto', `channels`.
    sizes: (config, image shape, number of classes) -> its sizes.
    plan: (sizes, field) -> the plan, refused where it is impossible; `field`
      is what messages call the sizes.
    build: (sizes, genotype or None, field=..., **attributes) -> the network;
      attributes are those that all families have, `dtype` and `lowering`, and
      `options`.
    takes_genotype: whether its network is made from a genotype.
    options: attributes of the network that are fields of `config.train` too,
      and decide nothing but how it is computed.
    has_not: fields of `config.train` that it can do nothing with.
    plain_form: (network, variables) -> the same in plain layers, by which it
      is exported; None where it cannot be.
  """

  config: type[NetworkConfig]
  spec: type
  sizes: Callable[..., Any]
  plan: Callable[[Any, str], Plan]
  build: Callable[..., AnytimeNetwork]
  takes_genotype: bool = False
  options: tuple[str, ...] = ()
  has_not: tuple[str, ...] = (*_OF_CELLS, 'gradient_equilibrium')
  plain_form: (
    Callable[[Any, Mapping[str, Any]], plain_form_lib.PlainForm] | None
  ) = None


def _grid_plan(spec: grid.NetworkSpec, field: str) -> grid.Plan:
  return grid.build_plan(spec, field=field)


def _build_grid(
  spec: grid.NetworkSpec, genotype: Genotype, **attributes: Any
) -> network_lib.Network:
  return network_lib.derived_network(
    spec,
    genotype,
    ops.named(genotype.operations(), 'genotype'),
    **attributes,
  )


def _build_msdnet(
  spec: msdnet_plan.MSDNetSpec, genotype: None, **attributes: Any
) -> msdnet.MSDNet:
  del genotype
  return msdnet.build_msdnet(spec, **attributes)


def _build_resnet8(
  spec: resnet8.ResNet8Spec, genotype: None, **attributes: Any
) -> resnet8.ResNet8:
  del genotype
  return resnet8.build_resnet8(spec, **attributes)


FAMILIES: Mapping[str, Family] = types.MappingProxyType(
  {
    GRID: Family(
      config=grid.DerivedGridConfig,
      spec=grid.NetworkSpec,
      sizes=grid.network_spec,
      plan=_grid_plan,
      build=_build_grid,
      takes_genotype=True,
      options=('remat', 'gradient_equilibrium'),
      has_not=(),
      plain_form=grid_form.build,
    ),
    MSDNET: Family(
      config=msdnet_plan.MSDNetConfig,
      spec=msdnet_plan.MSDNetSpec,
      sizes=msdnet_plan.msdnet_spec,
      plan=msdnet_plan.build_plan,
      build=_build_msdnet,
      options=('gradient_equilibrium',),
      has_not=_OF_CELLS,
      plain_form=msdnet_form.build,
    ),
    RESNET8: Family(
      config=resnet8.ResNet8Config,
      spec=resnet8.ResNet8Spec,
      sizes=resnet8.resnet8_spec,
      plan=resnet8.build_plan,
      build=_build_resnet8,
      options=('gradient_equilibrium',),
      has_not=_OF_CELLS,
      plain_form=resnet8_form.build,
    ),
  }
)
# Of the sizes, these are facts of the images and not of the network.
_OF_IMAGES = ('image_shape', 'num_classes')
# Sizes that model folders of before have not, and what they were.
_NEWER_SIZES = types.MappingProxyType(
  {'boosting': 0.0, 'links': grid.DENSE, 'stem': grid.CIFAR}
)


def named(name: str) -> Family:
  """Returns a family.

  Args:
    name: of `FAMILIES`, or 'my_module:my_family'.

  Raises:
    UsageError: there is none of that name.
  """
  return _find(name, f'config.{_FIELD}.family')


def _find(name: str, field: str) -> Family:
  return importing.find(
    name,
    FAMILIES,
    field,
    lambda found: isinstance(found, Family),
    'an ms_ranas_jax.families.Family',
  )


def train_plan(train: TrainConfig, images: ImageFormat) -> Plan:
  """Returns the plan of the network to train, before its genotype is known.

  Args:
    train: `config.train`; where the width is 'auto' the plan is of any.
    images: (image shape, number of classes).

  Raises:
    UsageError: it is impossible, or asked for what the family has not.
  """
  family = named(train.network.family)
  # What it has not is refused, so that nobody believes it was done.
  for name in family.has_not:
    value = getattr(train, name)
    if value:
      raise UsageError(
        f'config.train.{name} = {value!r}, but config.{_FIELD}.family = '
        f'{train.network.family!r} has none; leave it at its default.'
      )
  return family.plan(family.sizes(train.network, *images), _FIELD)


def options(train: TrainConfig) -> dict[str, Any]:
  """Returns the attributes of a network that decide how it is computed.

  Args:
    train: `config.train`.
  """
  return {n: getattr(train, n) for n in named(train.network.family).options}


def train_network(
  train: TrainConfig,
  images: ImageFormat,
  genotype: Genotype | None,
  **attributes: Any,
) -> AnytimeNetwork:
  """Returns the network to train, the widest in the budget if that is asked.

  Args:
    train: `config.train`.
    images: (image shape, number of classes).
    genotype: None where the family takes none.
    **attributes: that all families have.

  Raises:
    UsageError: it is impossible, or does not fit `config.train.budget`.
  """
  family = named(train.network.family)
  train_plan(train, images)
  spec = family.sizes(train.network, *images)
  attributes |= options(train)
  limits, dtype = train.budget.limits, train.budget.dtype
  channels = train.network.channels
  if channels == AUTO:
    _, network = width.widest(
      lambda channels: family.build(
        dataclasses.replace(spec, channels=channels),
        genotype,
        field=_FIELD,
        **attributes,
      ),
      limits,
      dtype=dtype,
    )
    return network
  network = family.build(spec, genotype, field=_FIELD, **attributes)
  costs = width.measured(network, dtype) if limits else {}
  for name, limit in limits.items():
    if costs[name] > limit:
      raise UsageError(
        f'config.train.budget.{name} = {limit:,.0f}, but the network of '
        f'config.{_FIELD}.channels = {channels} has {costs[name]:,} '
        f'{width.unit(name, dtype)}; allow more, or set channels = '
        f"'{AUTO}' for the widest that fits."
      )
  return network


def check_budget(train: TrainConfig, images: ImageFormat, nodes: int) -> None:
  """Refuses a budget that no genotype can keep to.

  Args:
    train: `config.train`, of a family that takes a genotype.
    images: (image shape, number of classes).
    nodes: of the genotype.

  Raises:
    UsageError: not even pools alone fit; with what they cost.
  """
  cell = tuple(
    ('max_pool_3x3', state) for _ in range(nodes) for state in (0, 1)
  )
  concat = tuple(range(2, 2 + nodes))
  train_network(train, images, Genotype(cell, concat, cell, concat))


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
    for kind in edges_lib.KINDS
  }
  return Genotype(
    edges['normal'],
    network.normal.concat,
    edges['reduction'],
    network.reduction.concat,
  )


def network_to_json(
  network: AnytimeNetwork, family: str | None = None
) -> dict[str, Any]:
  """Returns what a network is made from, ready for JSON.

  Args:
    network: of operations that the package has, or that can be imported.
    family: its name, as a config has it; None is that of `FAMILIES` whose
      sizes it has.

  Returns:
    `family`, `sizes` and, where there is one, `genotype`; not what the images
    give, their shape and the number of classes.

  Raises:
    UsageError: it could not be made again from that.
  """
  spec = network.plan.spec
  if family is None:
    names = [n for n, f in FAMILIES.items() if isinstance(spec, f.spec)]
    if not names:
      raise UsageError(
        f'a {type(network).__name__} is of no family that a model folder can '
        f'name; there are {", ".join(FAMILIES)}, and my_module:my_family.'
      )
    (family,) = names
  # Through JSON and back, where tuples become lists.
  sizes = json.loads(json.dumps(dataclasses.asdict(spec)))
  value = {
    'family': family,
    'sizes': {k: v for k, v in sizes.items() if k not in _OF_IMAGES},
  }
  genotype = genotype_of(network)
  if _find(family, 'family').takes_genotype and genotype is None:
    raise UsageError(
      f'the family {family!r} takes a genotype, but its network, a '
      f'{type(network).__name__}, has none to write down: build one with '
      'ms_ranas_jax.derived_network.'
    )
  if isinstance(network, network_lib.Network) and genotype is not None:
    for operation in genotype.operations():
      if network.operations[operation] != ops.named([operation])[operation]:
        raise UsageError(
          f'the operation "{operation}" is not the one of the package, so the '
          'network could not be made again from its model folder; name it '
          'my_module:my_operation, or keep its variables in a file of your own.'
        )
    value['genotype'] = json.loads(genotype.to_json())
  return value


def network_from_json(
  value: Mapping[str, Any], images: ImageFormat, **attributes: Any
) -> AnytimeNetwork:
  """Returns the network that `network_to_json` told of.

  Args:
    value: as that returned it.
    images: (image shape, number of classes).
    **attributes: that all families have.

  Raises:
    UsageError: it is not of that form, or makes no network.
  """
  name = value.get('family')
  if not isinstance(name, str):
    raise UsageError(
      f'network.family = {name!r}: there are {", ".join(FAMILIES)}.'
    )
  family = _find(name, 'network.family')
  names = {field.name for field in dataclasses.fields(family.spec)}
  names -= set(_OF_IMAGES)
  sizes = value.get('sizes')
  if isinstance(sizes, dict):
    sizes = {k: v for k, v in _NEWER_SIZES.items() if k in names} | sizes
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
  return family.build(spec, genotype, field='network.sizes', **attributes)


def plain_form(
  value: Mapping[str, Any],
  network: AnytimeNetwork,
  variables: Mapping[str, Any],
) -> plain_form_lib.PlainForm:
  """Returns a trained network in plain layers.

  Args:
    value: what `network_to_json` told of it.
    network: the network.
    variables: its 'params' and 'batch_stats'.

  Raises:
    UsageError: its family, or one of its operations, has no plain form.
  """
  build = _find(value['family'], 'network.family').plain_form
  if build is None:
    raise UsageError(
      f'the family {value["family"]!r} has no plain form, so its networks are '
      'not exported; give it one (Family.plain_form).'
    )
  return build(network, variables)
