"""The gradient of a depthwise convolution in its kernel.

  dw[n, i, j, c] = sum_bhv dy[n, b, h, v, c] r[b, s h + i d - p, ..., c],

see `depthwise`. On CPUs it is a loop that adds to all taps at once, where a sum
per tap would read both operands once per tap: over pixels, or, of rows of
pixels with few channels, over images.
"""

from __future__ import annotations

import functools

import jax
from jax import lax
import jax.numpy as jnp

from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.kernels import windows

# Pixels that one iteration of the weight gradient's loop spells out.
_PIXELS_PER_ITERATION = 8
# The same on rows: parts of an image.
_PARTS_PER_ITERATION = 2


def gradient(
  padded: jax.Array,
  dy: jax.Array,
  *,
  kernel: int,
  dilation: int,
  stride: int,
  offset: int,
  step: int = 1,
) -> jax.Array:
  """The gradient in the kernel, by pixels or by rows.

  Args:
    padded: (m, batch, padded height, padded width, channels), what the
      convolution reads; m is 1 or n. Of rows (..., padded width * channels, 1).
    dy: (n, batch, height, width, channels), of the output; of rows the same.
    kernel: its size.
    dilation: of its taps.
    stride: 1 or 2; of rows 1.
    offset: pixels of padding that this kernel does not read.
    step: values that lie between two pixels of a row; 1 is no rows.

  Returns:
    (n, k, k, channels); of rows (n, k, k, width * channels), of which the sum
    over the width is the gradient.
  """
  where = {'kernel': kernel, 'dilation': dilation, 'offset': offset}
  if step > 1:
    return _kernel_gradient_of_rows(padded, dy, step=step, **where)
  return lowering.select(
    functools.partial(_kernel_gradient, stride=stride, **where),
    functools.partial(_kernel_gradient_by_sums, stride=stride, **where),
    padded,
    dy,
  )


@lowering.noinline
def _kernel_gradient(
  padded: jax.Array,
  dy: jax.Array,
  *,
  kernel: int,
  dilation: int,
  stride: int,
  offset: int,
) -> jax.Array:
  """The gradient in the kernel, (n, k, k, channels)."""
  edges, batch, height, width, channels = dy.shape
  span = (kernel - 1) * dilation + 1
  columns = lowering.largest_divisor(width, _PIXELS_PER_ITERATION)
  rows = 1
  if columns == width:
    rows = lowering.largest_divisor(height, _PIXELS_PER_ITERATION // width)
  iterations_per_row = width // columns

  def body(iteration: jax.Array, total: jax.Array) -> jax.Array:
    zero = lax.full_like(iteration, 0)  # indices have to be of one type
    per_row = lax.full_like(iteration, iterations_per_row)
    first_row = lax.div(iteration, per_row) * rows
    first_column = lax.rem(iteration, per_row) * columns
    for pixel in range(rows * columns):
      row = first_row + pixel // columns
      column = first_column + pixel % columns
      # Each pixel is sliced on its own, so that the slices are read in place;
      # whole rows would be copied first.
      patch = lax.dynamic_slice(
        padded,
        (zero, zero, offset + row * stride, offset + column * stride, zero),
        (padded.shape[0], batch, span, span, channels),
        allow_negative_indices=False,
      )
      patch = lax.slice(
        patch, (0,) * 5, patch.shape, (1, 1, dilation, dilation, 1)
      )
      gradient = lax.dynamic_slice(
        dy,
        (zero, zero, row, column, zero),
        (edges, batch, 1, 1, channels),
        allow_negative_indices=False,
      )
      total = total + patch * gradient
    return total

  wide = jnp.promote_types(dy.dtype, jnp.float32)
  total = jnp.zeros((edges, batch, kernel, kernel, channels), wide)
  iterations = height // rows * iterations_per_row
  if iterations == 1:
    total = body(jnp.int32(0), total)
  else:
    total = lax.fori_loop(0, iterations, body, total)
  return jnp.sum(total, axis=1).astype(dy.dtype)


@lowering.noinline
def _kernel_gradient_of_rows(
  padded: jax.Array,
  dy: jax.Array,
  *,
  kernel: int,
  dilation: int,
  offset: int,
  step: int,
) -> jax.Array:
  """The same of rows, stride 1: (n, k, k, width * channels) to be summed."""
  edges, batch, height, values, _ = dy.shape
  parts = lowering.largest_divisor(height, _PARTS_PER_ITERATION)
  rows = height // parts
  taps = [(i, j) for i in range(kernel) for j in range(kernel)]

  def body(image: jax.Array, totals: tuple[jax.Array, ...]):
    zero = lax.full_like(image, 0)  # indices have to be of one type

    def read(array: jax.Array, row: int, column: int) -> jax.Array:
      return lax.dynamic_slice(
        array,
        (zero, image, zero + row, zero + column, zero),
        (array.shape[0], 1, rows, values, 1),
        allow_negative_indices=False,
      )

    for first in range(0, height, rows):
      gradient = read(dy, first, 0)
      totals = tuple(
        total
        + gradient
        * read(
          padded,
          first + offset + i * dilation,
          (offset + j * dilation) * step,
        )
        for total, (i, j) in zip(totals, taps, strict=True)
      )
    return totals

  wide = jnp.promote_types(dy.dtype, jnp.float32)
  totals = (lax.full((edges, 1, rows, values, 1), 0, wide),) * len(taps)
  totals = lax.fori_loop(0, batch, body, totals)
  total = lax.concatenate(totals, 1)
  total = lax.reduce(total, jnp.zeros((), wide), lax.add, (2, 4))
  return lax.reshape(total, (edges, kernel, kernel, values))


def _kernel_gradient_by_sums(
  padded: jax.Array,
  dy: jax.Array,
  *,
  kernel: int,
  dilation: int,
  stride: int,
  offset: int,
) -> jax.Array:
  """The same, a sum per tap."""
  wide = jnp.promote_types(dy.dtype, jnp.float32)
  padded, gradient = padded.astype(wide), dy.astype(wide)
  sums = [
    jnp.sum(
      gradient
      * windows.window(
        padded,
        offset + i * dilation,
        offset + j * dilation,
        windows.size_of(dy),
        stride,
      ),
      axis=(1, 2, 3),
    )
    for i in range(kernel)
    for j in range(kernel)
  ]
  total = jnp.stack(sums, axis=1).astype(dy.dtype)
  return total.reshape(dy.shape[0], kernel, kernel, dy.shape[-1])
