"""The loss and the accuracy of every exit, against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.utils import class_weight

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


def test_a_class_counts_by_its_weight():
  margins = np.array([[0.0, 2.0, -1.0], [-4.0, -100.0, 0.25]])
  # Of classes 0, 1, 1; divided by the images, not by the sum of weights.
  expected = np.log1p(np.exp(margins)) @ [3.0, 0.5, 0.5] / 3
  actual = losses.exit_losses(LOGITS, LABELS, np.array([3.0, 0.5]))
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, expected, rtol=1e-6)
  total = losses.weighted_loss(LOGITS, LABELS, (1.0, 0.25), (3.0, 0.5))
  np.testing.assert_allclose(total, expected @ [1.0, 0.25], rtol=1e-6)


def test_the_gradient_of_a_weighted_loss():
  weights, exits = np.array([3.0, 0.5]), np.array([1.0, 0.25])
  found = jax.grad(losses.weighted_loss)(
    jnp.asarray(LOGITS), LABELS, exits, weights
  )
  odds = np.exp(LOGITS - LOGITS.max(-1, keepdims=True))
  odds /= odds.sum(-1, keepdims=True)
  per_image = weights[LABELS][None, :, None] / len(LABELS)
  expected = exits[:, None, None] * per_image * (odds - np.eye(2)[LABELS])
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


def test_weights_of_one_change_no_bit():
  logits = np.random.default_rng(0).normal(size=(3, 50, 7)).astype(np.float32)
  labels = np.arange(50) % 7
  np.testing.assert_array_equal(
    losses.exit_losses(logits, labels, np.ones(7)),
    losses.exit_losses(logits, labels),
  )


def test_a_weighted_loss_is_the_mean_of_its_parts():
  # Equal parts of a batch, one with class 0 alone and one without.
  weights = np.array([7.0, 0.5])
  logits = np.random.default_rng(0).normal(size=(2, 6, 2)).astype(np.float32)
  labels = np.array([0, 0, 0, 1, 1, 1])
  parts = [
    losses.exit_losses(logits[:, part], labels[part], weights)
    for part in (slice(0, 3), slice(3, 6))
  ]
  np.testing.assert_allclose(
    np.mean(parts, axis=0),
    losses.exit_losses(logits, labels, weights),
    rtol=1e-6,
  )


def test_balanced_weights_are_those_of_scikit_learn():
  labels = np.random.default_rng(0).binomial(4, 0.4, 200)
  names = tuple('abcde')
  found = losses.balanced_weights(labels, names, 'train.class_weights')
  assert found.dtype == np.float32
  np.testing.assert_allclose(
    found,
    class_weight.compute_class_weight(
      'balanced', classes=np.arange(5), y=labels
    ),
    rtol=1e-6,
  )
  np.testing.assert_allclose(found[labels].mean(), 1, rtol=1e-6)
  # So every class has the same share.
  shares = np.bincount(labels, found[labels])
  np.testing.assert_allclose(shares, 200 / 5, rtol=1e-6)


@pytest.mark.parametrize(
  ('labels', 'message'),
  [
    ([0, 0, 2], "'balanced', but 1 of 3 classes have .* such as 'dog'; set ''"),
    ([0, 1, 1], "1 of 3 classes have .* such as 'cow'"),
    ([1, 1, 1], "2 of 3 classes have .* such as 'cat'"),
  ],
)
def test_a_class_without_images_has_no_weight(labels, message):
  with pytest.raises(UsageError, match=message) as caught:
    losses.balanced_weights(
      np.array(labels), ('cat', 'dog', 'cow'), 'train.class_weights'
    )
  assert str(caught.value).startswith('train.class_weights = ')


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


@pytest.mark.parametrize('weights', [(1.0,), (1.0, 1.0, 1.0), 2.0])
def test_class_weights_are_one_per_class(weights):
  with pytest.raises(AssertionError):
    losses.exit_losses(jnp.asarray(LOGITS), jnp.asarray(LABELS), weights)
