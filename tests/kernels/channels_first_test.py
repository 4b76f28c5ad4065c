"""Channels first, batch last: against XLA's convolution and plain autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.kernels import channels_first
from ms_ranas_jax.kernels import lowering


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


def _convolution(stride, choice):
  def convolve(x, kernel):
    with lowering.using(choice):
      return channels_first.convolution(x, kernel, stride)

  return convolve


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
      _pull(_convolution(stride, choice), x, kernel)
      for choice in (lowering.CONV, lowering.TAPS)
    )
    assert found[0].shape == (features, *(-(-s // stride) for s in size), batch)
    _assert_close(found, wanted)
    auto = jax.jit(lambda x, k: channels_first.convolution(x, k, stride))(
      x, kernel
    )
    _assert_close(auto, wanted[0])


def test_convolution_pads_by_half_of_the_kernel():
  x = np.arange(12.0, dtype=np.float32).reshape(1, 3, 4, 1)
  kernel = np.zeros((1, 3, 3, 1), np.float32)
  kernel[0, 0, 0, 0] = 1  # looks up and left
  for choice in (lowering.TAPS, lowering.CONV):
    y = _convolution(1, choice)(x, kernel)[0, :, :, 0]
    np.testing.assert_array_equal(y[0], 0)
    np.testing.assert_array_equal(y[1:, 1:], x[0, :-1, :-1, 0])
    strided = _convolution(2, choice)(x, kernel)[0, :, :, 0]
    np.testing.assert_array_equal(strided, y[::2, ::2])


def test_other_windows_are_xlas():
  x, kernel = _random(2, 8, 8, 1), _random(3, 7, 7, 2, seed=1)
  one, other = (
    _convolution(2, choice)(x, kernel)
    for choice in (lowering.CONV, lowering.TAPS)
  )
  assert one.shape == (3, 4, 4, 1)
  np.testing.assert_array_equal(one, other)


def test_pointwise_is_a_matrix_product():
  x, kernel = _random(3, 2, 4, 2), _random(5, 3, seed=1)
  with jax.enable_x64(True):
    found = channels_first.pointwise(x, kernel)
  _assert_close(found, np.einsum('chwb,fc->fhwb', x, kernel))


def test_images_are_turned():
  images = _random(2, 3, 4, 5)
  turned = channels_first.from_images(jnp.asarray(images))
  assert turned.shape == (5, 3, 4, 2)
  assert float(turned[4, 1, 2, 0]) == np.float32(images[0, 1, 2, 4])
