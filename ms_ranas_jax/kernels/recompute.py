"""Computing again on the way back what would take memory to keep.

XLA merges equal computations, and a copy of the forward pass in the backward
pass is equal to the forward pass; a barrier between them is removed too early
to help on CPUs. So what is computed again depends on the gradient that comes
back: on zero times one of its entries, which no compiler may take for zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

PyTree = Any


def recompute(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
  """Makes a function keep its arguments alone for its gradient.

  Args:
    function: pure, of trees of arrays; the first argument is an array that all
      of what is to be computed again depends on.

  Returns:
    The same function, with another memory and time of its gradient. A gradient
    that is not finite makes all of it so.
  """

  @jax.custom_vjp
  def kept(*args):
    return function(*args)

  def forward(*args):
    return function(*args), args

  def backward(args, cotangent):
    first, *rest = args
    entry = jax.tree.leaves(cotangent)[0].ravel()[0]
    late = first + (0 * entry).astype(first.dtype)
    _, pull = jax.vjp(function, late, *rest)
    return pull(cotangent)

  kept.defvjp(forward, backward)
  return kept
