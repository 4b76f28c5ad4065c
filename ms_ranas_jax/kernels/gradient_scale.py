"""The identity, whose gradient is multiplied by a number."""

from __future__ import annotations

import functools

import jax


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scale_gradient(x: jax.Array, factor: float) -> jax.Array:
  """Returns x; a gradient that comes back is multiplied.

  Args:
    x: of any shape and dtype.
    factor: what its gradient is multiplied by.
  """
  del factor
  return x


def _forward(x: jax.Array, factor: float) -> tuple[jax.Array, None]:
  del factor
  return x, None


def _backward(factor: float, _: None, g: jax.Array) -> tuple[jax.Array]:
  return (factor * g,)


scale_gradient.defvjp(_forward, _backward)


def in_equilibrium(
  x: jax.Array, exit_: int, num_exits: int
) -> tuple[jax.Array, jax.Array]:
  """Returns a feature for an exit and for what comes after it.

  Each exit that is still to come counts the same for what is below: of
  r = num_exits - exit_ gradients the exit's own comes back times 1 / r, and
  those of all later ones together times (r - 1) / r (Li et al., "Improved
  Techniques for Training Adaptive Deep Networks", 2019). Params of the exit
  itself have their whole gradient.

  Args:
    x: the feature that the exit reads.
    exit_: index of the exit.
    num_exits: how many there are.
  """
  left = num_exits - exit_
  x = scale_gradient(x, 1 / left)
  return x, scale_gradient(x, float(left - 1))
