"""Sums over pixels against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.kernels import reductions


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
  maps = [rng.normal(size=(lead, *shape[1:])) for lead in (shape[0], 1, 2)]
  maps[2] = maps[2][: shape[0]]
  products = ((0,), (0, 1), (1,), (2, 2))
  factors = [[maps[i] for i in f] for f in products]
  expected = np.concatenate(
    [np.prod(np.broadcast_arrays(*f), 0).sum((1, 2, 3)) for f in factors]
  )
  with jax.enable_x64(True):
    sums = reductions.sum_products(tuple(map(jnp.array, maps)), products)
    assert sums.dtype == jnp.float64
  np.testing.assert_allclose(sums, expected, rtol=0, atol=1e-9)

  for choice in ('taps', 'fused', 'conv', 'auto'):
    with lowering.using(choice):
      sums = reductions.sum_products(
        tuple(jnp.array(z, jnp.float32) for z in maps), products
      )
    assert sums.dtype == jnp.float32
    np.testing.assert_allclose(sums, expected, rtol=1e-4, atol=1e-3)


def test_bfloat16_is_summed_in_float32():
  x = jnp.ones((1, 4, 32, 32, 1), jnp.bfloat16)
  sums = reductions.sum_products((x,), ((0,), (0, 0)))
  assert sums.dtype == jnp.float32
  np.testing.assert_array_equal(sums, [[4096.0], [4096.0]])
