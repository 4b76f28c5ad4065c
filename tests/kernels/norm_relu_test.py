"""BN and ReLU in one rule against the plain form and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.kernels import norm_relu
from ms_ranas_jax.kernels import normalization


def _random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def _pull(function, *args):
  """(value, gradients for a fixed random cotangent), as one program."""

  @jax.jit
  def compute(*args):
    value, pull = jax.vjp(function, *args)
    return value, pull(jnp.asarray(_random(*value.shape, seed=9)))

  return compute(*args)


def _assert_close(actual, wanted, rtol=1e-10):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-10),
    actual,
    wanted,
  )


def _plain_norm_relu(z, scale, bias):
  mean = z.mean((1, 2, 3), keepdims=True)
  variance = ((z - mean) ** 2).mean((1, 2, 3), keepdims=True)
  z = (z - mean) / jnp.sqrt(variance + normalization.EPSILON)
  spread = (-1, 1, 1, 1)
  return jnp.maximum(z * scale.reshape(spread) + bias.reshape(spread), 0)


@pytest.mark.parametrize(
  'choice', [lowering.TAPS, lowering.FUSED, lowering.CONV]
)
def test_norm_relu_is_the_plain_form_with_its_gradients(choice):
  with jax.enable_x64(True):
    args = (
      _random(3, 4, 5, 2),
      _random(3, seed=1) + 2,
      _random(3, seed=2),
    )
    wanted = _pull(_plain_norm_relu, *map(jnp.asarray, args))
    with lowering.using(choice):
      found = _pull(
        lambda *a: norm_relu.norm_relu(*a)[0], *map(jnp.asarray, args)
      )
    _assert_close(found, wanted, rtol=1e-8)
    # Given the same statistics, inference is the same map.
    with lowering.using(choice):
      y, statistics = norm_relu.norm_relu(*args)
      again = norm_relu.apply_norm_relu(*args, statistics)
    _assert_close(again, y)
    _assert_close(statistics[0], args[0].mean((1, 2, 3)))
    _assert_close(statistics[1], args[0].var((1, 2, 3)))


def test_norm_relu_over_devices_is_that_of_the_whole_batch():
  with jax.enable_x64(True):
    z, scale, bias = _random(3, 4, 5, 4), _random(3, seed=1), _random(3, seed=2)
    cotangent = _random(*z.shape, seed=9)

    def pull(z, dy, axis_name=None):
      _, pull = jax.vjp(
        lambda *a: norm_relu.norm_relu(*a, axis_name=axis_name)[0],
        z,
        scale,
        bias,
      )
      return pull(dy)

    def halves(x):
      return jnp.stack(jnp.split(jnp.asarray(x), 2, axis=-1))

    dz, d_scale, d_bias = jax.jit(pull)(z, cotangent)
    on_two = jax.jit(
      jax.vmap(lambda z, dy: pull(z, dy, 'devices'), axis_name='devices')
    )(halves(z), halves(cotangent))
    _assert_close(on_two[0], halves(dz), rtol=1e-8)
    # Like every other gradient these stay local, to be added up once.
    _assert_close(on_two[1].sum(0), d_scale, rtol=1e-8)
    _assert_close(on_two[2].sum(0), d_bias, rtol=1e-8)


def test_half_precision_has_its_statistics_in_single():
  z = jnp.asarray(_random(3, 4, 5, 2), jnp.bfloat16)
  y, (mean, variance) = norm_relu.norm_relu(z, jnp.ones(3), jnp.zeros(3))
  assert y.dtype == jnp.bfloat16
  assert mean.dtype == variance.dtype == jnp.float32
  gradient = jax.grad(
    lambda z: norm_relu.norm_relu(z, jnp.ones(3), jnp.zeros(3))[0].sum()
  )(z)
  assert gradient.dtype == jnp.bfloat16
