"""How operations are lowered: by platform, and fenced off on the CPU.

XLA's CPU backend fuses a producer into every consumer that reads it, and a
depthwise convolution written as shifted multiply-adds reads its input once
for every tap, so the producer is computed again for every tap. A call that is
not inlined stops that; `optimization_barrier` does not, since it is removed
before fusion. The attribute is a hint: a backend that ignores it gives the
same numbers, slower.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

from ms_ranas_jax.errors import UsageError

AUTO = 'auto'
TAPS = 'taps'
CONV = 'conv'
CHOICES = (AUTO, TAPS, CONV)


def resolve(choice: str = AUTO) -> str:
  """Returns the lowering of convolutions and pools that a choice stands for.

  Args:
    choice: 'taps' (shifted multiply-adds and matrix products, with gradients
      of their own: for CPUs), 'conv' (XLA's convolutions and pools: for GPUs
      and TPUs, and the plain form that tests compare with), or 'auto', by the
      default backend.

  Returns:
    'taps' or 'conv'.

  Raises:
    UsageError: there is no such choice.
  """
  if choice not in CHOICES:
    raise UsageError(f"lowering = '{choice}': give one of {CHOICES}.")
  if choice == AUTO:
    return TAPS if jax.default_backend() == 'cpu' else CONV
  return choice


def fence(static_argnums: tuple[int, ...] = ()) -> Callable[..., Any]:
  """Decorates a function so that XLA's CPU backend does not inline it.

  Inside, use `lax` and operators only: functions of `jax.numpy` that are
  jitted themselves (`where`, `pad`) would inherit the attribute.

  Args:
    static_argnums: arguments that are not arrays, hashable.

  Returns:
    A decorator.
  """

  def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
    jitted = jax.jit(function, static_argnums=static_argnums)

    @functools.wraps(function)
    def fenced(*args: Any) -> Any:
      if jax.default_backend() != 'cpu':
        return function(*args)
      with set_xla_metadata(inlineable='false'):
        return jitted(*args)

    return fenced

  return decorate


def largest_divisor(number: int, limit: int) -> int:
  """Returns how many of `number` entries an iteration takes, at most `limit`.

  Args:
    number: entries, at least 1.
    limit: taken as 1 where it is less.
  """
  return next(d for d in range(max(limit, 1), 0, -1) if number % d == 0)
