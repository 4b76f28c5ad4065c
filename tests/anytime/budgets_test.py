"""Tests of budgeted batch classification."""

import json
import math

import numpy as np
import pytest

from ms_ranas_jax import errors
from ms_ranas_jax.anytime import budgets

INF = math.inf


def _thresholds_by_loop(confidence, fractions):
  """The same rule, image by image, as MSDNet writes it."""
  num_exits, num_images = confidence.shape
  gone = [False] * num_images
  thresholds = []
  for k in range(num_exits - 1):
    quota = math.floor(num_images * fractions[k] + 1e-9)
    threshold = INF if quota == 0 else -INF
    count = 0
    for i in sorted(range(num_images), key=lambda i: -confidence[k][i]):
      if not gone[i]:
        count += 1
        if count == quota:
          threshold = confidence[k][i]
          break
    for i in range(num_images):
      if confidence[k][i] >= threshold:
        gone[i] = True
    thresholds.append(threshold)
  return [*thresholds, -INF]


def _apply_by_loop(confidence, correct, costs, thresholds):
  num_exits, num_images = confidence.shape
  right, spent, counts = 0, 0.0, [0] * num_exits
  for i in range(num_images):
    for k in range(num_exits):
      if k == num_exits - 1 or confidence[k][i] >= thresholds[k]:
        right += bool(correct[k][i])
        spent += costs[k]
        counts[k] += 1
        break
  return right / num_images, spent / num_images, np.array(counts) / num_images


def test_fractions():
  np.testing.assert_allclose(budgets.exit_fractions(1, 4), [0.25] * 4)
  np.testing.assert_allclose(
    budgets.exit_fractions(0.5, 3), np.array([4, 2, 1]) / 7
  )
  np.testing.assert_allclose(
    budgets.exit_fractions(2, 3), np.array([1, 2, 4]) / 7
  )
  assert budgets.exit_fractions(0.3, 1) == [1]
  # 1e300**3 overflows; the shares do not.
  np.testing.assert_allclose(
    budgets.exit_fractions(1e300, 4), [0, 0, 0, 1], atol=1e-99
  )


@pytest.mark.parametrize(
  ('confidence', 'fractions', 'want'),
  [
    # The two surest leave at exit 0; of the rest (images 2 and 3) the surer
    # one leaves at exit 1, although image 0 is surer still: it has gone.
    (
      [[0.9, 0.8, 0.7, 0.6], [0.99, 0.1, 0.5, 0.6], [1, 1, 1, 1]],
      [0.5, 0.25, 0.25],
      [0.8, 0.6, -INF],
    ),
    # A quota of zero: nobody leaves.
    (
      [[0.9, 0.8, 0.7, 0.6], [0.4, 0.3, 0.2, 0.1]],
      [0.2, 0.8],
      [INF, -INF],
    ),
    # Ties leave together, so that exit 1 finds one image for a quota of two:
    # it lets everybody go.
    (
      [[0.9, 0.9, 0.9, 0.6], [0.5, 0.4, 0.3, 0.2], [1, 1, 1, 1]],
      [0.25, 0.5, 0.25],
      [0.9, -INF, -INF],
    ),
    # A quota that takes exactly those that are left.
    (
      [[0.9, 0.9, 0.9, 0.6], [0.5, 0.4, 0.3, 0.2], [1, 1, 1, 1]],
      [0.25, 0.25, 0.5],
      [0.9, 0.2, -INF],
    ),
    # All gone at exit 0; the later exits find nobody.
    (
      [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]],
      [0.25, 0.25, 0.5],
      [1, -INF, -INF],
    ),
    # One exit only.
    ([[0.9, 0.8]], [1.0], [-INF]),
  ],
)
def test_thresholds_by_hand(confidence, fractions, want):
  got = budgets.solve_thresholds(np.array(confidence), fractions)
  np.testing.assert_array_equal(got, want)


def test_a_quota_is_not_lost_to_rounding():
  confidence = np.stack([np.arange(100) / 100, np.zeros(100)])
  # 100 * 0.29 = 28.999999999999996: the 29 surest are 0.71 to 0.99.
  got = budgets.solve_thresholds(confidence, [0.29, 0.71])
  assert got[0] == 0.71


