"""Modules that cells, stems and exits are put together from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import math

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from ms_ranas_jax.space import convolution
from ms_ranas_jax.space import layer_cost
from ms_ranas_jax.space import lowering
from ms_ranas_jax.space import normalization
from ms_ranas_jax.space import windows

Initializer = Callable[..., jax.Array]


def uniform_fan_in(fan_in: int) -> Initializer:
  """PyTorch's default for convolutions: uniform with variance 1/(3 fan_in)."""
  bound = fan_in**-0.5

  def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32):
    # The generator takes long to compile, once for every size, so sizes are
    # rounded up to powers of two.
    size = math.prod(shape)
    rounded = 1 << (size - 1).bit_length()
    draws = jax.random.uniform(key, (rounded,), dtype, -bound, bound)
    return draws[:size].reshape(shape)

  return init


class NormalizedSum(nn.Module):
  """Batch-normalises terms and sums them; one term is a plain BN.

  With `train`, the statistics are those of the batch, and running averages
  are written to `batch_stats` if that collection is mutable (it need not be
  there if it is not); otherwise the running averages normalise.

  Attributes:
    affine: whether normalised terms have a scale and a bias.
    names: one per term, a prefix of its variables.
    normalize: which terms are normalised, by default all.
    axis_name: the device axis that shares the statistics.
  """

  affine: bool = True
  names: tuple[str, ...] = ('',)
  normalize: tuple[bool, ...] | None = None
  axis_name: str | None = None

  @nn.compact
  def __call__(
    self,
    terms: Sequence[jax.Array],
    weights: jax.Array | None = None,
    *,
    train: bool,
  ) -> jax.Array:
    """Sums the terms.

    Args:
      terms: (n, batch, height, width, channels) each; a leading 1 where all n
        outputs share the term.
      weights: (n, terms), factors of the normalised terms; None is ones.
      train: see the class.

    Returns:
      (n, batch, height, width, channels).
    """
    normalize = self.normalize or (True,) * len(terms)
    edges = weights.shape[0] if weights is not None else terms[0].shape[0]
    channels = terms[0].shape[-1]
    scales, bias, averages = [], None, []
    kept = self.is_mutable_collection('batch_stats') or not train
    for index, (name, z, flag) in enumerate(
      zip(self.names, terms, normalize, strict=True)
    ):
      shape = (edges, channels)
      scale = jnp.ones(shape)
      factor = None if weights is None else weights[:, index, None]
      if flag and self.affine:
        scale = self.param(f'{name}scale', nn.initializers.ones, shape)
        shift = self.param(f'{name}bias', nn.initializers.zeros, shape)
        shift = shift if factor is None else shift * factor
        bias = shift if bias is None else bias + shift
      scales.append(scale if factor is None else scale * factor)
      if flag and kept:
        average = (z.shape[0], channels)
        averages.append(
          (
            self.variable('batch_stats', f'{name}mean', jnp.zeros, average),
            self.variable('batch_stats', f'{name}var', jnp.ones, average),
          )
        )
    if train:
      total, statistics = normalization.normalized_sum(
        terms, scales, bias, normalize, self.axis_name
      )
      if kept and not self.is_initializing():
        _update_averages(
          averages,
          statistics,
          math.prod(terms[0].shape[1:4]),
          self.axis_name,
        )
      return total
    total = None
    average = iter(averages)
    for z, scale, flag in zip(terms, scales, normalize, strict=True):
      if flag:
        mean, variance = next(average)
        term = normalization.apply_moments(
          z, scale, None, mean.value, variance.value
        )
      else:
        term = z * scale[:, None, None, None, :].astype(z.dtype)
      total = term if total is None else total + term
    if bias is not None:
      total = total + bias[:, None, None, None, :].astype(total.dtype)
    return total


def _update_averages(averages, statistics, count, axis_name) -> None:
  """Moves running averages towards the statistics of a batch."""
  if axis_name is not None:
    count = count * lax.psum(1, axis_name)
  # The running variance is the unbiased one, as in PyTorch.
  unbiased = count / max(count - 1, 1)
  momentum = normalization.MOMENTUM
  for (mean, variance), (batch_mean, batch_variance) in zip(
    averages, (s for s in statistics if s is not None), strict=True
  ):
    mean.value = momentum * mean.value + (1 - momentum) * batch_mean
    variance.value = (
      momentum * variance.value + (1 - momentum) * unbiased * batch_variance
    )


