r"""Depthwise convolutions of a ReLU, several at a time, on shared inputs.

All convolutions that read one state are computed together: the ReLU and the
padding are done once, and so is the way back through them. For output n,
with kernel w of size k, dilation d, stride s and padding p = d (k - 1) / 2,

  y[n, b, h, v, c] = sum_ij w[n, i, j, c] r[b, s h + i d - p, s v + j d - p, c]

with r = max(x, 0), zero outside; x may be an affine map of what comes in, such
as a batch normalisation, which is then never stored. The gradients:

  dx = [x > 0] * (the same taps, kernel flipped, on the padded dy), stride 1;
       four phases with a quarter of the taps each, stride 2;
  dw[n, i, j, c] = sum_bhv dy[n, b, h, v, c] r[b, s h + i d - p, ..., c],

the latter as `depthwise_weights` computes it. A stride-2 convolution with
dilation 2 reads even pixels only: it is one with dilation 1 and stride 1 of
every other pixel.

With a few channels a pixel is shorter than what a CPU adds at once. Stride-1
convolutions are then done on rows, (n, batch, height, width * channels, 1),
where a step to the side is one of `channels` values and the kernel is repeated
for every pixel of a row.

The 'conv' lowering is `lax.conv_general_dilated` with one group per channel. On
CPUs XLA takes a hundred times too long for it, and on a GPU, where it is
cuDNN's, several times as long as for the multiply-adds.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import operator

import jax
from jax import lax
import jax.numpy as jnp

from ms_ranas_jax.kernels import depthwise_weights
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.kernels import reductions
from ms_ranas_jax.kernels import windows

# Up to how many channels rows are faster than pixels.
_NARROW = 8


Affine = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class KernelShape:
  """The window of a depthwise convolution.

  Attributes:
    kernel: odd size.
    dilation: 1, or 2.
  """

  kernel: int
  dilation: int = 1

  @property
  def padding(self) -> int:
    """Pixels on every side, as in PyTorch."""
    return self.dilation * (self.kernel - 1) // 2


def relu_depthwise(
  x: jax.Array,
  kernels: Sequence[jax.Array],
  shapes: Sequence[KernelShape],
  stride: int,
  affine: Affine | None = None,
) -> tuple[jax.Array, ...]:
  """Depthwise convolutions of relu(x), or of relu(factor x + shift).

  Args:
    x: (m, batch, height, width, channels); m is 1 where all outputs read the
      same input, else output n reads x[n].
    kernels: one (n, k, k, channels) per window; n = m where m > 1.
    shapes: the windows.
    stride: 1 or 2.
    affine: (factor, shift), (m, channels) each, such as those of a BN; None
      leaves x as it is. The mapped x is made where it is read and not stored.

  Returns:
    One (n, batch, ceil(height / stride), ceil(width / stride), channels) per
    window.
  """
  kernels = tuple(kernel.astype(x.dtype) for kernel in kernels)
  return _bank(x, affine, kernels, shapes=tuple(shapes), stride=stride)


def _convolutions(x, affine, kernels, shapes, stride):
  """The plain form, which autodiff takes back."""
  rectified = windows.relu(_before_relu(x, affine))
  return tuple(
    _grouped_conv(rectified, kernel, shape, stride)
    for kernel, shape in zip(kernels, shapes, strict=True)
  )


def _before_relu(x: jax.Array, affine: Affine | None) -> jax.Array:
  if affine is None:
    return x
  factor, shift = (
    lax.reshape(a.astype(x.dtype), (a.shape[0], 1, 1, *_per_row(x, a.shape[1])))
    for a in affine
  )
  return x * factor + shift


def _per_row(x: jax.Array, values: int) -> tuple[int, int]:
  """Returns how values per channel stand beside pixels, or rows."""
  return values // x.shape[-1], x.shape[-1]


def _as_rows(x: jax.Array) -> jax.Array:
  """(n, batch, height, width, channels) -> (..., width * channels, 1)."""
  return x.reshape(*x.shape[:3], -1, 1)


def _pad(x: jax.Array, padding: int, step: int) -> jax.Array:
  """Pads height by pixels, and width by as many steps of that many values."""
  if step == 1:
    return windows.pad(x, padding, padding)
  config = [(0, 0, 0)] * x.ndim
  config[-3] = (padding, padding, 0)
  config[-2] = (padding * step, padding * step, 0)
  return lax.pad(x, jnp.zeros((), x.dtype), config)


def _grouped_conv(
  x: jax.Array, kernel: jax.Array, shape: KernelShape, stride: int
) -> jax.Array:
  """The plain form: one grouped convolution, edges moved into channels."""
  edges = kernel.shape[0]
  _, batch, height, width, channels = x.shape
  x = jnp.broadcast_to(x, (edges, batch, height, width, channels))
  x = x.transpose(1, 2, 3, 0, 4).reshape(batch, height, width, edges * channels)
  kernel = kernel.transpose(1, 2, 0, 3)
  kernel = kernel.reshape(*kernel.shape[:2], 1, edges * channels)
  y = lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    [(shape.padding, shape.padding)] * 2,
    rhs_dilation=(shape.dilation, shape.dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=edges * channels,
  )
  y = y.reshape(*y.shape[:3], edges, channels)
  return y.transpose(3, 0, 1, 2, 4)


def _per_edge(kernel: jax.Array, i: int, j: int, x: jax.Array) -> jax.Array:
  edges, _, _, values = kernel.shape
  return lax.reshape(
    lax.slice(kernel, (0, i, j, 0), (edges, i + 1, j + 1, values)),
    (edges, 1, 1, *_per_row(x, values)),
  )


def _taps(
  padded: jax.Array,
  kernel: jax.Array,
  *,
  dilation: int,
  stride: int,
  offset: int,
  size: tuple[int, int],
  step: int = 1,
) -> jax.Array:
  # Each is added as it is made.
  return functools.reduce(
    operator.add,
    (
      windows.window(
        padded,
        offset + i * dilation,
        (offset + j * dilation) * step,
        size,
        stride,
      )
      * _per_edge(kernel, i, j, padded)
      for i in range(kernel.shape[1])
      for j in range(kernel.shape[2])
    ),
  )


_noinline_taps = lowering.noinline(_taps)


@lowering.noinline
def _input_gradient(
  dy: jax.Array,
  kernel: jax.Array,
  masked: tuple[jax.Array, Affine | None] | None,
  *,
  dilation: int,
  edges: int,
  step: int,
) -> jax.Array:
  """The gradient of a stride-1 convolution in its unpadded input.

  With `masked`, the x and the affine map of it, through the ReLU too.
  """
  size = windows.size_of(dy)
  padding = dilation * (kernel.shape[1] - 1) // 2
  dx = _taps(
    _pad(dy, padding, step),
    lax.rev(kernel, (1, 2)),
    dilation=dilation,
    stride=1,
    offset=0,
    size=size,
    step=step,
  )
  dx = _sum_edges(dx, edges)
  return dx if masked is None else windows.select(_before_relu(*masked) > 0, dx)


@lowering.noinline
def _strided_input_gradient(
  dy: jax.Array, kernel: jax.Array, *, edges: int
) -> windows.Phases:
  """The gradient of a stride-2 convolution, dilation 1, in four phases."""
  size = windows.size_of(dy)
  shift = windows.shift_padding(kernel.shape[1])
  padded = windows.pad(dy, shift, shift)

  def term(i: int, j: int, row: int, column: int) -> jax.Array:
    shifted = windows.window(padded, shift + row, shift + column, size)
    return shifted * _per_edge(kernel, i, j, dy)

  phases = windows.phases_of_strided(term, kernel.shape[1])
  return jax.tree.map(lambda p: _sum_edges(p, edges), phases)


def _sum_edges(x: jax.Array, edges: int) -> jax.Array:
  """Sums the leading axis where all its entries came from one input."""
  if edges == x.shape[0]:
    return x
  return functools.reduce(
    lambda a, b: a + b,
    [lax.slice_in_dim(x, n, n + 1, axis=0) for n in range(x.shape[0])],
  )


def _reads_even_pixels(shape: KernelShape, stride: int) -> bool:
  return stride == 2 and shape.dilation == 2


@lowering.noinline
def _padded_inputs(
  x: jax.Array,
  affine: Affine | None,
  *,
  shapes: tuple[KernelShape, ...],
  stride: int,
  step: int,
) -> tuple[jax.Array, ...]:
  """Returns the ReLU padded: of all pixels and, if asked for, of even ones.

  The padding is the largest that any window of that input needs.
  """
  rectified = windows.relu(_before_relu(x, affine))
  inputs = []
  full = [s.padding for s in shapes if not _reads_even_pixels(s, stride)]
  even = [s.kernel // 2 for s in shapes if _reads_even_pixels(s, stride)]
  if full:
    inputs.append(_pad(rectified, max(full), step))
  if even:
    inputs.append(
      windows.pad(windows.subsample(rectified), max(even), max(even))
    )
  return tuple(inputs)


def _geometry(
  shape: KernelShape, shapes: tuple[KernelShape, ...], stride: int
) -> tuple[int, dict[str, int]]:
  """Returns which padded input a window reads, and how."""
  full = [s.padding for s in shapes if not _reads_even_pixels(s, stride)]
  even = [s.kernel // 2 for s in shapes if _reads_even_pixels(s, stride)]
  if _reads_even_pixels(shape, stride):
    offset = max(even) - shape.kernel // 2
    which = 1 if full else 0
    return which, {'dilation': 1, 'stride': 1, 'offset': offset}
  offset = max(full) - shape.padding
  return 0, {'dilation': shape.dilation, 'stride': stride, 'offset': offset}


def _is_narrow(x: jax.Array, stride: int) -> bool:
  return stride == 1 and 1 < x.shape[-1] <= _NARROW


def _repeated(values: jax.Array, x: jax.Array) -> jax.Array:
  """Repeats values per channel, in the last axis, for the pixels of a row."""
  return jnp.tile(values, (1,) * (values.ndim - 1) + (x.shape[3],))


def _taps_forward(x, affine, kernels, *, shapes, stride):
  pixels = functools.partial(_outputs, shapes=shapes, stride=stride)
  if not _is_narrow(x, stride):
    return pixels(x, affine, kernels), None
  rows = functools.partial(_outputs_of_rows, shapes=shapes)
  return lowering.select(rows, pixels, x, affine, kernels), None


def _outputs(x, affine, kernels, shapes, stride, step=1):
  inputs = _padded_inputs(x, affine, shapes=shapes, stride=stride, step=step)
  height, width = windows.size_of(x)
  size = -(-height // stride), -(-width // stride)
  outputs = []
  for kernel, shape in zip(kernels, shapes, strict=True):
    which, where = _geometry(shape, shapes, stride)
    outputs.append(
      _noinline_taps(inputs[which], kernel, size=size, step=step, **where)
    )
  return tuple(outputs)


def _outputs_of_rows(x, affine, kernels, shapes):
  affine, kernels = jax.tree.map(lambda v: _repeated(v, x), (affine, kernels))
  outputs = _outputs(
    _as_rows(x), affine, kernels, shapes, stride=1, step=x.shape[-1]
  )
  return tuple(y.reshape(-1, *x.shape[1:]) for y in outputs)


def _taps_backward(residuals, cotangents, *, shapes, stride):
  (x, affine, kernels), _ = residuals
  args = x, affine, kernels, cotangents
  pixels = functools.partial(_gradients, shapes=shapes, stride=stride)
  if _is_narrow(x, stride):
    rows = functools.partial(_gradients_of_rows, shapes=shapes)
    gradient, kernel_gradients = lowering.select(rows, pixels, *args)
  else:
    gradient, kernel_gradients = pixels(*args)
  if affine is None:
    return gradient, None, kernel_gradients
  factor, shift = affine
  sums = reductions.sum_products((gradient, x), ((0,), (0, 1)))
  d_shift, d_factor = jnp.split(sums, 2)
  return (
    gradient * lax.expand_dims(factor.astype(x.dtype), (1, 2, 3)),
    (d_factor.astype(factor.dtype), d_shift.astype(shift.dtype)),
    kernel_gradients,
  )


def _gradients_of_rows(x, affine, kernels, cotangents, shapes):
  step = x.shape[-1]
  affine, kernels = jax.tree.map(lambda v: _repeated(v, x), (affine, kernels))
  gradient, kernel_gradients = _gradients(
    _as_rows(x),
    affine,
    kernels,
    tuple(_as_rows(dy) for dy in cotangents),
    shapes,
    stride=1,
    step=step,
  )
  return gradient.reshape(x.shape), tuple(
    jnp.sum(g.reshape(*g.shape[:3], -1, step), axis=3).astype(x.dtype)
    for g in kernel_gradients
  )


def _gradients(x, affine, kernels, cotangents, shapes, stride, step=1):
  """Of relu(affine map of x) in x before the map, and of the kernels."""
  # Made again rather than kept: padded copies would be the largest residuals.
  inputs = _padded_inputs(x, affine, shapes=shapes, stride=stride, step=step)
  edges = x.shape[0]
  alone = stride == 1 and len(shapes) == 1
  kernel_gradients = []
  direct = []
  phases = None
  for kernel, shape, dy in zip(kernels, shapes, cotangents, strict=True):
    which, where = _geometry(shape, shapes, stride)
    kernel_gradients.append(
      depthwise_weights.gradient(
        inputs[which], dy, kernel=shape.kernel, step=step, **where
      )
    )
    if stride == 1 or _reads_even_pixels(shape, stride):
      masked = (x, affine) if alone else None
      dilation = where['dilation']
      direct.append(
        _input_gradient(
          dy, kernel, masked, dilation=dilation, edges=edges, step=step
        )
      )
    else:
      part = _strided_input_gradient(dy, kernel, edges=edges)
      phases = (
        part
        if phases is None
        else jax.tree.map(lambda a, b: a + b, phases, part)
      )
  if alone:
    (gradient,) = direct
  else:
    gradient = _through_relu(x, affine, tuple(direct), phases)
  return gradient, tuple(kernel_gradients)


@lowering.noinline
def _through_relu(
  x: jax.Array,
  affine: Affine | None,
  direct: tuple[jax.Array, ...],
  phases: windows.Phases | None,
) -> jax.Array:
  """Sums the gradients in the ReLU's output and masks them."""
  total = None
  if direct:
    total = functools.reduce(operator.add, direct)
    if phases is not None:
      phases = ((phases[0][0] + total, phases[0][1]), phases[1])
    elif total.shape != x.shape:
      zero = lax.full(total.shape, 0, total.dtype)
      phases = ((total, zero), (zero, zero))
  if phases is not None:
    total = windows.interleave(phases, windows.size_of(x))
  assert total is not None
  return windows.select(_before_relu(x, affine) > 0, total)


_bank = lowering.kernel(_convolutions, _taps_forward, _taps_backward)
