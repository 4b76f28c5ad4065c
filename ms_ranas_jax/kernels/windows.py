"""Windows of padded feature maps: slices, phases, the parts of convolutions.

Feature maps are (..., height, width, channels). Everything here is made of
`lax` calls that fuse, so that it can stand in a call that is not inlined.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

Phases = tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
  """Returns max(x, 0), whose gradient at zero is zero, as in PyTorch.

  As `jax.nn.relu`, which is jitted; autodiff of `lax.max` would share ties,
  and keep a map of factors that a CPU has to write and read.
  """
  return lax.max(x, jnp.zeros((), x.dtype))


@relu.defjvp
def _relu_jvp(primals, tangents):
  (x,), (tangent,) = primals, tangents
  return relu(x), select(x > jnp.zeros((), x.dtype), tangent)


def select(condition: jax.Array, x: jax.Array) -> jax.Array:
  """Returns x where the condition holds and zero elsewhere."""
  return lax.select(condition, x, lax.full(x.shape, 0, x.dtype))


def pad(x: jax.Array, before: int, after: int, value: float = 0.0) -> jax.Array:
  """Pads height and width; negative numbers cut off."""
  config = [(0, 0, 0)] * (x.ndim - 3)
  config += [(before, after, 0), (before, after, 0), (0, 0, 0)]
  return lax.pad(x, jnp.asarray(value, x.dtype), config)


def window(
  x: jax.Array, row: int, column: int, size: tuple[int, int], stride: int = 1
) -> jax.Array:
  """Returns `size` pixels from (row, column) on, every `stride`-th of them."""
  rank = x.ndim
  for axis, start, count in (
    (rank - 3, row, size[0]),
    (rank - 2, column, size[1]),
  ):
    x = lax.slice_in_dim(
      x, start, start + (count - 1) * stride + 1, stride, axis
    )
  return x


def size_of(x: jax.Array) -> tuple[int, int]:
  """Returns (height, width)."""
  height, width = x.shape[-3:-1]
  return height, width


def subsample(x: jax.Array, offset: int = 0) -> jax.Array:
  """Returns every other pixel from `offset` on, ceil(size / 2) of them.

  For an odd size and offset 1 the last row and column are zero.
  """
  height, width = size_of(x)
  size = (height + 1) // 2, (width + 1) // 2
  return window(pad(x, 0, 2), offset, offset, size, 2)


def phases_of_strided(
  term: Callable[[int, int, int, int], jax.Array], kernel: int
) -> Phases:
  """The input gradient of a stride-2 window operation, phase by phase.

  Output pixel o reads input pixel h = 2 o + i - p with tap i and padding
  p = (kernel - 1) / 2, so the input pixels of phase a (h = 2 q + a) gather from
  the outputs o = q + (a + p - i) / 2 where that is whole: a quarter of the
  taps each, with nothing computed that is thrown away.

  Args:
    term: (tap row, tap column, row shift, column shift) -> the contribution
      of the tap, read from the output gradient shifted that much.
    kernel: odd size of the window.

  Returns:
    The gradients of the four phases, `[row phase][column phase]`; None where a
    kernel of one pixel has no tap.
  """
  padding = (kernel - 1) // 2

  def phase(a: int, b: int) -> jax.Array | None:
    total = None
    for i in range(kernel):
      if (a + padding - i) % 2:
        continue
      for j in range(kernel):
        if (b + padding - j) % 2:
          continue
        one = term(i, j, (a + padding - i) // 2, (b + padding - j) // 2)
        total = one if total is None else total + one
    return total

  # None only of a kernel of one pixel, whose other phases have no tap.
  # pyrefly: ignore[bad-return]
  return (phase(0, 0), phase(0, 1)), (phase(1, 0), phase(1, 1))


def interleave(phases: Phases, size: tuple[int, int]) -> jax.Array:
  """Puts four phases together to a feature map of `size` pixels."""
  rank = phases[0][0].ndim
  rows = [
    lax.concatenate([lax.expand_dims(p, (rank - 1,)) for p in row], rank - 1)
    for row in phases
  ]  # (..., H, W, 2, C)
  x = lax.concatenate([lax.expand_dims(r, (rank - 2,)) for r in rows], rank - 2)
  *lead, height, _, width, _, channels = x.shape
  x = lax.reshape(x, (*lead, 2 * height, 2 * width, channels))
  return window(x, 0, 0, size)


def shift_padding(kernel: int) -> int:
  """Returns by how much `phases_of_strided` shifts at most."""
  return ((kernel - 1) // 2 + 1) // 2
