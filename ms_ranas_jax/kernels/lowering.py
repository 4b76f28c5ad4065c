"""How operations are lowered: by platform, and kept apart on the CPU.

Which of its ways an operation is computed in, its caller says once for all
that is called (`using`), and no function hands it on.

XLA's CPU backend fuses a producer into every consumer that reads it, and a
depthwise convolution written as shifted multiply-adds reads its input once
for every tap, so the producer is computed again for every tap. A call that is
not inlined stops that; `optimization_barrier` does not, since it is removed
before fusion. The attribute is a hint: a backend that ignores it gives the
same numbers, slower.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
import contextlib
import functools
import inspect
from typing import Any

import jax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from ms_ranas_jax.errors import UsageError

PyTree = Any
AUTO = 'auto'
TAPS = 'taps'
FUSED = 'fused'
CONV = 'conv'
CHOICES = (AUTO, TAPS, FUSED, CONV)
_BY_BACKEND = {'cpu': TAPS, 'gpu': FUSED}
# Part of what `jax.jit` caches by: a function that is jitted in here or by a
# caller is traced once for every choice that it is called under.
_choice = jax.make_user_context(AUTO)


def using(choice: str) -> contextlib.AbstractContextManager[None]:
  """Says how operations are computed that are called inside, or traced.

  A network says it for all in it, by its attribute `lowering`; this is for
  what is used alone, such as a cell. The gradient of an operation is computed
  as its call was, wherever it is asked for.

  >>> import jax, jax.numpy as jnp
  >>> from ms_ranas_jax import ConvNorm, use_lowering
  >>> module = ConvNorm(features=8, kernel=3)
  >>> images = jnp.ones((2, 4, 4, 3))
  >>> with use_lowering('conv'):
  ...   y, _ = module.init_with_output(jax.random.key(0), images, train=True)
  >>> y.shape
  (2, 4, 4, 8)

  Args:
    choice: 'taps' (shifted multiply-adds and matrix products, with gradients
      of their own, behind calls and in loops: for CPUs), 'fused' (those
      without calls and loops, for a compiler that makes one pass of a sum of
      many: for GPUs), 'conv' (XLA's convolutions and pools: for TPUs, and the
      plain form that tests compare with), or 'auto': as it is said around
      this, and where nothing is said by the platform that the program is
      lowered for, which need not be the one that traces it.

  Returns:
    A context, of this thread.

  Raises:
    UsageError: there is no such choice.
  """
  if choice not in CHOICES:
    raise UsageError(f"lowering = '{choice}': give one of {CHOICES}.")
  return _choice(_choice.value if choice == AUTO else choice)


def resolve(choice: str = AUTO) -> str:
  """Returns what 'auto' comes to on the default backend.

  A program that knows where it runs says so with this: tracing both ways, as
  'auto' does, takes several times as long as tracing one.

  Args:
    choice: see `using`.

  Returns:
    'taps', 'fused' or 'conv'.

  Raises:
    UsageError: there is no such choice.
  """
  with using(choice):
    if choice == AUTO:
      return _BY_BACKEND.get(jax.default_backend(), CONV)
    return choice


def _under(choice: str, function: Callable[..., Any]) -> Callable[..., Any]:
  def call(*args: Any) -> Any:
    with using(choice):
      return function(*args)

  return call


def select(
  taps: Callable[..., Any],
  conv: Callable[..., Any],
  *args: Any,
  fused: Callable[..., Any] | None = None,
) -> Any:
  """Calls one of three ways to compute the same, as `using` says.

  Args:
    taps: takes args.
    conv: the same.
    *args: arrays, or trees of them.
    fused: the same as the other two; by default `conv`.
  """
  ways = {TAPS: taps, FUSED: conv if fused is None else fused, CONV: conv}
  if _choice.value != AUTO:
    return ways[_choice.value](*args)
  ways = {choice: _under(choice, way) for choice, way in ways.items()}
  return lax.platform_dependent(
    *args,
    cpu=ways[TAPS],
    cuda=ways[FUSED],
    rocm=ways[FUSED],
    default=ways[CONV],
  )


def custom_vjp(
  forward: Callable[..., tuple[PyTree, PyTree]],
  backward: Callable[..., tuple[PyTree, ...]],
) -> Callable[..., PyTree]:
  """A function with a gradient of its own, computed as the call is.

  The way back is traced later than the call, and maybe under another choice, so
  it takes along the one of the call.

  Args:
    forward: (*args, **static) -> (output, what the way back needs); args are
      trees of arrays, keywords are hashable and none.
    backward: (what it needs, gradient of the output, **static) -> the
      gradients of the args.

  Returns:
    The function, (*args, **static) -> output.
  """

  def under(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda choice, static, *args: _under(
      choice, functools.partial(function, **dict(static))
    )(*args)

  function = jax.custom_vjp(
    lambda *args: under(forward)(*args)[0], nondiff_argnums=(0, 1)
  )
  function.defvjp(under(forward), under(backward))

  @functools.wraps(forward)
  def call(*args: PyTree, **static: Hashable) -> PyTree:
    return function(_choice.value, tuple(static.items()), *args)

  return call


def kernel(
  plain: Callable[..., PyTree],
  forward: Callable[..., tuple[PyTree, PyTree]],
  backward: Callable[..., tuple[PyTree, ...]],
  *,
  fused: bool = True,
) -> Callable[..., PyTree]:
  """An operation with a plain form and one with a gradient of its own.

  The rule of the gradient stands around the choice, since autodiff of a choice
  would keep what the way back needs of both.

  Args:
    plain: (*args, **static) -> output, for 'conv'; autodiff takes it back.
    forward: (*args, **static) -> (output, what only `backward` needs), for
      'taps'.
    backward: ((args, what it needs), gradient of the output, **static) -> the
      gradients of the args.
    fused: whether these two are for 'fused' as well, or `plain` is.

  Returns:
    The operation, (*args, **static) -> output.
  """

  def rule_forward(*args: PyTree, **static: Hashable) -> tuple[PyTree, PyTree]:
    ours = functools.partial(forward, **static)

    def theirs(*args: PyTree) -> tuple[PyTree, PyTree]:
      output = plain(*args, **static)
      # Of the shape that the other way has, and compiled away.
      unused = jax.eval_shape(ours, *args)[1]
      return output, jax.tree.map(
        lambda x: lax.full(x.shape, 0, x.dtype), unused
      )

    output, kept = select(ours, theirs, *args, fused=ours if fused else None)
    return output, (args, kept)

  def rule_backward(
    residuals: PyTree, cotangent: PyTree, **static: Hashable
  ) -> tuple[PyTree, ...]:
    ours = functools.partial(backward, **static)

    def theirs(residuals: PyTree, cotangent: PyTree) -> tuple[PyTree, ...]:
      _, pull = jax.vjp(functools.partial(plain, **static), *residuals[0])
      return pull(cotangent)

    return select(
      ours, theirs, residuals, cotangent, fused=ours if fused else None
    )

  rule = custom_vjp(rule_forward, rule_backward)

  def call(*args: PyTree, **static: Hashable) -> PyTree:
    if _choice.value == CONV or (_choice.value == FUSED and not fused):
      return plain(*args, **static)
    return rule(*args, **static)

  return call


def noinline(function: Callable[..., Any]) -> Callable[..., Any]:
  """Decorates a function so that XLA's CPU backend does not inline it.

  Inside, use `lax` and operators only: functions of `jax.numpy` that are
  jitted themselves (`where`, `pad`) would inherit the attribute. It is a call
  in the 'taps' way; in the others it is not.

  Args:
    function: of arrays; what it takes by keyword only is hashable and no array.
  """
  jitted = jax.jit(
    function, static_argnames=inspect.getfullargspec(function).kwonlyargs
  )

  @functools.wraps(function)
  def wrapper(*args: Any, **static: Hashable) -> Any:
    def call(*args: Any) -> Any:
      with set_xla_metadata(inlineable='false'):
        return jitted(*args, **static)

    return select(call, functools.partial(function, **static), *args)

  return wrapper


def largest_divisor(number: int, limit: int) -> int:
  """Returns how many of `number` entries an iteration takes, at most `limit`.

  Args:
    number: entries, at least 1.
    limit: taken as 1 where it is less.
  """
  return next(d for d in range(max(limit, 1), 0, -1) if number % d == 0)
