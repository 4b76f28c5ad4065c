"""Sums over pixels against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.space import reductions


def _expected(x, others):
  pixels = (1, 2, 3)
  return [x.sum(pixels), *((x * other).sum(pixels) for other in others)]


@pytest.mark.parametrize(
  'shape',
  [
    (2, 3, 5, 7, 4),  # one row holds everything
    (2, 8, 32, 32, 16),  # several iterations of several rows
    (3, 5, 31, 31, 8),  # sizes with few divisors
    (1, 1, 1, 1, 3),
    (1, 1, 1, 1, 70000),  # one pixel has more values than an accumulator
  ],
)
def test_sums_equal_numpys(shape):
  rng = np.random.default_rng(0)
  x = rng.normal(size=shape)
  others = (rng.normal(size=shape), rng.normal(size=(1, *shape[1:])))
  with jax.enable_x64(True):
    total, products = reductions.sum_pixels(jnp.array(x), others)
    assert total.dtype == jnp.float64
  expected = _expected(x, others)
  for actual, value in zip((total, *products), expected, strict=True):
    np.testing.assert_allclose(actual, value, rtol=0, atol=1e-9)

  total, products = reductions.sum_pixels(
    jnp.array(x, jnp.float32), [jnp.array(o, jnp.float32) for o in others]
  )
  for actual, value in zip((total, *products), expected, strict=True):
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, value, rtol=1e-4, atol=1e-3)


def test_bfloat16_is_summed_in_float32():
  x = jnp.ones((1, 4, 32, 32, 1), jnp.bfloat16)
  total, (square,) = reductions.sum_pixels(x, (x,))
  assert total.dtype == jnp.float32
  np.testing.assert_array_equal([total, square], [[[4096.0]], [[4096.0]]])