def test_apply_by_hand():
  confidence = np.array([[0.9, 0.5, 0.6, 0.1], [0.1, 0.8, 0.2, 0.3]])
  correct = np.array([[1, 0, 0, 0], [0, 1, 1, 0]], bool)
  accuracy, macs, fractions = budgets.apply_thresholds(
    confidence, correct, [10, 30], [0.6, 2.0]
  )
  # Images 0 and 2 leave at exit 0 (right, wrong: at the threshold is enough),
  # 1 and 3 at exit 1 (right, wrong), which accepts all whatever its threshold.
  assert accuracy == 0.5
  assert macs == 20
  np.testing.assert_array_equal(fractions, [0.5, 0.5])


@pytest.mark.parametrize('decimals', [1, 2, 12])
@pytest.mark.parametrize('num_exits', [1, 2, 5])
def test_agrees_with_the_loop(num_exits, decimals):
  rng = np.random.default_rng(num_exits)
  # Rounded, so that there are ties.
  holdout = rng.uniform(size=(num_exits, 57)).round(decimals)
  test = rng.uniform(size=(num_exits, 83)).round(decimals)
  correct = rng.uniform(size=test.shape) < 0.7
  costs = np.cumsum(rng.uniform(size=num_exits))
  points = budgets.budgeted_curve(holdout, test, correct, costs)
  assert [point['q'] for point in points] == [p / 20 for p in range(1, 40)]
  for point in points:
    fractions = budgets.exit_fractions(point['q'], num_exits)
    thresholds = _thresholds_by_loop(holdout, fractions)
    np.testing.assert_array_equal(
      budgets.solve_thresholds(holdout, fractions), thresholds
    )
    accuracy, macs, shares = _apply_by_loop(test, correct, costs, thresholds)
    assert point['accuracy'] == pytest.approx(accuracy)
    assert point['macs'] == pytest.approx(macs)
    np.testing.assert_allclose(point['fractions'], shares)


def test_held_out_shares_meet_their_quotas_without_ties():
  rng = np.random.default_rng(0)
  confidence = rng.uniform(size=(4, 1000))
  fractions = budgets.exit_fractions(0.8, 4)
  thresholds = budgets.solve_thresholds(confidence, fractions)
  _, _, shares = budgets.apply_thresholds(
    confidence, np.ones_like(confidence), [1, 2, 3, 4], thresholds
  )
  np.testing.assert_allclose(shares, fractions, atol=4e-3)


def test_curve_costs_more_for_larger_q_and_is_json():
  rng = np.random.default_rng(0)
  confidence = rng.uniform(size=(3, 400)).astype(np.float32)
  correct = rng.uniform(size=(3, 400)) < 0.5
  points = budgets.budgeted_curve(
    confidence, confidence, correct, np.array([1, 5, 9])
  )
  macs = [point['macs'] for point in points]
  assert macs == sorted(macs)
  assert macs[0] < 1.5 and macs[-1] > 6
  assert json.loads(json.dumps(points)) == points


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: budgets.exit_fractions(0.0, 3), 'positive'),
    (lambda: budgets.exit_fractions(1.0, 0), 'at least one exit'),
    (lambda: budgets.solve_thresholds([0.5], [1.0]), 'exits, images'),
    (lambda: budgets.solve_thresholds([[np.nan]], [1.0]), 'diverged'),
    (lambda: budgets.solve_thresholds([[0.5]], [0.4]), 'sum to 1'),
    (lambda: budgets.solve_thresholds([[0.5]], [0.5, 0.5]), '1 shares'),
    (
      lambda: budgets.apply_thresholds([[0.5]], [[True]], [1, 2], [0.5]),
      'do not fit',
    ),
    (
      lambda: budgets.budgeted_curve([[0.5]] * 2, [[0.5]], [[True]], [1]),
      'do not fit',
    ),
  ],
)
def test_refuses(call, message):
  with pytest.raises(errors.UsageError, match=message):
    call()
