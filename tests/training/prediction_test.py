"""Prediction, batch by batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.training import prediction

MEAN, STD = (0.5,), (0.25,)
IMAGES = np.random.default_rng(0).integers(
  0, 256, (10, 2, 3, 1), dtype=np.uint8
)
VARIABLES = {
  'params': {
    'w': np.random.default_rng(1).normal(size=(2, 6, 4)).astype(np.float32)
  }
}


def _make_apply(calls=None):
  """A network of two exits and four classes that sees one image at a time."""

  def apply(variables, x):
    if calls is not None:
      calls.append(x.shape)
    flat = x.reshape(x.shape[0], -1)
    return jnp.einsum('bp,epc->ebc', flat, variables['params']['w'])

  return apply


def _predict(apply, batch_size=250, images=IMAGES, variables=VARIABLES):
  return prediction.predict(
    apply, variables, images, MEAN, STD, batch_size=batch_size
  )


def _expected(images=IMAGES):
  x = (images.astype(np.float64) / 255 - MEAN[0]) / STD[0]
  return np.einsum(
    'bp,epc->ebc', x.reshape(len(images), -1), VARIABLES['params']['w']
  )


@pytest.mark.parametrize('batch_size', [1, 3, 4, 5, 9, 10, 11, 250])
def test_every_image_has_its_logits(batch_size):
  logits = _predict(_make_apply(), batch_size)
  assert logits.shape == (2, 10, 4)
  assert logits.dtype == np.float32
  assert isinstance(logits, np.ndarray)
  np.testing.assert_allclose(logits, _expected(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('batch_size', [2, 250])
def test_some_of_the_images(batch_size):
  rows = np.array([7, 0, 3, 7, 9])
  logits = prediction.predict(
    _make_apply(), VARIABLES, IMAGES, MEAN, STD, batch_size, rows
  )
  np.testing.assert_allclose(
    logits, _expected(IMAGES[rows]), rtol=1e-4, atol=1e-4
  )


def test_the_last_batch_is_filled_up_with_its_own_images():
  # What fills it must not show, even where images of a batch see each other:
  # here exits answer with the batch's brightest and darkest pixel.
  def apply(variables, x):
    del variables
    ends = jnp.stack([x.max(), x.min()])[:, None, None]
    return jnp.broadcast_to(ends, (2, x.shape[0], 1))

  images = np.full_like(IMAGES, 100)
  images[8, 0, 0] = 20
  images[9, 0, 0] = 120
  logits = _predict(apply, 4, images)
  expected = np.array([[100] * 8 + [120] * 2, [100] * 8 + [20] * 2])
  np.testing.assert_allclose(
    logits[..., 0], (expected / 255 - MEAN[0]) / STD[0], rtol=1e-5
  )


def test_it_compiles_once_for_all_batches_and_calls():
  calls = []
  apply = _make_apply(calls)
  _predict(apply, 4)
  assert calls == [(4, 2, 3, 1)]
  other = jax.tree.map(lambda w: w + 1, VARIABLES)
  changed = _predict(apply, 4, variables=other)
  assert len(calls) == 1
  # Other variables are used all the same.
  assert np.abs(changed - _expected()).max() > 0.1


def test_one_image():
  logits = _predict(_make_apply(), images=IMAGES[:1])
  np.testing.assert_allclose(
    logits, _expected(IMAGES[:1]), rtol=1e-4, atol=1e-4
  )
