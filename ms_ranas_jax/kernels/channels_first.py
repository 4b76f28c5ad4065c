r"""Dense convolutions with channels first and the batch last.

Feature maps are (channels, height, width, batch). For networks of many narrow
dense convolutions this is the faster order on CPUs: features side by side are
copied in one piece, a matrix product has few rows and very many columns, sums
per channel run along memory, and shifting by a pixel moves whole batches.

A 3x3 convolution is one matrix product with all taps, nine times as many rows
as there are features, and a sum of its nine parts, shifted: these convolutions
have fewer features than channels, so that is less than to copy the input nine
times (im2col). On the way back, with Q[t, f, q] = dy[f, q - t] over the taps t,

  dx[c, q] = sum_tf w[f, t, c] Q[t, f, q],
  dw[f, t, c] = sum_q x[c, q] Q[t, f, q],

so shifted copies of the output's gradient serve both. With stride 2 the same is
done on the four phases of the input (even or odd rows and columns), of which
one belongs to one tap, two to two and one to four. Where there are fewer pixels
than features, as in the last layers of one image, the input is the smaller one
to copy nine times after all; kernels have their features first, so that such a
product reads them once, in order.

The ways 'conv' and 'fused', see `lowering.using`, are XLA's convolution, whose
backends for GPUs and TPUs choose their own order in memory.
"""

from __future__ import annotations

import functools

import jax
from jax import lax
import jax.numpy as jnp

from ms_ranas_jax.kernels import lowering

_KERNEL = 3
_ORDER = ('CHWN', 'OHWI', 'CHWN')
# Along one axis, pixels of phase a are read by outputs at shifts s = 0, 1, ...
# through tap _TAP_OF[a][s].
_TAP_OF = ((1,), (2, 0))
_PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))


def from_images(images: jax.Array) -> jax.Array:
  """(batch, height, width, channels) -> (channels, height, width, batch)."""
  return images.transpose(3, 1, 2, 0)


def _rows(x: jax.Array) -> jax.Array:
  """(channels, height, width, batch) -> (channels, pixels)."""
  return x.reshape(x.shape[0], -1)


