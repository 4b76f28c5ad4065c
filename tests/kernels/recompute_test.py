"""Computing again on the way back: the same numbers, less memory."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.kernels import recompute


def _wide(x, weights):
  """Its gradient in the weights needs an array many times as large as x."""
  wide = jnp.concatenate([jnp.sin(x * k) for k in range(1, 17)], axis=-1)
  return wide @ weights


def _gradients(function, x, layers):
  def loss(x, layers):
    for weights in layers:
      x = lax.tanh(function(x, weights))
    return jnp.sum(x * x)

  return jax.grad(loss, (0, 1))(x, layers)


def test_gradients_are_those_of_the_function():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(5, 4))
  layers = [rng.normal(size=(64, 4)) for _ in range(2)]
  with jax.enable_x64(True):
    kept = _gradients(_wide, x, layers)
    again = _gradients(recompute.recompute(_wide), x, layers)
  for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(kept), strict=True):
    assert a.dtype == np.float64
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_forward_mode_over_its_gradient_is_that_of_the_function():
  """As the exact second order of a search differentiates it."""
  rng = np.random.default_rng(1)
  x = rng.normal(size=(5, 4))
  layers = [rng.normal(size=(64, 4)) for _ in range(2)]
  with jax.enable_x64(True):
    kept, again = (
      jax.jvp(lambda x, f=f: _gradients(f, x, layers), (x,), (x,))[1]
      for f in (_wide, recompute.recompute(_wide))
    )
  for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(kept), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_the_compiled_program_takes_less_memory():
  x = jnp.ones((1024, 16))
  layers = [jnp.ones((256, 16))] * 6

  def temporary(function):
    compiled = (
      jax.jit(lambda x, layers: _gradients(function, x, layers))
      .lower(x, layers)
      .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary(recompute.recompute(_wide)) < temporary(_wide) / 2
