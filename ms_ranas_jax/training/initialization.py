"""The first params of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flax import traverse_util
import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.space.network import Weights
from ms_ranas_jax.space.protocol import AnytimeNetwork


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

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> network = mr.build_resnet8(mr.ResNet8Spec())
    >>> variables = mr.init_variables(network, jax.random.key(0))
    >>> sorted(variables)
    ['batch_stats', 'params']
  """
  # There is no device axis here to average BN statistics over.
  network = network.clone(axis_name=None)
  shape = (1, *network.plan.spec.image_shape)

  def init(key: jax.Array) -> dict[str, Mapping[str, Any]]:
    return network.init(key, jnp.zeros(shape, jnp.float32), weights, train=True)

  # The partitionable generator costs seconds of compile time on CPUs, for
  # every shape of a param; its point is sharded arrays, which these are not.
  with jax.threefry_partitionable(False):
    variables = _without_dead_code(init)(key)
  return {
    'params': variables['params'],
    'batch_stats': variables.get('batch_stats', {}),
  }


def with_arrays(
  variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Returns variables of which some have other values.

  Args:
    variables: {'params': ..., 'batch_stats': ...}.
    arrays: name -> value, such as 'params/stem_0/kernel'.

  Raises:
    ValueError: there is no such variable, or one of another shape.
  """
  if not arrays:
    return dict(variables)
  flat: dict[str, Any] = traverse_util.flatten_dict(dict(variables), sep='/')
  for name, array in arrays.items():
    if name not in flat or flat[name].shape != array.shape:
      there = flat[name].shape if name in flat else 'nothing'
      raise ValueError(f'{name}: {array.shape} for {there}')
  flat |= {name: jnp.asarray(array) for name, array in arrays.items()}
  empty = {name: {} for name in variables}
  return empty | traverse_util.unflatten_dict(flat, sep='/')


def _without_dead_code(function: Callable[..., Any]) -> Callable[..., Any]:
  """Makes a function run, step by step, only what its results depend on.

  Flax's `lazy_init` runs all that depends on params alone besides, such as each
  slice of a kernel, and compiles a program for it. Compiled as a whole, the
  generator would stand in the program once for every param.
  """

  def call(*args: Any) -> Any:
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    needed = set(map(id, traced.jaxpr.outvars))
    kept = []
    for equation in reversed(traced.jaxpr.eqns):
      if needed.intersection(map(id, equation.outvars)):
        kept.append(equation)
        needed.update(map(id, equation.invars))
    jaxpr = traced.jaxpr.replace(eqns=kept[::-1])
    run = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, traced.consts))
    leaves = run(*jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

  return call
