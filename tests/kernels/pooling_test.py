"""Pools against XLA's, against numpy, and where maxima tie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.kernels import pooling

POOLS = {'max': pooling.max_pool, 'average': pooling.average_pool}


def _value_and_gradient(pool, stride, choice, x, dy):
  with lowering.using(choice):
    y, pull = jax.vjp(lambda x: pool(x, stride), x)
  return y, pull(dy.astype(y.dtype))[0]


def _cotangent(x, stride):
  shape = (
    *x.shape[:-3],
    -(-x.shape[-3] // stride),
    -(-x.shape[-2] // stride),
    x.shape[-1],
  )
  return np.random.default_rng(1).normal(size=shape)


def _plain_gradient(x, dy, kind, stride):
  """Goes to the first maximum, or evenly to the pixels of the image."""
  gradient = np.zeros_like(dy, shape=x.shape)
  height, width = x.shape[1:3]
  for i, j in np.ndindex(dy.shape[1:3]):
    rows = slice(max(i * stride - 1, 0), min(i * stride + 2, height))
    columns = slice(max(j * stride - 1, 0), min(j * stride + 2, width))
    patch = x[:, rows, columns]
    if kind == 'average':
      share = dy[:, i : i + 1, j : j + 1] / (patch.shape[1] * patch.shape[2])
      gradient[:, rows, columns] += share
      continue
    for b, c in np.ndindex(x.shape[0], x.shape[3]):
      first = np.argmax(patch[b, :, :, c])  # in the order of rows
      row, column = np.unravel_index(first, patch.shape[1:3])
      gradient[b, rows.start + row, columns.start + column, c] += dy[b, i, j, c]
  return gradient


@pytest.mark.parametrize('kind', POOLS)
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize(
  ('batch', 'size'), [(2, (5, 6)), (1, (8, 7)), (1, (1, 2))], ids=str
)
def test_values_and_gradients(kind, stride, batch, size, reference):
  x = np.random.default_rng(0).normal(size=(batch, *size, 3))
  dy = _cotangent(x, stride)

  @jax.jit
  def compute(x, dy):
    return [
      _value_and_gradient(POOLS[kind], stride, choice, x, dy)
      for choice in (lowering.TAPS, lowering.FUSED, lowering.CONV)
    ]

  expected = (
    reference.pool(x, kind, stride),
    _plain_gradient(x, dy, kind, stride),
  )
  with jax.enable_x64(True):
    results = compute(x, dy)
  for result in results:
    for actual, plain in zip(result, expected, strict=True):
      assert actual.dtype == np.float64
      np.testing.assert_allclose(actual, plain, rtol=0, atol=1e-9)
  for result in compute(np.float32(x), np.float32(dy)):
    for actual, plain in zip(result, expected, strict=True):
      assert actual.dtype == np.float32
      np.testing.assert_allclose(actual, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize('stride', [1, 2])
def test_the_gradient_of_tied_maxima_goes_to_the_first(stride):
  x = np.random.default_rng(2).integers(0, 3, (2, 6, 5, 4)).astype(np.float32)
  dy = _cotangent(x, stride).astype(np.float32)
  compute = jax.jit(
    lambda x, dy: [
      _value_and_gradient(pooling.max_pool, stride, choice, x, dy)[1]
      for choice in (lowering.TAPS, lowering.FUSED, lowering.CONV)
    ]
  )
  for gradient in compute(x, dy):
    np.testing.assert_allclose(
      gradient, _plain_gradient(x, dy, 'max', stride), atol=1e-6
    )


@pytest.mark.parametrize(
  'choice', [lowering.TAPS, lowering.FUSED, lowering.CONV]
)
def test_padding_does_not_enter(choice):
  ones = jnp.ones((1, 3, 3, 1))
  with lowering.using(choice):
    np.testing.assert_allclose(pooling.average_pool(ones, 1), ones, rtol=1e-6)
    np.testing.assert_array_equal(pooling.max_pool(-ones, 2), -1)


@pytest.mark.parametrize('kind', POOLS)
def test_leading_axes_are_images_more(kind):
  x = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 2)).astype(np.float32)
  flat = x.reshape(6, 4, 5, 2)
  for choice in (lowering.TAPS, lowering.FUSED, lowering.CONV):
    with lowering.using(choice):
      np.testing.assert_allclose(
        POOLS[kind](x, 2).reshape(6, 2, 3, 2), POOLS[kind](flat, 2), rtol=1e-6
      )
