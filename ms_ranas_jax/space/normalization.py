r"""Batch normalisation and the sum of what it normalises, in one rule.

A mixed operation (eq. 1 of the paper) is a weighted sum of batch-normalised
terms; a single batch normalisation is such a sum with one term. With m_q and
r_q = 1 / sqrt(var_q + epsilon) the batch statistics of term z_q, per channel,

  out[n] = bias[n] + sum_q scale_q[n] (z_q[n] - m_q) r_q.

One pass makes the output, and backwards the output's gradient G is shared by
all terms. With s0 = sum G and t_q = sum G (z_q - m_q) r_q over the N pixels of
a batch,

  d bias = s0,   d scale_q = t_q,
  d z_q  = scale_q r_q (G - s0 / N - (z_q - m_q) r_q t_q / N),

so the gradient in the architecture costs no pass of its own. A term that all
outputs share (a pool of the state they read) is summed over them; a term that
is not normalised (the identity) has m = 0, r = 1 and d z = scale G.

Over several devices the statistics, and the sums in d z, are means over
`axis_name`; d scale and d bias stay local, like every other gradient, to be
averaged once by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools

import jax
from jax import lax
import jax.numpy as jnp

from ms_ranas_jax.space import lowering
from ms_ranas_jax.space import reductions

EPSILON = 1e-5
MOMENTUM = 0.9

Moments = tuple[tuple[jax.Array, jax.Array] | None, ...]


def _spread(per_channel: jax.Array) -> jax.Array:
  """(n, channels) -> (n, 1, 1, 1, channels)."""
  return lax.expand_dims(per_channel, (1, 2, 3))


def _num_pixels(x: jax.Array) -> int:
  return x.shape[-4] * x.shape[-3] * x.shape[-2]


def _mean_over(axis_name: str | None, tree):
  return tree if axis_name is None else lax.pmean(tree, axis_name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def moments(
  z: jax.Array, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
  """Mean and variance per channel over batch, height and width.

  The gradient is (d mean + 2 (z - mean) d var) / N, where the two are means
  over the devices, like the moments.

  Args:
    z: (n, batch, height, width, channels).
    axis_name: the device axis to average over.

  Returns:
    Two arrays (n, channels), at least float32; the variance is biased.
  """
  return _moments(z, axis_name)


def _moments(z, axis_name):
  total, (square,) = reductions.sum_pixels(z, (z,))
  count = _num_pixels(z)
  mean, square = _mean_over(axis_name, (total / count, square / count))
  return mean, lax.max(square - mean * mean, jnp.zeros_like(mean))


def _moments_forward(z, axis_name):
  mean, variance = _moments(z, axis_name)
  return (mean, variance), (z, mean)


def _moments_backward(axis_name, residuals, cotangents):
  z, mean = residuals
  d_mean, d_variance = _mean_over(axis_name, cotangents)
  slope = 2 / _num_pixels(z) * d_variance
  constant = d_mean / _num_pixels(z) - slope * mean
  return (
    z * _spread(slope).astype(z.dtype) + _spread(constant).astype(z.dtype),
  )


moments.defvjp(_moments_forward, _moments_backward)


def inverse_deviation(variance: jax.Array) -> jax.Array:
  """Returns 1 / sqrt(variance + epsilon)."""
  return lax.rsqrt(variance + EPSILON)


def normalized_sum(
  terms: Sequence[jax.Array],
  scales: Sequence[jax.Array],
  bias: jax.Array | None = None,
  normalize: Sequence[bool] | None = None,
  axis_name: str | None = None,
) -> tuple[jax.Array, Moments]:
  """Sums batch-normalised terms, with the statistics of this batch.

  Args:
    terms: (n, batch, height, width, channels) each, or with a leading 1 where
      all n outputs share the term.
    scales: (n, channels) each.
    bias: (n, channels), or None for zero.
    normalize: which terms to normalise, by default all.
    axis_name: the device axis that shares the statistics.

  Returns:
    The sum (n, batch, height, width, channels), and per term the mean and the
    biased variance (one (leading, channels) each; None for a term that is not
    normalised). No gradient flows through these.
  """
  normalize = tuple(normalize or (True,) * len(terms))
  if bias is None:
    bias = jnp.zeros_like(scales[0])
  total, statistics = _normalized_sum(
    tuple(terms), tuple(scales), bias, normalize, axis_name
  )
  return total, lax.stop_gradient(statistics)


def apply_moments(
  z: jax.Array,
  scale: jax.Array,
  bias: jax.Array | None,
  mean: jax.Array,
  variance: jax.Array,
) -> jax.Array:
  """Batch normalisation with given statistics (inference).

  Args:
    z: (n, batch, height, width, channels).
    scale: (n, channels).
    bias: (n, channels), or None.
    mean: (n or 1, channels).
    variance: the same.

  Returns:
    The same shape as z with leading n.
  """
  factor = scale * inverse_deviation(variance)
  shift = -mean * factor if bias is None else bias - mean * factor
  return z * _spread(factor).astype(z.dtype) + _spread(shift).astype(z.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalized_sum(terms, scales, bias, normalize, axis_name):
  return _sum_forward(terms, scales, bias, normalize, axis_name)[0]


def _sum_forward(terms, scales, bias, normalize, axis_name):
  statistics = tuple(
    _moments(z, axis_name) if flag else None
    for z, flag in zip(terms, normalize, strict=True)
  )
  shifts = tuple(
    (mean, inverse_deviation(variance))
    for mean, variance in (s for s in statistics if s is not None)
  )
  total = _weighted_sum(terms, scales, bias, shifts, normalize)
  return (total, statistics), (terms, scales, bias, shifts)


@lowering.fence(static_argnums=(4,))
def _weighted_sum(terms, scales, bias, shifts, normalize):
  shift = iter(shifts)
  total = None
  constant = bias
  for z, scale, flag in zip(terms, scales, normalize, strict=True):
    factor = scale
    if flag:
      mean, inverse = next(shift)
      factor = scale * inverse
      constant = constant - factor * mean
    term = z * _spread(factor).astype(z.dtype)
    total = term if total is None else total + term
  return total + _spread(constant).astype(total.dtype)


def _sum_backward(normalize, axis_name, residuals, cotangents):
  terms, scales, bias, shifts = residuals
  gradient = cotangents[0]
  total, products = reductions.sum_pixels(gradient, terms)
  shift = iter(shifts)
  d_scales = []
  for product, flag in zip(products, normalize, strict=True):
    if flag:
      mean, inverse = next(shift)
      product = (product - mean * total) * inverse
    d_scales.append(product)
  # What enters dz is a mean over the pixels of all devices.
  shared_total, shared_scales = _mean_over(axis_name, (total, tuple(d_scales)))
  d_terms = _gradient_in_terms(
    gradient, terms, scales, shifts, shared_total, shared_scales, normalize
  )
  d_scales = tuple(
    d.astype(s.dtype) for d, s in zip(d_scales, scales, strict=True)
  )
  return d_terms, d_scales, total.astype(bias.dtype)


@lowering.fence(static_argnums=(6,))
def _gradient_in_terms(
  gradient, terms, scales, shifts, total, d_scales, normalize
):
  shift = iter(shifts)
  count = _num_pixels(gradient)
  d_terms = []
  for z, scale, d_scale, flag in zip(
    terms, scales, d_scales, normalize, strict=True
  ):
    edges = gradient.shape[0]
    if flag:
      mean, inverse = next(shift)
      factor = scale * inverse
      slope = -factor * inverse * d_scale / count
      constant = -factor * total / count
      if z.shape[0] != edges:
        slope = jnp.sum(slope, axis=0, keepdims=True)
        constant = jnp.sum(constant, axis=0, keepdims=True)
      constant = constant - slope * mean
    else:
      factor, slope, constant = scale, None, None
    weighted = gradient * _spread(factor).astype(gradient.dtype)
    if z.shape[0] != edges:
      weighted = functools.reduce(
        lambda a, b: a + b,
        [lax.slice_in_dim(weighted, n, n + 1) for n in range(edges)],
      )
    if flag:
      weighted = (
        weighted
        + z * _spread(slope).astype(z.dtype)
        + _spread(constant).astype(z.dtype)
      )
    d_terms.append(weighted)
  return tuple(d_terms)


_normalized_sum.defvjp(_sum_forward, _sum_backward)
