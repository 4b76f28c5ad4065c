"""Dense convolutions: 1x1 as a matrix product, others by platform.

On CPUs a 3x3 convolution is nine windows side by side and one matrix product
(im2col): its weight gradient is then a matrix product too, several times
faster than XLA's convolution there.
"""

from __future__ import annotations

import functools

import jax
from jax import lax
import jax.numpy as jnp

from ms_ranas_jax.kernels import lowering


def pointwise(x: jax.Array, kernels: jax.Array) -> jax.Array:
  """1x1 convolutions, one per leading entry.

  Args:
    x: (n, batch, height, width, channels), or a leading 1 to share it.
    kernels: (n, channels, features).

  Returns:
    (n, batch, height, width, features).
  """
  kernels = kernels.astype(x.dtype)
  edges = kernels.shape[0]
  pixels = x.reshape(x.shape[0], -1, x.shape[-1])
  if x.shape[0] == edges:
    y = lax.dot_general(pixels, kernels, (((2,), (1,)), ((0,), (0,))))
  else:
    y = jnp.stack([pixels[0] @ kernels[n] for n in range(edges)])
  return y.reshape(edges, *x.shape[1:-1], kernels.shape[-1])


@lowering.noinline
def _patches(
  x: jax.Array, *, kernel: tuple[int, int], strides: tuple[int, int]
):
  """(..., H, W, C) -> (..., H', W', kernel pixels * C)."""
  (rows, columns), (down, right) = kernel, strides
  lead = [(0, 0, 0)] * (x.ndim - 3)
  padded = lax.pad(
    x,
    jnp.zeros((), x.dtype),
    [
      *lead,
      (rows // 2, rows // 2, 0),
      (columns // 2, columns // 2, 0),
      (0, 0, 0),
    ],
  )
  height, width = -(-x.shape[-3] // down), -(-x.shape[-2] // right)
  axis = x.ndim - 3
  parts = []
  for i in range(rows):
    band = lax.slice_in_dim(padded, i, i + (height - 1) * down + 1, down, axis)
    for j in range(columns):
      parts.append(
        lax.slice_in_dim(band, j, j + (width - 1) * right + 1, right, axis + 1)
      )
  return lax.concatenate(parts, x.ndim - 1)


def convolution(
  x: jax.Array,
  kernel: jax.Array,
  strides: tuple[int, int] = (1, 1),
) -> jax.Array:
  """A dense convolution, padded by half of its odd kernel as PyTorch does.

  Args:
    x: (batch, height, width, channels).
    kernel: (rows, columns, channels, features).
    strides: of rows and columns.

  Returns:
    (batch, ceil(height / strides[0]), ceil(width / strides[1]), features).
  """
  product = functools.partial(_as_product, strides=strides)
  plain = functools.partial(_as_convolution, strides=strides)
  return lowering.select(
    product, plain, x, kernel.astype(x.dtype), fused=product
  )


def _as_product(x, kernel, strides):
  rows, columns, channels, features = kernel.shape
  patches = _patches(x, kernel=(rows, columns), strides=strides)
  flat = kernel.reshape(rows * columns * channels, features)
  y = patches.reshape(-1, flat.shape[0]) @ flat
  return y.reshape(*patches.shape[:-1], features)


def _as_convolution(x, kernel, strides):
  rows, columns = kernel.shape[:2]
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    [(rows // 2, rows // 2), (columns // 2, columns // 2)],
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
