"""Channels first, batch last: against XLA's convolution and plain autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import lowering
from ms_ranas_jax.space import normalization
from ms_ranas_jax.space import planes


def _random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def _pull(function, *args):
  """(value, gradients for a fixed random cotangent)."""
  value, pull = jax.vjp(function, *args)
  return value, pull(jnp.asarray(_random(*value.shape, seed=9)))


def _assert_close(actual, wanted, rtol=1e-10):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-10),
    actual,
    wanted,
  )


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize(
  ('size', 'batch', 'features'),
  [
    ((6, 6), 2, 4),
    ((5, 7), 2, 4),  # odd: the last phase is one short
    ((1, 2), 3, 2),
    ((4, 4), 1, 40),  # fewer pixels than features: the input is copied
    ((3, 2), 1, 40),
  ],
)
def test_convolution_is_xlas_with_its_gradients(stride, size, batch, features):
  with jax.enable_x64(True):
    x = _random(3, *size, batch)
    kernel = _random(features, 3, 3, 3, seed=1)
    wanted, found = (
      _pull(lambda x, k, c=c: planes.convolution(x, k, stride, c), x, kernel)
      for c in (lowering.CONV, lowering.TAPS)
    )
    assert found[0].shape == (features, *(-(-s // stride) for s in size), batch)
    _assert_close(found, wanted)
    auto = jax.jit(lambda x, k: planes.convolution(x, k, stride))(x, kernel)
    _assert_close(auto, wanted[0])


def test_convolution_pads_by_half_of_the_kernel():
  x = np.arange(12.0, dtype=np.float32).reshape(1, 3, 4, 1)
  kernel = np.zeros((1, 3, 3, 1), np.float32)
  kernel[0, 0, 0, 0] = 1  # looks up and left
  for choice in (lowering.TAPS, lowering.CONV):
    y = planes.convolution(x, kernel, 1, choice)[0, :, :, 0]
    np.testing.assert_array_equal(y[0], 0)
    np.testing.assert_array_equal(y[1:, 1:], x[0, :-1, :-1, 0])
    strided = planes.convolution(x, kernel, 2, choice)[0, :, :, 0]
    np.testing.assert_array_equal(strided, y[::2, ::2])


def test_other_windows_are_xlas():
  x, kernel = _random(2, 8, 8, 1), _random(3, 7, 7, 2, seed=1)
  one, other = (
    planes.convolution(x, kernel, 2, c) for c in (lowering.CONV, lowering.TAPS)
  )
  assert one.shape == (3, 4, 4, 1)
  np.testing.assert_array_equal(one, other)


def test_pointwise_is_a_matrix_product():
  x, kernel = _random(3, 2, 4, 2), _random(5, 3, seed=1)
  with jax.enable_x64(True):
    found = planes.pointwise(x, kernel)
  _assert_close(found, np.einsum('chwb,fc->fhwb', x, kernel))


def test_images_are_turned():
  images = _random(2, 3, 4, 5)
  turned = planes.from_images(jnp.asarray(images))
  assert turned.shape == (5, 3, 4, 2)
  assert float(turned[4, 1, 2, 0]) == np.float32(images[0, 1, 2, 4])


def _plain_norm_relu(z, scale, bias):
  mean = z.mean((1, 2, 3), keepdims=True)
  variance = ((z - mean) ** 2).mean((1, 2, 3), keepdims=True)
  z = (z - mean) / jnp.sqrt(variance + normalization.EPSILON)
  spread = (-1, 1, 1, 1)
  return jnp.maximum(z * scale.reshape(spread) + bias.reshape(spread), 0)


@pytest.mark.parametrize('choice', [lowering.TAPS, lowering.CONV])
def test_norm_relu_is_the_plain_form_with_its_gradients(choice):
  with jax.enable_x64(True):
    args = (
      _random(3, 4, 5, 2),
      _random(3, seed=1) + 2,
      _random(3, seed=2),
    )
    wanted = _pull(_plain_norm_relu, *map(jnp.asarray, args))
    found = _pull(
      lambda *a: planes.norm_relu(*a, choice=choice)[0], *map(jnp.asarray, args)
    )
    _assert_close(found, wanted, rtol=1e-8)
    # Given the same statistics, inference is the same map.
    y, statistics = planes.norm_relu(*args, choice=choice)
    again = planes.apply_norm_relu(*args, statistics, choice)
    _assert_close(again, y)
    _assert_close(statistics[0], args[0].mean((1, 2, 3)))
    _assert_close(statistics[1], args[0].var((1, 2, 3)))


def test_norm_relu_over_devices_is_that_of_the_whole_batch():
  with jax.enable_x64(True):
    z, scale, bias = _random(3, 4, 5, 4), _random(3, seed=1), _random(3, seed=2)
    cotangent = _random(*z.shape, seed=9)

    def pull(z, dy, axis_name=None):
      _, pull = jax.vjp(
        lambda *a: planes.norm_relu(*a, axis_name=axis_name)[0], z, scale, bias
      )
      return pull(dy)

    def halves(x):
      return jnp.stack(jnp.split(jnp.asarray(x), 2, axis=-1))

    dz, d_scale, d_bias = pull(z, cotangent)
    on_two = jax.vmap(
      lambda z, dy: pull(z, dy, 'devices'), axis_name='devices'
    )(halves(z), halves(cotangent))
    _assert_close(on_two[0], halves(dz), rtol=1e-8)
    # Like every other gradient these stay local, to be added up once.
    _assert_close(on_two[1].sum(0), d_scale, rtol=1e-8)
    _assert_close(on_two[2].sum(0), d_bias, rtol=1e-8)


def test_half_precision_has_its_statistics_in_single():
  z = jnp.asarray(_random(3, 4, 5, 2), jnp.bfloat16)
  y, (mean, variance) = planes.norm_relu(z, jnp.ones(3), jnp.zeros(3))
  assert y.dtype == jnp.bfloat16
  assert mean.dtype == variance.dtype == jnp.float32
  gradient = jax.grad(
    lambda z: planes.norm_relu(z, jnp.ones(3), jnp.zeros(3))[0].sum()
  )(z)
  assert gradient.dtype == jnp.bfloat16


def test_an_unknown_lowering_is_refused():
  with pytest.raises(UsageError, match="lowering = 'fast'"):
    planes.convolution(
      jnp.ones((1, 3, 3, 1)), jnp.ones((1, 3, 3, 1)), 1, 'fast'
    )
