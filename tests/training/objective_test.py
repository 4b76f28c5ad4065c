"""What is minimised, against values worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.training import losses
from ms_ranas_jax.training import objective

# Two exits, one image, two classes: odds of 3 to 1, and of 1 to 4.
LOGITS = np.log(np.array([[[3.0, 1.0]], [[1.0, 4.0]]], np.float32))
LABELS = np.array([0])
WEIGHTS = (1.0, 0.5)
PLAIN = -np.log([3 / 4, 1 / 5])


def _loss(labels=LABELS, step=0, logits=LOGITS, **terms):
  known = objective.Objective(WEIGHTS, **terms)
  return objective.loss(known, jnp.asarray(logits), labels, step)


def test_without_options_it_is_the_plain_loss():
  assert objective.Objective(WEIGHTS).is_plain
  np.testing.assert_allclose(_loss(), PLAIN @ WEIGHTS, rtol=1e-6)
  np.testing.assert_array_equal(
    _loss(), losses.weighted_loss(LOGITS, LABELS, WEIGHTS)
  )


@pytest.mark.parametrize(
  'terms',
  [
    {'class_weights': np.ones(2)},
    {'label_smoothing': 0.1},
    {'distillation': 0.1},
    {'trunk_steps': 1},
  ],
)
def test_each_option_is_another_objective(terms):
  assert not objective.Objective(WEIGHTS, **terms).is_plain


def test_a_smooth_label():
  # With e = 0.2 the label has 0.9, and the other class 0.1.
  other = -np.log([1 / 4, 4 / 5])
  expected = (0.9 * PLAIN + 0.1 * other) @ WEIGHTS
  np.testing.assert_allclose(_loss(label_smoothing=0.2), expected, rtol=1e-6)


def test_a_smooth_label_has_the_gradient_of_its_distribution():
  found = jax.grad(
    lambda z: _loss(logits=z, label_smoothing=0.2, class_weights=[2.0, 1.0])
  )(jnp.asarray(LOGITS))
  odds = np.array([[[3 / 4, 1 / 4]], [[1 / 5, 4 / 5]]])
  expected = 2 * np.reshape(WEIGHTS, (2, 1, 1)) * (odds - [0.9, 0.1])
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_last_exit_teaches_the_others():
  # KL((1/5, 4/5) || (3/4, 1/4)).
  divergence = 1 / 5 * np.log(4 / 15) + 4 / 5 * np.log(16 / 5)
  found = objective.distillation_losses(jnp.asarray(LOGITS), 1.0)
  np.testing.assert_allclose(found, [divergence, 0], rtol=1e-5, atol=1e-7)
  expected = (0.7 * PLAIN[0] + 0.3 * divergence) + 0.5 * PLAIN[1]
  np.testing.assert_allclose(_loss(distillation=0.3), expected, rtol=1e-6)


def test_answers_are_compared_at_a_temperature():
  # At T = 2 odds are the roots, and the divergence counts T**2 = 4 times.
  first, last = (
    np.sqrt(odds) / np.sqrt(odds).sum() for odds in ([3, 1], [1, 4])
  )
  expected = 4 * (last * np.log(last / first)).sum()
  found = objective.distillation_losses(jnp.asarray(LOGITS), 2.0)
  np.testing.assert_allclose(found[0], expected, rtol=1e-5)


def test_no_gradient_goes_to_the_teacher():
  found = jax.grad(lambda z: objective.distillation_losses(z, 1.0).sum())(
    jnp.asarray(LOGITS)
  )
  # Of the other exit it is odds - the teacher's.
  np.testing.assert_allclose(
    found, [[[3 / 4 - 1 / 5, 1 / 4 - 4 / 5]], [[0, 0]]], rtol=1e-5, atol=1e-7
  )


def test_the_trunk_is_first():
  for step in 0, 6:
    found = _loss(step=step, trunk_steps=7)
    np.testing.assert_allclose(found, 0.5 * PLAIN[1], rtol=1e-6)
  np.testing.assert_allclose(
    _loss(step=7, trunk_steps=7), PLAIN @ WEIGHTS, rtol=1e-6
  )


def test_mixed_images_have_both_labels():
  labels = objective.Mixed(LABELS, 1 - LABELS, jnp.float32(0.25))
  other = -np.log([1 / 4, 4 / 5])
  expected = (0.25 * PLAIN + 0.75 * other) @ WEIGHTS
  np.testing.assert_allclose(_loss(labels), expected, rtol=1e-6)
  np.testing.assert_allclose(
    objective.plain_loss(WEIGHTS, jnp.asarray(LOGITS), labels),
    expected,
    rtol=1e-6,
  )
  found = objective.accuracies(jnp.asarray(LOGITS), labels)
  np.testing.assert_allclose(found, [0.25, 0.75])
