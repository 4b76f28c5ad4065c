"""Modules that cells, stems and exits are put together from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import math

from flax import linen as nn
import flax.errors
import jax
from jax import lax
import jax.numpy as jnp

from ms_ranas_jax.kernels import convolution
from ms_ranas_jax.kernels import depthwise
from ms_ranas_jax.kernels import normalization
from ms_ranas_jax.kernels import windows
from ms_ranas_jax.space import layer_cost

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


def param(
  module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...]
) -> jax.Array:
  """Returns a param of a module, float32 where it has to be made.

  As `module.param`, which traces `init` again to learn the shape of what is
  there: that is a quarter of the time that it takes to trace a network.

  Args:
    module: asked in its `__call__`.
    name: of the param.
    init: (key, shape, dtype) -> its first value.
    shape: its shape.

  Raises:
    ScopeParamShapeError: there is one of another shape.
  """
  if not module.has_variable('params', name):
    return module.param(name, init, shape, jnp.float32)
  value = module.get_variable('params', name)
  if value.shape != shape:
    raise flax.errors.ScopeParamShapeError(
      name, '/'.join(module.path), value.shape, shape
    )
  return value


class NormalizedSum(nn.Module):
  """Batch-normalises terms and sums them; one term is a plain BN.

  With `train`, the statistics are those of the batch, and running averages
  are written to `batch_stats` if that collection is mutable (it need not be
  there if it is not); otherwise the running averages normalise. The variables
  of all terms lie in one array, (rows, channels), term after term.

  Attributes:
    affine: whether normalised terms have a scale and a bias.
    num_normalized: so many terms, the first ones, are normalised; by default
      all.
    axis_name: the device axis that shares the statistics.
  """

  affine: bool = True
  num_normalized: int | None = None
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
      weights: (n, terms), factors of the terms; None is ones.
      train: see the class.

    Returns:
      (n, batch, height, width, channels).
    """
    count = len(terms) if self.num_normalized is None else self.num_normalized
    edges = weights.shape[0] if weights is not None else terms[0].shape[0]
    channels = terms[0].shape[-1]
    shape = (len(terms), edges, channels)
    scales, bias = jnp.ones(shape, jnp.float32), None
    if self.affine and count:
      rows = (count * edges, channels)
      scale = param(self, 'scale', nn.initializers.ones, rows)
      bias = param(self, 'bias', nn.initializers.zeros, rows)
      # As wide as the params that it is given.
      scales = scales.astype(scale.dtype)
      scales = scales.at[:count].set(scale.reshape(count, edges, channels))
      bias = bias.reshape(count, edges, channels)
    if weights is not None:
      factors = weights.T[..., None]
      scales = scales * factors
      bias = None if bias is None else bias * factors[:count]
    bias = None if bias is None else jnp.sum(bias, 0)
    averages = _averages(self, terms[:count], train) if count else None
    if train:
      total, statistics = normalization.normalized_sum(
        terms, scales, bias, count, self.axis_name
      )
      _update_averages(self, averages, statistics, terms, self.axis_name)
      return total
    statistics = averages and tuple(average.value for average in averages)
    return normalization.apply_moments(terms, scales, bias, statistics, count)


Averages = tuple[nn.Variable, nn.Variable]


def _averages(
  module: nn.Module, maps: Sequence[jax.Array], train: bool
) -> Averages | None:
  """Returns the running averages of a module, where they are needed."""
  if train and not module.is_mutable_collection('batch_stats'):
    return None
  shape = (sum(z.shape[0] for z in maps), maps[0].shape[-1])
  return (
    module.variable('batch_stats', 'mean', jnp.zeros, shape, jnp.float32),
    module.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32),
  )


def _update_averages(
  module: nn.Module,
  averages: Averages | None,
  statistics: tuple[jax.Array, jax.Array],
  maps: Sequence[jax.Array],
  axis_name: str | None,
) -> None:
  """Moves running averages towards the statistics of a batch."""
  if averages is None or module.is_initializing():
    return
  count = math.prod(maps[0].shape[1:4])
  if axis_name is not None:
    count = count * lax.psum(1, axis_name)
  # The running variance is the unbiased one, as in PyTorch.
  corrections = (1, count / max(count - 1, 1))
  momentum = normalization.MOMENTUM
  for average, value, correction in zip(
    averages, statistics, corrections, strict=True
  ):
    average.value = (
      momentum * average.value + (1 - momentum) * correction * value
    )


