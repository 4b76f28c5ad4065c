"""Mixed images: their shares, and whom they are mixed with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.training import mixup


def test_mixed():
  first, second = np.array([1.0, 5.0], np.float32), np.array([3.0, 1.0])
  found = mixup.mix(first, second.astype(np.float32), jnp.float32(0.25))
  np.testing.assert_array_equal(found, [2.5, 2.0])


@pytest.mark.parametrize(('alpha', 'deviation'), [(1.0, 12**-0.5), (0.2, 0.42)])
def test_shares_are_of_a_beta_distribution(alpha, deviation):
  # Its mean is 1/2 and its variance 1 / (4 (2 alpha + 1)).
  keys = jax.random.split(jax.random.key(0), 4000)
  found = jax.jit(jax.vmap(lambda k: mixup.draw_share(k, alpha)))(keys)
  assert found.dtype == jnp.float32 and 0 <= found.min() <= found.max() <= 1
  np.testing.assert_allclose(found.mean(), 0.5, atol=0.02)
  np.testing.assert_allclose(found.std(), deviation, atol=0.02)


def test_the_next_image_is_that_of_the_whole_batch():
  x = np.arange(12).reshape(6, 2)
  whole = mixup.next_in_batch(jnp.asarray(x), None)
  np.testing.assert_array_equal(whole, x[[1, 2, 3, 4, 5, 0]])
  split = jax.pmap(
    lambda part: mixup.next_in_batch(part, 'devices'),
    axis_name='devices',
    devices=jax.local_devices()[:2],
  )(x.reshape(2, 3, 2))
  np.testing.assert_array_equal(split.reshape(6, 2), whole)
