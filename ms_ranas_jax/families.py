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


FAMILIES: Mapping[str, Family] = {
  settings.GRID: Family(True, _grid_plan, _build_grid),
  settings.MSDNET: Family(False, _msdnet_plan, _build_msdnet),
}
