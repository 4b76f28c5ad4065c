"""Temperatures and calibration, against closed forms and SciPy."""

import doctest

import numpy as np
import pytest
from scipy import optimize
from scipy import special

from ms_ranas_jax.anytime import calibration
from ms_ranas_jax.errors import UsageError


def _made_up(count, scale, seed=0):
  """Logits of three classes, `scale` times as sure as they are right."""
  rng = np.random.default_rng(seed)
  logits = 2 * rng.normal(size=(count, 3))
  chances = special.softmax(logits, axis=-1)
  labels = np.array([rng.choice(3, p=row) for row in chances])
  return scale * logits, labels


def test_docstrings():
  assert doctest.testmod(calibration).attempted > 1
  assert doctest.testmod(calibration).failed == 0


def test_probabilities_are_a_softmax_that_does_not_saturate():
  logits = np.array([[0.0, 50.0, -3.0], [1000.0, 0.0, 999.0]], np.float32)
  found = calibration.probabilities(logits, 2.0)
  expected = special.softmax(logits.astype(np.float64) / 2.0, axis=-1)
  np.testing.assert_allclose(found, expected)
  assert found.dtype == np.float64
  assert 0 < 1 - found[0, 1] < 1e-10  # float32 would say exactly 1


@pytest.mark.parametrize('scale', [0.4, 1.0, 3.0])
def test_the_temperature_undoes_what_logits_were_multiplied_by(scale):
  logits, labels = _made_up(4000, scale)
  found = calibration.solve_temperature(logits, labels)
  assert found == pytest.approx(scale, rel=0.06)


@pytest.mark.parametrize(('count', 'scale'), [(30, 3.0), (200, 0.5)])
def test_the_temperature_is_the_best_there_is(count, scale):
  logits, labels = _made_up(count, scale, seed=1)

  def loss(log_temperature):
    temperature = np.exp(log_temperature)
    log = special.log_softmax(logits / temperature, axis=-1)
    return -log[np.arange(count), labels].sum() + 2 * log_temperature**2

  best = optimize.minimize_scalar(loss, bounds=(-3, 3), method='bounded')
  found = calibration.solve_temperature(logits, labels)
  assert np.log(found) == pytest.approx(best.x, abs=1e-4)


def test_images_that_are_all_right_leave_it_finite():
  logits = 9 * np.eye(3)[np.arange(60) % 3]
  found = calibration.solve_temperature(logits, np.arange(60) % 3)
  assert 0.05 < found < 1
  # Nothing to tell from.
  assert calibration.solve_temperature(np.ones((5, 3)), np.zeros(5, int)) == 1


@pytest.mark.parametrize(
  ('logits', 'labels', 'words'),
  [
    (np.ones((3, 2)), np.zeros(2, int), 'do not fit'),
    (np.ones((0, 2)), np.zeros(0, int), 'at least one image'),
    (np.full((1, 2), np.nan), np.zeros(1, int), 'diverged'),
  ],
)
def test_what_does_not_fit_is_refused(logits, labels, words):
  with pytest.raises(UsageError, match=words):
    calibration.solve_temperature(logits, labels)


def test_the_calibration_error_is_worked_by_hand():
  # Two bins: three images at 0.5, of which one is right; one sure and wrong.
  found = calibration.calibration_error([0.5, 0.5, 0.5, 1.0], [1, 0, 0, 0])
  assert found == pytest.approx(3 / 4 * abs(1 / 3 - 0.5) + 1 / 4 * 1.0)


def test_a_temperature_calibrates():
  logits, labels = _made_up(4000, 3.0)
  temperature = calibration.solve_temperature(logits, labels)
  errors = []
  for used in (1.0, temperature):
    sure = calibration.probabilities(logits, used)
    right = sure.argmax(-1) == labels
    errors.append(calibration.calibration_error(sure.max(-1), right))
  assert errors[0] > 0.1 > 0.03 > errors[1]
