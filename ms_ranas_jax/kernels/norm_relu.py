r"""BN and the ReLU behind it, with channels first and the batch last.

For maps as in `planes`. The two are one rule: with m and r = 1 / sqrt(var +
epsilon) per channel, y = max(scale (z - m) r + bias, 0), and backwards G = dy
where y > 0. From there it is the rule of `normalization`, and only z is kept.
"""

from __future__ import annotations

import jax
from jax import lax
import jax.numpy as jnp

from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.kernels import normalization


def _spread(per_channel: jax.Array) -> jax.Array:
  return lax.expand_dims(per_channel, (1, 2, 3))


def _sums(x: jax.Array, y: jax.Array) -> jax.Array:
  """The sums over pixels of x and x y, (2, channels), at least float32."""
  wide = jnp.promote_types(x.dtype, jnp.float32)
  x, y = x.astype(wide), y.astype(wide)
  return jnp.stack([jnp.sum(x, (1, 2, 3)), jnp.sum(x * y, (1, 2, 3))])


def norm_relu(
  z: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  axis_name: str | None = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  """BN with the statistics of this batch, then ReLU.

  Args:
    z: (channels, height, width, batch).
    scale: (channels,).
    bias: (channels,).
    axis_name: the device axis that shares the statistics, see `normalization`.

  Returns:
    The rectified map, and the mean and the biased variance per channel. No
    gradient flows through these.
  """
  y, statistics = _norm_relu(z, scale, bias, axis_name=axis_name)
  return y, lax.stop_gradient(statistics)


def apply_norm_relu(
  z: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  statistics: tuple[jax.Array, jax.Array],
) -> jax.Array:
  """BN with given mean and variance per channel, then ReLU (inference)."""
  mean, variance = statistics
  factor = scale * normalization.inverse_deviation(variance)
  return _rectified(z, factor, bias - mean * factor)


@lowering.noinline
def _rectified(z, factor, constant):
  y = z * _spread(factor).astype(z.dtype) + _spread(constant).astype(z.dtype)
  return lax.max(y, lax.full_like(y, 0))


def _mean_over(axis_name, x):
  return x if axis_name is None else lax.pmean(x, axis_name)


def _norm_relu_forward(z, scale, bias, *, axis_name):
  pixels = z[0].size
  mean, square = _mean_over(axis_name, _sums(z, z) / pixels)
  variance = lax.max(square - mean * mean, jnp.zeros_like(mean))
  inverse = normalization.inverse_deviation(variance)
  factor = scale * inverse
  constant = bias - mean * factor
  y = _rectified(z, factor, constant)
  return (y, (mean, variance)), (z, factor, constant, mean, inverse, bias)


@lowering.noinline
def _masked(dy, z, factor, constant):
  """What passes the ReLU of dy."""
  y = z * _spread(factor).astype(z.dtype) + _spread(constant).astype(z.dtype)
  return lax.select(y > lax.full_like(y, 0), dy, lax.full_like(dy, 0))


@lowering.noinline
def _gradient_in_map(gradient, z, factor, slope, constant):
  return (
    gradient * _spread(factor).astype(z.dtype)
    + z * _spread(slope).astype(z.dtype)
    + _spread(constant).astype(z.dtype)
  )


def _norm_relu_backward(residuals, cotangents, *, axis_name):
  """As in `normalization`, behind the ReLU."""
  z, factor, constant, mean, inverse, bias = residuals
  gradient = _masked(cotangents[0], z, factor, constant)
  total, product = _sums(gradient, z)
  d_scale = (product - mean * total) * inverse
  d_mean, d_deviation = _mean_over(axis_name, (total, d_scale))
  pixels = z[0].size
  slope = -factor * inverse * d_deviation / pixels
  dz = _gradient_in_map(
    gradient,
    z,
    factor,
    slope,
    -factor * d_mean / pixels - slope * mean,
  )
  return dz, d_scale.astype(bias.dtype), total.astype(bias.dtype)


_norm_relu = lowering.custom_vjp(_norm_relu_forward, _norm_relu_backward)
