"""Computing again on the way back what would take memory to keep.

XLA merges equal computations, and a copy of the forward pass in the backward
pass is equal to the forward pass; a barrier between them is removed too early
to help on CPUs. So what is computed again depends on the gradient that comes
back: on zero times one of its entries, which no compiler may take for zero.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
from typing import Any

import jax

from ms_ranas_jax.kernels import lowering

PyTree = Any

_asked = jax.make_user_context(False)


def using(asked: bool) -> contextlib.AbstractContextManager[None]:
  """Says whether `where_asked` computes again; a network says it for all in it.

  Args:
    asked: whether; outside of all contexts it does not.

  Returns:
    A context, of this thread.
  """
  return _asked(asked)


def where_asked(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
  """Returns `recompute` of a function, or the function, as `using` says."""
  return recompute(function) if _asked.value else function


def recompute(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
  """Makes a function keep its arguments alone for its gradient.

  Args:
    function: pure, of trees of arrays; the first argument is an array that all
      of what is to be computed again depends on.

  Returns:
    The same function, with another memory and time of its gradient. A gradient
    that is not finite makes all of it so.
  """

  def forward(*args):
    return function(*args), args

  def backward(args, cotangent):
    first, *rest = args
    entry = jax.tree.leaves(cotangent)[0].ravel()[0]
    late = first + (0 * entry).astype(first.dtype)
    _, pull = jax.vjp(function, late, *rest)
    return pull(cotangent)

  return lowering.custom_vjp(forward, backward)
