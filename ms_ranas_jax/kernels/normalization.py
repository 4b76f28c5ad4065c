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

from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.kernels import reductions

EPSILON = 1e-5
MOMENTUM = 0.9


def _spread(per_channel: jax.Array) -> jax.Array:
  """(n, channels) -> (n, 1, 1, 1, channels)."""
  return lax.expand_dims(per_channel, (1, 2, 3))


def _num_pixels(x: jax.Array) -> int:
  return x.shape[-4] * x.shape[-3] * x.shape[-2]


def _mean_over(axis_name: str | None, tree):
  return tree if axis_name is None else lax.pmean(tree, axis_name)


def moments(
  maps: Sequence[jax.Array], axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
  """Mean and variance per channel over batch, height and width.

  The gradient is (d mean + 2 (z - mean) d var) / N, where the two are means
  over the devices, like the moments.

  Args:
    maps: (n, batch, height, width, channels) each; n may differ.
    axis_name: the device axis to average over.

  Returns:
    Two arrays (rows, channels), at least float32: the n rows of the first map,
    then those of the second, and so on. The variance is biased.
  """
  return _moments_rule(tuple(maps), axis_name=axis_name)


def _moments(maps, axis_name):
  numbers = range(len(maps))
  sums = reductions.sum_products(
    maps, (*((i,) for i in numbers), *((i, i) for i in numbers))
  )
  mean, square = jnp.split(
    _mean_over(axis_name, sums / _num_pixels(maps[0])), 2
  )
  return mean, lax.max(square - mean * mean, jnp.zeros_like(mean))


def _moments_forward(maps, *, axis_name):
  mean, variance = _moments(maps, axis_name)
  return (mean, variance), (maps, mean)


def _moments_backward(residuals, cotangents, *, axis_name):
  maps, mean = residuals
  count = _num_pixels(maps[0])
  d_mean, d_variance = _mean_over(axis_name, cotangents)
  slope = 2 / count * d_variance
  constant = d_mean / count - slope * mean
  gradients = (
    z * _spread(a).astype(z.dtype) + _spread(b).astype(z.dtype)
    for z, a, b in zip(
      maps, split_rows(slope, maps), split_rows(constant, maps), strict=True
    )
  )
  return (tuple(gradients),)


_moments_rule = lowering.custom_vjp(_moments_forward, _moments_backward)


def split_rows(
  rows: jax.Array, maps: Sequence[jax.Array]
) -> tuple[jax.Array, ...]:
  """Takes rows as `moments` makes them apart, (n, channels) for each map."""
  parts, start = [], 0
  for z in maps:
    parts.append(lax.slice_in_dim(rows, start, start + z.shape[0]))
    start += z.shape[0]
  return tuple(parts)


def _repeat_rows(
  rows: jax.Array, maps: Sequence[jax.Array], edges: int
) -> jax.Array:
  """(rows, channels) -> (maps, edges, channels), shared maps repeated."""
  channels = rows.shape[1]
  if all(z.shape[0] == edges for z in maps):
    return rows.reshape(len(maps), edges, channels)
  return jnp.stack(
    [
      jnp.broadcast_to(part, (edges, channels))
      for part in split_rows(rows, maps)
    ]
  )


def inverse_deviation(variance: jax.Array) -> jax.Array:
  """Returns 1 / sqrt(variance + epsilon)."""
  return lax.rsqrt(variance + EPSILON)


def normalized_sum(
  terms: Sequence[jax.Array],
  scales: jax.Array,
  bias: jax.Array | None = None,
  num_normalized: int | None = None,
  axis_name: str | None = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  """Sums batch-normalised terms, with the statistics of this batch.

  Args:
    terms: (n, batch, height, width, channels) each, or with a leading 1 where
      all n outputs share the term.
    scales: (terms, n, channels).
    bias: (n, channels), or None for zero.
    num_normalized: so many terms, the first ones, are normalised; by default
      all.
    axis_name: the device axis that shares the statistics.

  Returns:
    The sum (n, batch, height, width, channels), and the mean and the biased
    variance of the normalised terms, see `moments`. No gradient flows through
    these.
  """
  if num_normalized is None:
    num_normalized = len(terms)
  if bias is None:
    bias = jnp.zeros_like(scales[0])
  total, statistics = _normalized_sum(
    tuple(terms),
    scales,
    bias,
    num_normalized=num_normalized,
    axis_name=axis_name,
  )
  return total, lax.stop_gradient(statistics)


def apply_moments(
  terms: Sequence[jax.Array],
  scales: jax.Array,
  bias: jax.Array | None,
  statistics: tuple[jax.Array, jax.Array] | None,
  num_normalized: int | None = None,
) -> jax.Array:
  """Sums normalised terms, with given statistics (inference).

  Args:
    terms: see `normalized_sum`.
    scales: (terms, n, channels).
    bias: (n, channels), or None for zero.
    statistics: mean and variance of the terms that are normalised, see
      `moments`; None where there are none.
    num_normalized: see `normalized_sum`.

  Returns:
    (n, batch, height, width, channels).
  """
  if bias is None:
    bias = jnp.zeros_like(scales[0])
  if num_normalized is None:
    num_normalized = len(terms)
  factors, constant, _ = _affine_maps(
    terms, scales, bias, statistics, num_normalized
  )
  return _weigh(terms, factors, constant)


def _affine_maps(terms, scales, bias, statistics, num_normalized):
  """Returns factors (terms, n, channels) and their constant (n, channels).

  And the mean and the inverse deviation behind them, (normalised, n, channels).
  """
  if not num_normalized:
    return scales, bias, None
  shifts = tuple(
    _repeat_rows(rows, terms[:num_normalized], scales.shape[1])
    for rows in (statistics[0], inverse_deviation(statistics[1]))
  )
  scaled = scales[:num_normalized] * shifts[1]
  constant = bias - jnp.sum(scaled * shifts[0], 0)
  return _join(scaled, scales[num_normalized:]), constant, shifts


def _sum_forward(terms, scales, bias, *, num_normalized, axis_name):
  statistics = (None, None)
  if num_normalized:
    statistics = _moments(terms[:num_normalized], axis_name)
  factors, constant, shifts = _affine_maps(
    terms, scales, bias, statistics, num_normalized
  )
  total = _weighted_sum(terms, factors, constant)
  return (total, statistics), (terms, scales, bias, shifts)


def _join(first, second):
  """Concatenates two arrays, of which the second may have no rows."""
  return jnp.concatenate([first, second]) if len(second) else first


def _row(rows, index):
  """(terms, n, channels) -> (n, 1, 1, 1, channels), one of the terms."""
  return _spread(lax.index_in_dim(rows, index, keepdims=False))


def _weigh(terms, factors, constant):
  weighted = [
    z * _row(factors, index).astype(z.dtype) for index, z in enumerate(terms)
  ]
  total = functools.reduce(lambda a, b: a + b, weighted)
  return total + _spread(constant).astype(total.dtype)


_weighted_sum = lowering.noinline(_weigh)


def _sum_backward(residuals, cotangents, *, num_normalized, axis_name):
  terms, scales, bias, shifts = residuals
  gradient = cotangents[0]
  products = tuple((0, 1 + index) for index in range(len(terms)))
  sums = reductions.sum_products((gradient, *terms), ((0,), *products))
  # (1, n, channels) and (terms, n, channels)
  total, d_scales = jnp.split(sums.reshape(-1, *scales.shape[1:]), [1])
  factors, lines = scales, None
  if num_normalized:
    mean, inverse = shifts
    d_normalized = (d_scales[:num_normalized] - mean * total) * inverse
    d_scales = _join(d_normalized, d_scales[num_normalized:])
    scaled = scales[:num_normalized] * inverse
    factors = _join(scaled, scales[num_normalized:])
    # What enters dz is a mean over the pixels of all devices.
    d_mean, d_deviation = _mean_over(axis_name, (total, d_normalized))
    count = _num_pixels(gradient)
    slopes = -scaled * inverse * d_deviation / count
    constants = -scaled * d_mean / count - slopes * mean
    lines = (slopes, constants)
    if any(len(z) != len(gradient) for z in terms[:num_normalized]):
      # A term that the outputs share gathers from all of them.
      lines += tuple(jnp.sum(rows, 1, keepdims=True) for rows in lines)
  d_terms = _gradient_in_terms(
    gradient, terms, factors, lines, num_normalized=num_normalized
  )
  return d_terms, d_scales.astype(scales.dtype), total[0].astype(bias.dtype)


@lowering.noinline
def _gradient_in_terms(gradient, terms, factors, lines, *, num_normalized):
  edges = gradient.shape[0]
  d_terms = []
  for index, z in enumerate(terms):
    shared = z.shape[0] != edges
    weighted = gradient * _row(factors, index).astype(gradient.dtype)
    if shared:
      weighted = functools.reduce(
        lambda a, b: a + b,
        [lax.slice_in_dim(weighted, n, n + 1) for n in range(edges)],
      )
    if index < num_normalized:
      slopes, constants = lines[2:] if shared else lines[:2]
      weighted = (
        weighted
        + z * _row(slopes, index).astype(z.dtype)
        + _row(constants, index).astype(z.dtype)
      )
    d_terms.append(weighted)
  return tuple(d_terms)


_normalized_sum = lowering.custom_vjp(_sum_forward, _sum_backward)
