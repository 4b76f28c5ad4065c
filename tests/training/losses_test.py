"""The loss and the accuracy of every exit, against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.training import losses

# Two exits, three images, two classes.
LOGITS = np.array(
  [
    [[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]],
    [[3.0, -1.0], [-50.0, 50.0], [0.5, 0.25]],
  ],
  np.float32,
)
LABELS = np.array([0, 1, 1], np.int32)


def test_exit_losses():
  # With a margin d of the wrong class, the cross-entropy is log(1 + e^d).
  margins = np.array([[0.0, 2.0, -1.0], [-4.0, -100.0, 0.25]])
  expected = np.log1p(np.exp(margins)).mean(axis=1)
  actual = losses.exit_losses(jnp.asarray(LOGITS), jnp.asarray(LABELS))
  assert actual.shape == (2,)
  np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_exit_losses_of_large_logits_stay_finite():
  logits = jnp.asarray([[[1e4, -1e4]]])
  actual = losses.exit_losses(logits, jnp.asarray([1]))
  np.testing.assert_allclose(actual, [2e4])


def test_losses_are_computed_in_float32():
  logits = jnp.asarray(np.linspace(-1, 1, 2 * 300 * 5).reshape(2, 300, 5))
  labels = jnp.asarray(np.arange(300) % 5)
  half = losses.exit_losses(logits.astype(jnp.bfloat16), labels)
  assert half.dtype == jnp.float32
  # The rounding of the logits remains, that of the mean does not.
  np.testing.assert_allclose(
    half, losses.exit_losses(logits, labels), rtol=1e-3
  )


def test_exit_accuracies():
  # A tie is the first class's.
  actual = losses.exit_accuracies(jnp.asarray(LOGITS), jnp.asarray(LABELS))
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, [2 / 3, 2 / 3])
  np.testing.assert_allclose(
    losses.exit_accuracies(LOGITS[:, :2], LABELS[:2]), [0.5, 1.0]
  )


def test_exit_weights_are_ones_by_default():
  assert losses.exit_weights((), 3, 'train.exit_weights') == (1.0, 1.0, 1.0)


def test_exit_weights_are_taken_as_they_are():
  weights = losses.exit_weights([0, 2, 0.5], 3, 'train.exit_weights')
  assert weights == (0.0, 2.0, 0.5)
  assert all(isinstance(w, float) for w in weights)


@pytest.mark.parametrize(
  ('weights', 'message'),
  [
    ((1.0, 2.0), 'train.exit_weights has 2 entries for 3 exits'),
    ((1.0,) * 4, 'train.exit_weights has 4 entries for 3 exits'),
    ((1.0, -0.1, 1.0), 'train.exit_weights: weights must be at least 0'),
    ((0.0, 0.0, 0.0), 'some above'),
  ],
)
def test_other_exit_weights_are_refused(weights, message):
  with pytest.raises(UsageError, match=message):
    losses.exit_weights(weights, 3, 'train.exit_weights')


@pytest.mark.parametrize(
  ('logits', 'labels', 'weights'),
  [
    (LOGITS[0], LABELS, (1.0, 1.0)),  # of one exit, without its axis
    (LOGITS, LABELS[None], (1.0, 1.0)),
    (LOGITS, LABELS[:-1], (1.0, 1.0)),
    (LOGITS, LABELS, (1.0,)),  # would be broadcast over the exits
  ],
)
def test_other_shapes_are_refused(logits, labels, weights):
  with pytest.raises(AssertionError):
    losses.weighted_loss(jnp.asarray(logits), jnp.asarray(labels), weights)
