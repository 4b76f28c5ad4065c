"""Gradients that are multiplied on their way back."""

import jax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.kernels import gradient_scale

X = jnp.asarray([1.0, -2.0, 3.0])


def test_it_is_the_identity_with_another_gradient():
  np.testing.assert_array_equal(gradient_scale.scale_gradient(X, 0.25), X)
  found = jax.grad(
    lambda x: (gradient_scale.scale_gradient(x, 0.25) ** 2).sum()
  )
  np.testing.assert_allclose(found(X), 0.25 * 2 * X)


def test_of_half_precision_it_stays_that():
  half = X.astype(jnp.bfloat16)
  found = jax.grad(lambda x: gradient_scale.scale_gradient(x, 1 / 3).sum())(
    half
  )
  assert found.dtype == jnp.bfloat16


def test_each_exit_counts_the_same_for_what_is_below():
  """A chain of three exits, each with a factor of its own."""

  def exits(x):
    found = []
    for exit_ in range(3):
      for_exit, x = gradient_scale.in_equilibrium(x, exit_, 3)
      found.append((2.0, 3.0, 5.0)[exit_] * for_exit)
    return jnp.stack(found)

  np.testing.assert_array_equal(exits(X), np.outer([2, 3, 5], X))
  jacobian = jax.jacobian(exits)(X)[:, 0, 0]
  # A third of each: 2 / 3, then 2/3 * 3 / 2, and 2/3 * 1/2 * 5.
  np.testing.assert_allclose(jacobian, [2 / 3, 3 / 3, 5 / 3], rtol=1e-6)
