"""The optimizer of alphas against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ms_ranas_jax.search import optimizers

ALPHAS = {'normal': np.array([0.5, -2.0]), 'reduction': np.array([[1.5]])}


def _gradients(steps):
  rng = np.random.default_rng(0)
  return [
    {k: rng.normal(size=v.shape) for k, v in ALPHAS.items()}
    for _ in range(steps)
  ]


def _run(optimizer, gradients):
  alphas = jax.tree.map(jnp.asarray, ALPHAS)
  state = optimizer.init(alphas)
  for gradient in gradients:
    updates, state = optimizer.update(gradient, state, alphas)
    alphas = optax.apply_updates(alphas, updates)
  return alphas


def test_adam_with_l2_follows_the_definition():
  rate, decay, b1, b2 = 0.03, 0.2, 0.5, 0.999
  gradients = _gradients(4)
  expected = {}
  for kind, alpha in ALPHAS.items():
    first, second = 0.0, 0.0
    for step, gradient in enumerate(gradients, start=1):
      # The decay is part of the gradient: both moments see it.
      g = gradient[kind] + decay * alpha
      first = b1 * first + (1 - b1) * g
      second = b2 * second + (1 - b2) * g**2
      mean, square = first / (1 - b1**step), second / (1 - b2**step)
      alpha = alpha - rate * mean / (np.sqrt(square) + 1e-8)
    expected[kind] = alpha
  with jax.enable_x64(True):
    alphas = _run(optimizers.adam_with_l2(rate, decay), gradients)
  for kind in ALPHAS:
    np.testing.assert_allclose(alphas[kind], expected[kind], rtol=1e-10)


def test_it_is_not_adamw():
  gradients = _gradients(3)
  ours = _run(optimizers.adam_with_l2(0.03, 0.2), gradients)
  adamw = _run(optax.adamw(0.03, b1=0.5, b2=0.999, weight_decay=0.2), gradients)
  assert np.abs(ours['normal'] - adamw['normal']).max() > 1e-3


@pytest.mark.parametrize('size', [1e-3, 1e3])
def test_the_first_step_is_the_rate_whatever_the_gradient(size):
  # Decay that is scaled by Adam cannot make the step larger either.
  gradient = {k: size * np.sign(v) for k, v in ALPHAS.items()}
  alphas = _run(optimizers.adam_with_l2(0.03, 0.2), [gradient])
  for kind, value in ALPHAS.items():
    np.testing.assert_allclose(
      alphas[kind], value - 0.03 * np.sign(value), rtol=1e-5
    )


def test_the_decays_of_the_moments_can_be_set():
  gradients = _gradients(3)
  ours = _run(optimizers.adam_with_l2(0.03, 0.0, b1=0.8, b2=0.9), gradients)
  adam = _run(optax.adam(0.03, b1=0.8, b2=0.9), gradients)
  for kind in ALPHAS:
    np.testing.assert_allclose(ours[kind], adam[kind], rtol=1e-6)
