"""What is known of each class, against counting by hand and scikit-learn."""

import numpy as np
from sklearn import metrics

from ms_ranas_jax.anytime import classes


def test_confusion_is_that_of_scikit_learn():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 7, 300).astype(np.int32)
  answers = rng.integers(0, 7, 300).astype(np.int32)
  found = classes.confusion(labels, answers, 7)
  np.testing.assert_array_equal(
    found, metrics.confusion_matrix(labels, answers)
  )
  np.testing.assert_allclose(
    classes.accuracies(found),
    metrics.recall_score(labels, answers, average=None),
  )


def test_rows_are_classes_and_columns_answers():
  assert classes.confusion([0, 0, 2], [1, 1, 2], 4).tolist() == [
    [0, 2, 0, 0],
    [0, 0, 0, 0],
    [0, 0, 1, 0],
    [0, 0, 0, 0],
  ]


def test_a_class_without_images_has_no_accuracy():
  found = classes.accuracies(np.array([[3, 1], [0, 0]]))
  assert found == [0.75, None]


def test_among_best():
  logits = np.array([[3.0, 2.0, 1.0, 0.0]] * 4, np.float32)
  labels = np.arange(4)
  for best in range(1, 5):
    found = classes.among_best(logits, labels, best)
    assert found.tolist() == [label < best for label in labels]


def test_among_the_best_one_is_what_argmax_says():
  rng = np.random.default_rng(0)
  logits = rng.integers(0, 3, (200, 6)).astype(np.float32)  # many ties
  labels = rng.integers(0, 6, 200)
  np.testing.assert_array_equal(
    classes.among_best(logits, labels, 1), logits.argmax(-1) == labels
  )
  order = np.argsort(-logits, axis=-1, kind='stable')
  for best in 2, 5:
    np.testing.assert_array_equal(
      classes.among_best(logits, labels, best),
      (order[:, :best] == labels[:, None]).any(-1),
    )


def test_what_is_not_a_number_is_never_right():
  logits = np.full((1, 6), np.nan, np.float32)
  assert not classes.among_best(logits, np.array([0]), 5)
