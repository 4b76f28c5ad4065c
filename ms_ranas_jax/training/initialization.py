"""The first params of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ms_ranas_jax.space.family import AnytimeNetwork
from ms_ranas_jax.space.network import Weights


def init_variables(
  network: AnytimeNetwork, key: jax.Array, weights: Weights | None = None
) -> dict[str, Mapping[str, Any]]:
  """Draws params and sets up batch_stats, without computing the network.

  Args:
    network: a network of any family.
    key: random key.
    weights: of the mixed cells of a search network.

  Returns:
    {'params': ..., 'batch_stats': ...}.
  """
  images = jax.ShapeDtypeStruct(
    (1, *network.plan.spec.image_shape), jnp.float32
  )
  # There is no device axis here to average BN statistics over.
  network = network.clone(axis_name=None)
  # The partitionable generator costs seconds of compile time on CPUs, for
  # every shape of a param; its point is sharded arrays, which these are not.
  with jax.threefry_partitionable(False):
    variables = network.lazy_init(key, images, weights, train=True)
  return {
    'params': variables['params'],
    'batch_stats': variables.get('batch_stats', {}),
  }