class NormAffine(nn.Module):
  """BNs as the affine maps that they are, for a consumer that applies them.

  See `NormalizedSum` for the statistics and the layout of the variables.

  Attributes:
    affine: whether there are a scale and a bias.
    axis_name: the device axis that shares the statistics.
  """

  affine: bool = True
  axis_name: str | None = None

  @nn.compact
  def __call__(
    self, maps: Sequence[jax.Array], *, train: bool
  ) -> tuple[tuple[jax.Array, jax.Array], ...]:
    """Returns (factor, shift), (n, channels) each, for every map.

    Args:
      maps: (n, batch, height, width, channels) each; n may differ.
      train: whether to take the statistics of the batch.
    """
    averages = _averages(self, maps, train)
    if train or averages is None:  # which only a training can do without
      mean, variance = statistics = normalization.moments(maps, self.axis_name)
      _update_averages(
        self, averages, lax.stop_gradient(statistics), maps, self.axis_name
      )
    else:
      mean, variance = (average.value for average in averages)
    factor = normalization.inverse_deviation(variance)
    if self.affine:
      factor = factor * param(self, 'scale', nn.initializers.ones, mean.shape)
    shift = -mean * factor
    if self.affine:
      shift = shift + param(self, 'bias', nn.initializers.zeros, mean.shape)
    return tuple(
      zip(
        normalization.split_rows(factor, maps),
        normalization.split_rows(shift, maps),
        strict=True,
      )
    )


class ConvNorm(nn.Module):
  """(ReLU,) convolution, BN.

  Attributes:
    features: output channels.
    kernel: size of the window.
    stride: 1 or 2.
    rectify: whether a ReLU stands first.
    affine: whether the BN has a scale and a bias.
    axis_name: the device axis that shares the BN statistics.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> layer = mr.ConvNorm(features=8, kernel=3, stride=2)
    >>> images = jax.numpy.ones((1, 6, 6, 3))
    >>> key = jax.random.key(0)
    >>> output, _ = layer.init_with_output(key, images, train=True)
    >>> output.shape
    (1, 3, 3, 8)
  """

  features: int
  kernel: int = 1
  stride: int = 1
  rectify: bool = True
  affine: bool = True
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps (batch, height, width, channels) to `features` channels."""
    if self.rectify:
      x = windows.relu(x)
    window = (self.kernel, self.kernel)
    kernel = param(
      self,
      'kernel',
      uniform_fan_in(self.kernel**2 * x.shape[-1]),
      (*window, x.shape[-1], self.features),
    )
    if self.kernel == 1 and self.stride == 1:
      x = convolution.pointwise(x[None], kernel[0])[0]
    else:
      x = convolution.convolution(x, kernel, (self.stride, self.stride))
    return NormalizedSum(self.affine, axis_name=self.axis_name, name='norm')(
      (x[None],), train=train
    )[0]


class SeparableNorm(nn.Module):
  """ReLU, 3x3 depthwise convolution, 1x1 convolution, BN.

  Attributes:
    features: output channels.
    stride: of the depthwise convolution, 1 or 2.
    affine: whether the BN has a scale and a bias.
    axis_name: the device axis that shares the BN statistics.
  """

  features: int
  stride: int = 1
  affine: bool = True
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps (batch, height, width, channels) to `features` channels."""
    channels, shape = x.shape[-1], depthwise.KernelShape(3)
    window = (1, shape.kernel, shape.kernel, channels)
    taps = param(self, 'depthwise', uniform_fan_in(shape.kernel**2), window)
    (x,) = depthwise.relu_depthwise(x[None], [taps], [shape], self.stride)
    kernel = param(
      self, 'pointwise', uniform_fan_in(channels), (channels, self.features)
    )
    x = convolution.pointwise(x, kernel[None])
    return NormalizedSum(self.affine, axis_name=self.axis_name, name='norm')(
      (x,), train=train
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
    kernels = param(
      self,
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


def classify(x: jax.Array, num_classes: int, name: str) -> jax.Array:
  """Returns logits (batch, classes), float32: the mean over pixels, and dense.

  Args:
    x: (batch, height, width, channels).
    num_classes: classes.
    name: of the dense layer, a part of the module that calls this.
  """
  wide = jnp.promote_types(x.dtype, jnp.float32)
  pooled = jnp.mean(x, axis=(1, 2), dtype=wide)
  bound = uniform_fan_in(x.shape[-1])
  dense = nn.Dense(num_classes, kernel_init=bound, bias_init=bound, name=name)
  return dense(pooled)


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


def separable_norm_layers(
  channels: int,
  features: int,
  height: int,
  width: int,
  stride: int = 1,
  affine: bool = True,
) -> tuple[layer_cost.Layer, ...]:
  """The cost of a `SeparableNorm`; height and width are those of its input."""
  rectified = layer_cost.relu(height, width, channels)
  height, width = -(-height // stride), -(-width // stride)
  return (
    rectified,
    layer_cost.convolution(
      height, width, channels, channels, (3, 3), groups=channels
    ),
    layer_cost.convolution(height, width, channels, features, (1, 1)),
    layer_cost.norm(height, width, features, affine),
  )


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
