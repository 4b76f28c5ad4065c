"""How operations are lowered: by platform, and kept apart on the CPU.

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
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from ms_ranas_jax.errors import UsageError

AUTO = 'auto'
TAPS = 'taps'
FUSED = 'fused'
CONV = 'conv'
CHOICES = (AUTO, TAPS, FUSED, CONV)
_BY_BACKEND = {'cpu': TAPS, 'gpu': FUSED}


def check(choice: str) -> None:
  """Refuses a lowering that there is not.

  Raises:
    UsageError: it is none of `CHOICES`.
  """
  if choice not in CHOICES:
    raise UsageError(f"lowering = '{choice}': give one of {CHOICES}.")


def resolve(choice: str = AUTO) -> str:
  """Returns what 'auto' comes to on the default backend.

  A program that knows where it runs says so with this: tracing both ways, as
  'auto' does, takes several times as long as tracing one.

  Args:
    choice: see `select`.

  Returns:
    'taps', 'fused' or 'conv'.

  Raises:
    UsageError: there is no such choice.
  """
  check(choice)
  if choice == AUTO:
    return _BY_BACKEND.get(jax.default_backend(), CONV)
  return choice


def select(
  choice: str,
  taps: Callable[..., Any],
  conv: Callable[..., Any],
  *args: Any,
  fused: Callable[..., Any] | None = None,
) -> Any:
  """Calls one of three ways to compute the same.

  Args:
    choice: 'taps' (shifted multiply-adds and matrix products, with gradients
      of their own, behind calls and in loops: for CPUs), 'fused' (those
      without calls and loops, for a compiler that makes one pass of a sum of
      many: for GPUs), 'conv' (XLA's convolutions and pools: for TPUs, and the
      plain form that tests compare with), or 'auto': by the platform that the
      program is lowered for, which need not be the one that traces it.
    taps: takes args.
    conv: the same.
    *args: arrays, or trees of them.
    fused: the same; by default `conv`.

  Raises:
    UsageError: there is no such choice.
  """
  check(choice)
  fused = conv if fused is None else fused
  if choice == AUTO:
    return lax.platform_dependent(
      *args, cpu=taps, cuda=fused, rocm=fused, default=conv
    )
  return {TAPS: taps, FUSED: fused, CONV: conv}[choice](*args)


def noinline(static_argnums: tuple[int, ...] = ()) -> Callable[..., Any]:
  """Decorates a function so that XLA's CPU backend does not inline it.

  Inside, use `lax` and operators only: functions of `jax.numpy` that are
  jitted themselves (`where`, `pad`) would inherit the attribute.

  The decorated function takes `choice` besides, see `select`: by default it
  stands in the 'taps' way and is a call; in the others it is not.

  Args:
    static_argnums: arguments that are not arrays, hashable.

  Returns:
    A decorator.
  """

  def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
    jitted = jax.jit(function, static_argnums=static_argnums)

    @functools.wraps(function)
    def wrapper(*args: Any, choice: str = TAPS) -> Any:
      def call(function: Callable[..., Any], *arrays: Any) -> Any:
        rest = iter(arrays)
        return function(
          *(
            arg if index in static_argnums else next(rest)
            for index, arg in enumerate(args)
          )
        )

      def not_inlined(*arrays: Any) -> Any:
        with set_xla_metadata(inlineable='false'):
          return call(jitted, *arrays)

      return select(
        choice,
        not_inlined,
        functools.partial(call, function),
        *(a for index, a in enumerate(args) if index not in static_argnums),
      )

    return wrapper

  return decorate


def largest_divisor(number: int, limit: int) -> int:
  """Returns how many of `number` entries an iteration takes, at most `limit`.

  Args:
    number: entries, at least 1.
    limit: taken as 1 where it is less.
  """
  return next(d for d in range(max(limit, 1), 0, -1) if number % d == 0)