def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A 1x1 convolution.

  Args:
    x: (channels, height, width, batch).
    kernel: (features, channels).

  Returns:
    (features, height, width, batch).
  """
  y = kernel.astype(x.dtype) @ _rows(x)
  return y.reshape(-1, *x.shape[1:])


def convolution(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
  """A dense convolution, padded by half of its odd kernel as PyTorch does.

  Other sizes than three are XLA's convolution always.

  Args:
    x: (channels, height, width, batch).
    kernel: (features, size, size, channels).
    stride: 1 or 2.

  Returns:
    (features, ceil(height / stride), ceil(width / stride), batch).
  """
  ours = _convolution if kernel.shape[1] == _KERNEL else _plain
  return ours(x, kernel.astype(x.dtype), stride=stride)


def _plain(x, kernel, *, stride):
  half = kernel.shape[1] // 2
  return lax.conv_general_dilated(
    x, kernel, (stride, stride), [(half, half)] * 2, dimension_numbers=_ORDER
  )


def _forward(x, kernel, *, stride):
  ours = _products if stride == 1 else _strided_products
  if x[0].size < stride**2 * kernel.shape[0]:
    ours = functools.partial(_im2col, stride=stride)
  return ours(x, kernel), None


def _backward(residuals, dy, *, stride):
  (x, kernel), _ = residuals
  ours = _gradients if stride == 1 else _strided_gradients
  return ours(x, kernel, dy)


_convolution = lowering.kernel(_plain, _forward, _backward, fused=False)


def _im2col(x, kernel, stride):
  """The convolution by copies of the input, any stride."""
  patches = _windows(x, stride=stride)
  y = kernel.reshape(kernel.shape[0], -1) @ _rows(patches)
  return y.reshape(-1, *patches.shape[1:])


@lowering.noinline
def _windows(x, *, stride):
  """The pixels under every tap: (taps * channels, height, width, batch)."""
  height, width = (-(-size // stride) for size in x.shape[1:3])
  padded = _pad(x, (1, 1), (1, 1))
  return lax.concatenate(
    [
      _every(_every(padded, i, height, stride, 1), j, width, stride, 2)
      for i in range(_KERNEL)
      for j in range(_KERNEL)
    ],
    0,
  )


def _products(x, kernel):
  """The convolution, stride 1."""
  taps = [(i, j) for i in range(_KERNEL) for j in range(_KERNEL)]
  # Tap i reads at i - 1, so its products move by 1 - i.
  shifts = tuple((1 - i, 1 - j) for i, j in taps)
  return _sum_shifted((_product(x, kernel, taps),), shifts=(shifts,))


def _strided_products(x, kernel):
  """The convolution, stride 2."""
  products, shifts = [], []
  for row, column in _PHASES:
    taps = _taps_of(row, column)
    phase = _phase(x, row=row, column=column)
    products.append(_product(phase, kernel, taps))
    # Tap 0 reads the odd row before, the others the row itself or after.
    shifts.append(tuple((int(i == 0), int(j == 0)) for i, j in taps))
  return _sum_shifted(tuple(products), shifts=tuple(shifts))


def _product(x, kernel, taps):
  """(channels, ...) -> (taps, features, ...)."""
  part = jnp.concatenate([kernel[:, i, j] for i, j in taps])
  return (part @ _rows(x)).reshape(len(taps), -1, *x.shape[1:])


@lowering.noinline
def _sum_shifted(products, *, shifts):
  """Sums maps (features, height, width, batch) moved down and right."""
  total = None
  for group, moves in zip(products, shifts, strict=True):
    for index, (down, right) in enumerate(moves):
      moved = _pad(
        lax.index_in_dim(group, index, keepdims=False),
        (down, -down),
        (right, -right),
      )
      total = moved if total is None else total + moved
  return total


def _pad(x, rows, columns):
  config = [(0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)]
  return lax.pad(x, jnp.zeros((), x.dtype), config)


def _every(x, start, count, stride, axis):
  end = start + (count - 1) * stride + 1
  return lax.slice_in_dim(x, start, end, stride, axis)


def _patches(x: jax.Array) -> jax.Array:
  """The pixels around each: (taps * channels, height, width, batch)."""
  # Twice three copies are faster than nine.
  return _below(_beside(x))


@lowering.noinline
def _beside(x):
  """Left, middle, right of padded rows: (3 * channels, height + 2, ...)."""
  padded = _pad(x, (1, 1), (1, 1))
  return lax.concatenate(
    [_every(padded, j, x.shape[2], 1, 2) for j in range(_KERNEL)], 0
  )


@lowering.noinline
def _below(x):
  """Upper, middle and lower of rows that are padded."""
  return lax.concatenate(
    [_every(x, i, x.shape[1] - 2, 1, 1) for i in range(_KERNEL)], 0
  )


def _gradients(x, kernel, dy):
  """Of the input and the kernel, stride 1."""
  features, *_, channels = kernel.shape
  shifted = _rows(_patches(dy))  # (i, j, f), pixels
  # Tap i reads at i - 1 forwards, so backwards at 1 - i.
  flipped = kernel[:, ::-1, ::-1].transpose(3, 1, 2, 0)
  dx = flipped.reshape(channels, -1) @ shifted
  d_flipped = _product_with(shifted, x).reshape(
    _KERNEL, _KERNEL, features, channels
  )
  return dx.reshape(x.shape), d_flipped.transpose(2, 0, 1, 3)[:, ::-1, ::-1]


def _product_with(shifted, x):
  """Sums over all pixels, (taps * features, channels).

  The factor with more rows is the left one: on CPUs the other way round takes
  several times as long, for so few rows and so many pixels.
  """
  return shifted @ _rows(x).T


@lowering.noinline
def _shifts(dy, *, down, right):
  """Dy shifted up and left by up to so many pixels, one below the other."""
  height, width = dy.shape[1:3]
  padded = _pad(dy, (0, down), (0, right))
  return lax.concatenate(
    [
      _every(_every(padded, s, height, 1, 1), t, width, 1, 2)
      for s in range(down + 1)
      for t in range(right + 1)
    ],
    0,
  )


@lowering.noinline
def _phase(x, *, row, column):
  """Every other row and column, with zeros where they are beyond the end."""
  height, width = (-(-size // 2) for size in x.shape[1:3])
  x = _pad(x, (0, x.shape[1] % 2), (0, x.shape[2] % 2))
  return _every(_every(x, row, height, 2, 1), column, width, 2, 2)


def _taps_of(row, column):
  """Returns the taps of a phase; the first reads at the same place."""
  return [(i, j) for i in _TAP_OF[row] for j in _TAP_OF[column]]


def _strided_gradients(x, kernel, dy):
  """Of the input and the kernel, stride 2."""
  channels = x.shape[0]
  phases, d_taps = [], {}
  for row, column in _PHASES:
    taps = _taps_of(row, column)
    # (taps, f), pixels of dy
    shifted = _rows(_shifts(dy, down=row, right=column))
    part = jnp.concatenate([kernel[:, i, j] for i, j in taps])
    phases.append((part.T @ shifted).reshape(channels, *dy.shape[1:]))
    d_part = _product_with(shifted, _phase(x, row=row, column=column))
    d_taps |= zip(taps, jnp.split(d_part, len(taps)), strict=True)
  d_kernel = jnp.stack([d_taps[tap] for tap in sorted(d_taps)])  # (taps, f, c)
  dx = _interleave(phases)[:, : x.shape[1], : x.shape[2]]
  return dx, d_kernel.transpose(1, 0, 2).reshape(kernel.shape)


@lowering.noinline
def _interleave(phases):
  """Four maps, row by row, -> one of twice the size."""
  channels, height, width, batch = phases[0].shape
  x = lax.concatenate([lax.expand_dims(p, (0,)) for p in phases], 0)
  x = lax.reshape(x, (2, 2, channels, height, width, batch))
  x = lax.transpose(x, (2, 3, 0, 4, 1, 5))
  return lax.reshape(x, (channels, 2 * height, 2 * width, batch))
