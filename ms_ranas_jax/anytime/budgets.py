"""Budgeted batch classification: easy images leave early.

A batch of images shares one budget, so an image that an early exit is sure of
may leave there and save its share for the others. The rule is the one of
MSDNet: exit k has a threshold T_k, and an image leaves at the first exit whose
confidence (the largest softmax value) is at least T_k; the last exit accepts
all.

Thresholds are solved on held-out images, never on the test images that they
are then judged on. Which share of the images each exit should answer is set by
one number q: exit k gets a share proportional to q**k. Small q means that most
leave early, large q that most go to the end, and a sweep over q gives the
curve of accuracy against average cost.

Everything here is plain numpy; the only Python loop is over exits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ms_ranas_jax.anytime import curves
from ms_ranas_jax.errors import UsageError

# MSDNet's sweep: q = p / 20 for p in 1, ..., 39.
QS = tuple(p / 20 for p in range(1, 40))


def exit_fractions(q: float, num_exits: int) -> np.ndarray:
  """Returns the share of the images that each exit should answer.

      p_k = q**k / (q**0 + ... + q**(K-1))

  Args:
    q: ratio of the shares of neighbouring exits, positive; 1 shares equally.
    num_exits: the number of exits K.

  Returns:
    (exits,) float64, summing to 1.

  Raises:
    UsageError: q is not positive or there are no exits.
  """
  if not (np.isfinite(q) and q > 0):
    raise UsageError(f'q = {q}: give a positive ratio.')
  if num_exits < 1:
    raise UsageError(f'num_exits = {num_exits}: give at least one exit.')
  # In logarithms, and relative to the largest, so that nothing overflows.
  logits = np.log(q) * np.arange(num_exits)
  shares = np.exp(logits - logits.max())
  return shares / shares.sum()


def _checked_confidence(confidence: ArrayLike, name: str) -> np.ndarray:
  confidence = np.asarray(confidence)
  if confidence.ndim != 2 or not confidence.size:
    raise UsageError(
      f'{name} has the shape {confidence.shape}; give (exits, images), at '
      'least one of each.'
    )
  if not np.isfinite(confidence).all():
    raise UsageError(
      f'{name} holds values that are not finite, so the network has diverged; '
      'train it again with a lower learning rate.'
    )
  return confidence


def solve_thresholds(confidence: ArrayLike, fractions: ArrayLike) -> np.ndarray:
  """Solves the thresholds that send each exit its share of the images.

  Exit k gets a quota of n_k = floor(n * p_k) images. With R_k the images that
  are still there (confidence below T_j at every exit j < k),

      T_k = the n_k-th largest confidence at exit k in R_k,

  and all of R_k with a confidence of at least T_k leave; with ties these are
  more than n_k. The ends of the scale:

  - a quota of zero: T_k = inf, nobody leaves;
  - a quota larger than R_k, which happens when ties made too many leave
    before: T_k = -inf, everybody who is left leaves. (In the public MSDNet
    code nobody does, so that saturated confidences send images on to the last
    exit and break the budget.)
  - the last exit: T = -inf.

  Args:
    confidence: (exits, images) the largest softmax value per exit and held-out
      image.
    fractions: (exits,) the share of the images per exit, summing to 1.

  Returns:
    (exits,) float64 thresholds.

  Raises:
    UsageError: shapes do not fit, or values are not finite or not shares.

  Example:
    >>> import ms_ranas_jax as mr
    >>> confidence = [[0.9, 0.4, 0.6], [0.9, 0.8, 0.7]]
    >>> mr.solve_thresholds(confidence, [1 / 3, 2 / 3]).tolist()
    [0.9, -inf]
  """
  confidence = _checked_confidence(confidence, 'confidence')
  num_exits, num_images = confidence.shape
  fractions = np.asarray(fractions, np.float64)
  if (
    fractions.shape != (num_exits,)
    or not (fractions >= 0).all()
    or not np.isclose(fractions.sum(), 1)
  ):
    raise UsageError(
      f'fractions must be {num_exits} shares, none negative, that sum to 1, '
      f'not {fractions.tolist()}.'
    )
  # 100 * 0.29 is 28.999999999999996, and 29 images are meant.
  quotas = np.floor(num_images * fractions + 1e-9).astype(int)
  thresholds = np.full(num_exits, -np.inf)
  left = np.ones(num_images, bool)
  for k, quota in enumerate(quotas[:-1]):
    if quota == 0:
      thresholds[k] = np.inf
      continue
    candidates = confidence[k, left]
    if quota <= candidates.size:
      place = candidates.size - quota
      thresholds[k] = np.partition(candidates, place)[place]
    left &= confidence[k] < thresholds[k]
  return thresholds


def apply_thresholds(
  confidence: ArrayLike,
  correct: ArrayLike,
  costs: ArrayLike,
  thresholds: ArrayLike,
) -> tuple[float, float, np.ndarray]:
  """Lets each image leave at the first exit that is sure enough.

  Args:
    confidence: (exits, images) the largest softmax value.
    correct: (exits, images) whether the exit's answer is right, bool.
    costs: (exits,) cumulative cost of reaching each exit.
    thresholds: (exits,) an image leaves at the first exit whose confidence is
      at least the threshold; the last exit accepts all, whatever is given.

  Returns:
    The accuracy; the average cost per image, sum_k fraction_k * cost_k; the
    (exits,) fractions of the images that leave at each exit.

  Raises:
    UsageError: shapes do not fit, or confidences are not finite.
  """
  confidence = _checked_confidence(confidence, 'confidence')
  costs = curves.checked_costs(costs)
  correct = np.asarray(correct)
  thresholds = np.asarray(thresholds)
  num_exits, num_images = confidence.shape
  if (
    correct.shape != confidence.shape
    or costs.shape != (num_exits,)
    or thresholds.shape != (num_exits,)
  ):
    raise UsageError(
      f'confidence {confidence.shape}, correct {correct.shape}, costs '
      f'{costs.shape} and thresholds {thresholds.shape} do not fit; give '
      '(exits, images) twice and (exits,) twice.'
    )
  leaves = confidence >= thresholds[:, np.newaxis]
  leaves[-1] = True
  left_at = leaves.argmax(axis=0)
  fractions = np.bincount(left_at, minlength=num_exits) / num_images
  accuracy = correct[left_at, np.arange(num_images)].mean()
  return float(accuracy), float(costs[left_at].mean()), fractions


def budgeted_curve(
  holdout_confidence: ArrayLike,
  test_confidence: ArrayLike,
  test_correct: ArrayLike,
  costs: ArrayLike,
) -> list[dict[str, Any]]:
  """Sweeps q: thresholds from held-out images, results on test images.

  Args:
    holdout_confidence: (exits, held-out images) the largest softmax value.
    test_confidence: (exits, test images) the same on the test images.
    test_correct: (exits, test images) whether the answer is right, bool.
    costs: (exits,) cumulative macs of reaching each exit.

  Returns:
    One dict per q of `QS`, in that order, ready for JSON: "q", "accuracy" in
    [0, 1], "macs" (average per test image), "fractions" (a list, the share of
    the test images that left at each exit) and "thresholds" (a list, one per
    exit; 0 accepts all images, 2 none).

  Raises:
    UsageError: shapes do not fit, or confidences are not finite.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import numpy as np
    >>> confidence = np.array([[0.9, 0.4, 0.6], [0.9, 0.8, 0.7]])
    >>> correct = np.array([[True, False, False], [True, True, True]])
    >>> points = mr.budgeted_curve(confidence, confidence, correct, [1.0, 3.0])
    >>> points[0]['fractions'], points[-1]['accuracy']
    ([0.6666666666666666, 0.3333333333333333], 1.0)
  """
  holdout_confidence = _checked_confidence(
    holdout_confidence, 'holdout_confidence'
  )
  num_exits = len(holdout_confidence)
  points = []
  for q in QS:
    thresholds = solve_thresholds(
      holdout_confidence, exit_fractions(q, num_exits)
    )
    accuracy, macs, fractions = apply_thresholds(
      test_confidence, test_correct, costs, thresholds
    )
    points.append(
      {
        'q': q,
        'accuracy': accuracy,
        'macs': macs,
        'fractions': fractions.tolist(),
        # JSON has no infinity, and no confidence is above 1.
        'thresholds': np.clip(thresholds, 0.0, 2.0).tolist(),
      }
    )
  return points
