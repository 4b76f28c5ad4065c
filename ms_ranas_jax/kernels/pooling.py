"""3x3 max and average pools with padding 1, with gradients of their own.

Forward, nine shifted windows. The max pool keeps which tap won, one byte a
pixel (the first maximum, as PyTorch does), and its gradient goes to that tap;
the average pool divides by the pixels that are not padding, in both
directions. Stride 2 goes back through four phases (`windows`). XLA's own
reduce-window pools are the plain form; their gradients are slow on CPUs.

The 2x2 max pool has windows that do not overlap, so a reshape does for it.
"""

from __future__ import annotations

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.kernels import windows

_KERNEL = 3
_TAPS = tuple((i, j) for i in range(_KERNEL) for j in range(_KERNEL))


def _out_size(x: jax.Array, stride: int) -> tuple[int, int]:
  height, width = x.shape[-3:-1]
  return -(-height // stride), -(-width // stride)


def _inverse_counts(size: tuple[int, int], stride: int) -> np.ndarray:
  """1 / (pixels of the window that lie in the image), (H', W', 1)."""

  def counts(length: int) -> np.ndarray:
    centre = np.arange(0, length, stride)
    return np.minimum(centre + 1, length - 1) - np.maximum(centre - 1, 0) + 1

  return (1.0 / np.outer(counts(size[0]), counts(size[1])))[..., None]


def max_pool(x: jax.Array, stride: int) -> jax.Array:
  """3x3 max pool, padding 1.

  Args:
    x: (..., height, width, channels).
    stride: 1 or 2.

  Returns:
    (..., ceil(height / stride), ceil(width / stride), channels).
  """
  return _max_pool(x, stride=stride)


def average_pool(x: jax.Array, stride: int) -> jax.Array:
  """3x3 average pool, padding 1, padding not counted.

  Args:
    x: (..., height, width, channels).
    stride: 1 or 2.

  Returns:
    (..., ceil(height / stride), ceil(width / stride), channels).
  """
  return _average_pool(x, stride=stride)


def max_pool_2x2(x: jax.Array) -> jax.Array:
  """2x2 max pool with stride 2; windows may stick out at the end.

  The gradient goes to the maximum, in equal parts where there are several.

  Args:
    x: (..., height, width, channels).

  Returns:
    (..., ceil(height / 2), ceil(width / 2), channels).
  """
  *lead, height, width, channels = x.shape
  size = _out_size(x, 2)
  padding = [(0, 0, 0)] * len(lead)
  padding += [(0, 2 * size[0] - height, 0), (0, 2 * size[1] - width, 0)]
  x = lax.pad(x, np.array(-np.inf, x.dtype), [*padding, (0, 0, 0)])
  x = x.reshape(*lead, size[0], 2, size[1], 2, channels)
  return jnp.max(x, axis=(-4, -2))


def _plain_max(x, *, stride):
  return _reduce_window(x, -jnp.inf, lax.max, stride)


def _plain_average(x, *, stride):
  total = _reduce_window(x, 0.0, lax.add, stride)
  counts = _inverse_counts(x.shape[-3:-1], stride).astype(x.dtype)
  return total * counts.reshape((1,) * (x.ndim - 3) + counts.shape)


def _reduce_window(x, initial, function, stride):
  lead = (1,) * (x.ndim - 3)
  return lax.reduce_window(
    x,
    np.array(initial, x.dtype),
    function,
    (*lead, _KERNEL, _KERNEL, 1),
    (*lead, stride, stride, 1),
    [(0, 0)] * len(lead) + [(1, 1), (1, 1), (0, 0)],
  )


@lowering.noinline
def _max_and_winner(x, *, stride):
  padded = windows.pad(x, 1, 1, -np.inf)
  size = _out_size(x, stride)
  best = windows.window(padded, 0, 0, size, stride)
  winner = lax.full(best.shape, 0, jnp.int8)
  for tap, (i, j) in enumerate(_TAPS[1:], start=1):
    value = windows.window(padded, i, j, size, stride)
    larger = value > best
    best = lax.select(larger, value, best)
    winner = lax.select(larger, lax.full_like(winner, tap), winner)
  return best, winner


def _max_backward(residuals, dy, *, stride):
  (x,), winner = residuals
  size = x.shape[-3:-1]
  return (_max_input_gradient(winner, dy, stride=stride, size=size),)


@lowering.noinline
def _max_input_gradient(winner, dy, *, stride, size):
  dy = windows.pad(dy, 1, 1)
  winner = windows.pad(winner, 1, 1, -1)

  def term(i, j, row, column, count):
    won = windows.window(winner, 1 + row, 1 + column, count) == np.int8(
      i * _KERNEL + j
    )
    return windows.select(won, windows.window(dy, 1 + row, 1 + column, count))

  return _gather_taps(term, dy, stride, size)


def _gather_taps(term, padded, stride, size):
  """Sums the taps' contributions to each input pixel."""
  if stride == 1:
    parts = [term(i, j, 1 - i, 1 - j, size) for i, j in _TAPS]
    return functools.reduce(lambda a, b: a + b, parts)
  count = padded.shape[-3] - 2, padded.shape[-2] - 2
  phases = windows.phases_of_strided(
    lambda i, j, row, column: term(i, j, row, column, count), _KERNEL
  )
  return windows.interleave(phases, size)


_max_pool = lowering.kernel(_plain_max, _max_and_winner, _max_backward)


@lowering.noinline
def _average(x, *, stride):
  padded = windows.pad(x, 1, 1)
  size = _out_size(x, stride)
  parts = [windows.window(padded, i, j, size, stride) for i, j in _TAPS]
  total = functools.reduce(lambda a, b: a + b, parts)
  counts = _inverse_counts(x.shape[-3:-1], stride).astype(x.dtype)
  return total * lax.broadcast_in_dim(
    counts, total.shape, tuple(range(total.ndim - 3, total.ndim))
  )


def _average_forward(x, *, stride):
  return _average(x, stride=stride), None


def _average_backward(residuals, dy, *, stride):
  size = residuals[0][0].shape[-3:-1]
  return (_average_input_gradient(dy, stride=stride, size=size),)


@lowering.noinline
def _average_input_gradient(dy, *, stride, size):
  counts = _inverse_counts(size, stride).astype(dy.dtype)
  dy = dy * lax.broadcast_in_dim(
    counts, dy.shape, tuple(range(dy.ndim - 3, dy.ndim))
  )
  dy = windows.pad(dy, 1, 1)

  def term(i, j, row, column, count):
    del i, j
    return windows.window(dy, 1 + row, 1 + column, count)

  return _gather_taps(term, dy, stride, size)


_average_pool = lowering.kernel(
  _plain_average, _average_forward, _average_backward
)
