"""The families of networks that a config can ask for, each as its functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from ms_ranas_jax import settings
from ms_ranas_jax.baselines import msdnet
from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space import width
from ms_ranas_jax.space.family import AnytimeNetwork
from ms_ranas_jax.space.family import Plan
from ms_ranas_jax.space.genotype import Genotype

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
  """

  takes_genotype: bool
  plan: Callable[[Config, ImageFormat], Plan]
  build: Callable[..., AnytimeNetwork]


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
    remat=config.train.remat,
    **fields,
  )


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


FAMILIES: Mapping[str, Family] = {
  settings.GRID: Family(True, _grid_plan, _build_grid),
  settings.MSDNET: Family(False, _msdnet_plan, _build_msdnet),
}
