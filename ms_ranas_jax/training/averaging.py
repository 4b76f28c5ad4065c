"""An exponential moving average of all variables (EMA).

    average <- d * average + (1 - d) * value
    d = min(decay, (1 + t) / (10 + t))

after step t, from 1 (Polyak and Juditsky, 1992; with that rise of d as in
TensorFlow's ExponentialMovingAverage, so that a short training forgets where it
began). BN statistics are averaged as params are.
"""

from __future__ import annotations

from typing import Any

from jax import flatten_util
import jax.numpy as jnp

PyTree = Any


def update(average: PyTree, value: PyTree, step: Any, decay: float) -> PyTree:
  """Returns the average after a step.

  Args:
    average: before it.
    value: the variables after it, the same tree.
    step: () int, how many steps are done, this one among them.
    decay: towards 1 the average is longer.
  """
  # One vector: a loop for each array takes longer to compile than to run.
  old, unravel = flatten_util.ravel_pytree(average)
  new, _ = flatten_util.ravel_pytree(value)
  t = jnp.asarray(step, old.dtype)
  d = jnp.minimum(jnp.asarray(decay, old.dtype), (1 + t) / (10 + t))
  return unravel(d * old + (1 - d) * new)
