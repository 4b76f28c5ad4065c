"""Tests of the anytime curve."""

import doctest

import numpy as np
import pytest

from ms_ranas_jax import errors
from ms_ranas_jax.anytime import curves

# MSDNet on CIFAR-10: millions of flops of its ten exits, and accuracies in %.
MSDNET_COSTS = (
  26.6, 39.5, 54.4, 72.6, 83.9, 97.0, 111.8, 125.4, 136.0, 148.0,
)  # fmt: skip
MSDNET_ACCURACIES = (
  90.80, 92.33, 93.18, 93.76, 94.14, 94.13, 94.27, 94.22, 94.21, 94.17,
)  # fmt: skip


def test_the_examples_hold():
  assert doctest.testmod(curves).failed == 0


def test_msdnet_area():
  area = curves.step_area(MSDNET_COSTS, MSDNET_ACCURACIES, 26.6, 148.0)
  assert round(area, 2) == 93.41


def test_anytime_accuracy_is_that_of_the_last_exit_reached():
  got = curves.anytime_accuracy(
    [2, 4, 6], [0.5, 0.9, 0.7], [0, 1.9, 2, 3.9, 4, 5, 6, 100], floor=0.1
  )
  # The last exit is worse than the one before, and still it counts.
  np.testing.assert_array_equal(got, [0.1, 0.1, 0.5, 0.5, 0.9, 0.9, 0.7, 0.7])


@pytest.mark.parametrize(
  ('low', 'high', 'want'),
  [
    (2, 6, (0.5 * 2 + 0.9 * 2) / 4),
    (0, 6, (0.1 * 2 + 0.5 * 2 + 0.9 * 2) / 6),
    (3, 5, (0.5 + 0.9) / 2),
    (5, 9, (0.9 + 0.7 * 3) / 4),
    (0, 1, 0.1),
    (7, 8, 0.7),
    (4, 4, 0.9),
    (1, 1, 0.1),
  ],
)
def test_step_area_by_hand(low, high, want):
  got = curves.step_area([2, 4, 6], [0.5, 0.9, 0.7], low, high, floor=0.1)
  assert got == pytest.approx(want)


def test_step_area_is_the_integral():
  rng = np.random.default_rng(0)
  costs = np.sort(rng.uniform(1, 9, 7))
  accuracies = rng.uniform(size=7)
  middles = (np.arange(200_000) + 0.5) / 200_000 * 7.5 + 0.5
  want = curves.anytime_accuracy(costs, accuracies, middles, 0.2).mean()
  got = curves.step_area(costs, accuracies, 0.5, 8.0, 0.2)
  assert got == pytest.approx(want, abs=1e-5)


def test_expected_accuracy():
  costs, accuracies = [1.0, 3.0], [0.6, 0.8]
  # From 0 to 3 by default: a third below the first exit, then two thirds.
  got = curves.expected_accuracy(costs, accuracies, 0.1)
  assert got == pytest.approx((0.1 + 2 * 0.6) / 3)
  got = curves.expected_accuracy(
    costs,
    accuracies,
    0.1,
    curves.Discrete((0.5, 1.0, 7.0), (0.25, 0.25, 0.5)),
  )
  assert got == pytest.approx(0.25 * 0.1 + 0.25 * 0.6 + 0.5 * 0.8)


def test_one_exit():
  assert curves.expected_accuracy([5.0], [0.9], 0.1) == pytest.approx(0.1)
  assert curves.step_area([5.0], [0.9], 5.0, 5.0) == 0.9


@pytest.mark.parametrize(
  ('costs', 'accuracies', 'distribution', 'message'),
  [
    ([], [], None, 'one number per exit'),
    ([2, 1], [0.1, 0.2], None, 'cumulative'),
    ([1, np.nan], [0.1, 0.2], None, 'finite'),
    ([1, 2], [0.1], None, 'one of each per exit'),
    ([1, 2], [0.1, 0.2], curves.Uniform(3, 2), 'low <= high'),
    ([1, 2], [0.1, 0.2], curves.Discrete(()), 'per budget'),
    ([1, 2], [0.1, 0.2], curves.Discrete((1, 2), (0.5, 0.6)), 'sum to 1'),
    ([1, 2], [0.1, 0.2], curves.Discrete((1, 2), (-0.5, 1.5)), 'negative'),
    ([1, 2], [0.1, 0.2], curves.Discrete((1, 2), (1.0,)), 'per budget'),
  ],
)
def test_refuses(costs, accuracies, distribution, message):
  with pytest.raises(errors.UsageError, match=message):
    curves.expected_accuracy(costs, accuracies, 0.1, distribution)
