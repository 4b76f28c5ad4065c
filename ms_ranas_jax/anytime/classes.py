"""How well each class is known, and what it is taken for.

Plain numpy, on what a network answers to labelled images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def confusion(
  labels: ArrayLike, predictions: ArrayLike, classes: int
) -> np.ndarray:
  """Returns how many images of each class were taken for each class.

  >>> confusion([0, 0, 1], [0, 1, 1], 2).tolist()
  [[1, 1], [0, 1]]

  Args:
    labels: (images,) int, each in 0 .. classes - 1.
    predictions: (images,) int, the same.
    classes: how many there are.

  Returns:
    (classes, classes) int64: a row per true class, a column per answer.
  """
  pairs = classes * np.asarray(labels, np.int64) + np.asarray(predictions)
  return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def accuracies(matrix: np.ndarray) -> list[float | None]:
  """Returns the share of the images of each class that was told rightly.

  Args:
    matrix: of `confusion`.

  Returns:
    One per class; None where it has no image.
  """
  images = matrix.sum(axis=1)
  return [
    float(right / count) if count else None
    for right, count in zip(np.diag(matrix), images)
  ]


def among_best(logits: np.ndarray, labels: np.ndarray, best: int) -> np.ndarray:
  """Returns whether the true class is among the likeliest.

  Of classes that are as likely the first comes first, as in `argmax`.

  Args:
    logits: (images, classes).
    labels: (images,) int.
    best: how many classes an answer may name.

  Returns:
    (images,) bool.
  """
  true = labels[:, np.newaxis]
  own = np.take_along_axis(logits, true, axis=1)
  earlier = np.arange(logits.shape[1])[np.newaxis] < true
  # So that what is not a number is never right.
  before = ~(logits <= own) | ((logits == own) & earlier)
  return before.sum(axis=1) < best
