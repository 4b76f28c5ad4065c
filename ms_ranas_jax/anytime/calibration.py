"""How sure an exit is: probabilities, a temperature, and how far it is off.

A network that was trained to the end is surer than it is right. Dividing all
logits of an exit by one number, its temperature, mends most of that and changes
no answer (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
https://arxiv.org/abs/1706.04599). Everything here is plain numpy, in float64:
in float32 a sure softmax is exactly 1, and thresholds could not tell images
apart that are all sure.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ms_ranas_jax.errors import UsageError

_BINS = 15
# Of the logarithm of a temperature, before any image is seen.
_DEVIATION = 0.5
# No logarithm is further from 0.
_WIDEST = 10.0
_HALVINGS = 60


def probabilities(logits: ArrayLike, temperature: float = 1.0) -> np.ndarray:
  """Returns softmax(logits / temperature).

  >>> probabilities([[0.0, 0.0]]).tolist()
  [[0.5, 0.5]]

  Args:
    logits: (..., classes).
    temperature: positive.

  Returns:
    float64 of the same shape; the last axis sums to 1.
  """
  scaled = np.asarray(logits, np.float64) / temperature
  exponents = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
  return exponents / exponents.sum(axis=-1, keepdims=True)


def solve_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
  """Returns the temperature of the least cross-entropy on these images.

  Where all images are right there is none: the surer the better. So log T is
  taken to be normal around 0 with a deviation of 1/2 before the images are
  seen; a few hundred of them outweigh that. Of the images and that together,

      sum over images of cross-entropy(logits / T) + (log T)^2 / (2 / 4),

  the slope in -log T is halved into.

  Args:
    logits: (images, classes), of held-out images.
    labels: (images,) integers.

  Returns:
    The temperature; 1 where logits are all alike.

  Raises:
    UsageError: logits are not finite, or shapes do not fit.
  """
  logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
  if logits.ndim != 2 or labels.shape != logits.shape[:1] or not logits.size:
    raise UsageError(
      f'logits {logits.shape} and labels {labels.shape} do not fit; give '
      '(images, classes) and (images,), at least one image.'
    )
  if not np.isfinite(logits).all():
    raise UsageError(
      'logits are not finite, so the network has diverged; train it again with '
      'a lower learning rate.'
    )
  count = len(logits)
  true = logits[np.arange(count), labels]

  def slope(log_inverse: float) -> float:
    inverse = np.exp(log_inverse)
    mean = (probabilities(logits, 1 / inverse) * logits).sum(axis=-1)
    return inverse * (mean - true).sum() + log_inverse / _DEVIATION**2

  low, high = -_WIDEST, _WIDEST
  for _ in range(_HALVINGS):
    middle = (low + high) / 2
    if slope(middle) < 0:
      low = middle
    else:
      high = middle
  return float(np.exp(-(low + high) / 2))


def calibration_error(confidence: ArrayLike, correct: ArrayLike) -> float:
  """Returns the expected calibration error.

      sum over bins of share of the images * |accuracy - mean confidence|

  over 15 bins of equal width, as Guo et al. (2017) measure it.

  >>> calibration_error([0.8, 0.8, 0.8, 0.8, 0.8], [1, 1, 1, 1, 0])
  0.0

  Args:
    confidence: (images,) the largest softmax value.
    correct: (images,) whether the answer is right.

  Returns:
    In [0, 1].
  """
  confidence = np.asarray(confidence, np.float64)
  correct = np.asarray(correct, np.float64)
  bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
  surplus = np.bincount(bins, correct - confidence, _BINS)
  # Rounded, so that a sum of rounding errors is none.
  return float(np.round(np.abs(surplus).sum() / len(confidence), 12))