class NormAffine(nn.Module):
  """A BN as the affine map that it is, for a consumer that applies it.

  See `NormalizedSum` for the statistics.

  Attributes:
    affine: whether there are a scale and a bias.
    axis_name: the device axis that shares the statistics.
  """

  affine: bool = True
  axis_name: str | None = None

  @nn.compact
  def __call__(
    self, z: jax.Array, *, train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Returns (factor, shift), (n, channels) each.

    Args:
      z: (n, batch, height, width, channels).
      train: whether to take the statistics of the batch.
    """
    shape = (z.shape[0], z.shape[-1])
    average = None
    if self.is_mutable_collection('batch_stats') or not train:
      average = (
        self.variable('batch_stats', 'mean', jnp.zeros, shape),
        self.variable('batch_stats', 'var', jnp.ones, shape),
      )
    if train:
      statistics = normalization.moments(z, self.axis_name)
      if average is not None and not self.is_initializing():
        _update_averages(
          [average],
          [lax.stop_gradient(statistics)],
          math.prod(z.shape[1:4]),
          self.axis_name,
        )
    else:
      statistics = average[0].value, average[1].value
    mean, variance = statistics
    factor = normalization.inverse_deviation(variance)
    if not self.affine:
      return factor, -mean * factor
    factor = factor * self.param('scale', nn.initializers.ones, shape)
    bias = self.param('bias', nn.initializers.zeros, shape)
    return factor, bias - mean * factor


class ConvNorm(nn.Module):
  """(ReLU,) convolution, BN.

  Attributes:
    features: output channels.
    kernel: size of the window.
    stride: 1 or 2.
    rectify: whether a ReLU stands first.
    affine: whether the BN has a scale and a bias.
    lowering: see `lowering.resolve`.
    axis_name: the device axis that shares the BN statistics.
  """

  features: int
  kernel: int = 1
  stride: int = 1
  rectify: bool = True
  affine: bool = True
  lowering: str = lowering.AUTO
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps (batch, height, width, channels) to `features` channels."""
    if self.rectify:
      x = windows.relu(x)
    window = (self.kernel, self.kernel)
    kernel = self.param(
      'kernel',
      uniform_fan_in(self.kernel**2 * x.shape[-1]),
      (*window, x.shape[-1], self.features),
    )
    if self.kernel == 1 and self.stride == 1:
      x = convolution.pointwise(x[None], kernel[0])[0]
    else:
      x = convolution.convolution(
        x, kernel, (self.stride, self.stride), self.lowering
      )
    return NormalizedSum(self.affine, axis_name=self.axis_name, name='norm')(
      (x[None],), train=train
    )[0]


class FactorizedReduce(nn.Module):
  """ReLU, two 1x1 stride-2 convolutions side by side, BN.

  The second reads the pixels at odd positions, so that none is lost. For an
  odd size its last row and column are zero (the original has no odd sizes).

  Attributes:
    features: output channels, even.
    edges: how many of them, on the same input.
    affine: whether the BN has a scale and a bias.
    normalized: False leaves the BN to the caller.
    axis_name: the device axis that shares the BN statistics.
  """

  features: int
  edges: int = 1
  affine: bool = True
  normalized: bool = True
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps (batch, height, width, channels) to (edges, batch, H', W', ...)."""
    channels = x.shape[-1]
    kernels = self.param(
      'kernel',
      uniform_fan_in(channels),
      (2, self.edges, channels, self.features // 2),
    )
    x = windows.relu(x)[None]
    halves = [
      convolution.pointwise(windows.subsample(x, offset), kernels[offset])
      for offset in (0, 1)
    ]
    x = jnp.concatenate(halves, axis=-1)
    if not self.normalized:
      return x
    return NormalizedSum(self.affine, axis_name=self.axis_name, name='norm')(
      (x,), train=train
    )


def conv_norm_layers(
  channels: int,
  features: int,
  height: int,
  width: int,
  *,
  kernel: int = 1,
  stride: int = 1,
  rectify: bool = True,
  affine: bool = True,
) -> tuple[layer_cost.Layer, ...]:
  """The cost of a `ConvNorm`; height and width are those of its input."""
  rows = [layer_cost.relu(height, width, channels)] if rectify else []
  height, width = -(-height // stride), -(-width // stride)
  window = (kernel, kernel)
  rows += [
    layer_cost.convolution(height, width, channels, features, window),
    layer_cost.norm(height, width, features, affine),
  ]
  return tuple(rows)


def factorized_reduce_layers(
  channels: int, features: int, height: int, width: int, affine: bool
) -> tuple[layer_cost.Layer, ...]:
  """The cost of a `FactorizedReduce`; height and width are its input's."""
  rows = [layer_cost.relu(height, width, channels)]
  height, width = -(-height // 2), -(-width // 2)
  # The two halves make one output between them, so they are one row.
  rows += [
    layer_cost.convolution(height, width, channels, features, (1, 1)),
    layer_cost.norm(height, width, features, affine),
  ]
  return tuple(rows)
