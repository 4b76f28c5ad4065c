"""Epochs and their batches."""

import numpy as np
import pytest

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import batches as batches_lib

INDICES = np.arange(100, 123)


def test_an_epoch_has_whole_batches():
  assert batches_lib.steps_per_epoch(23, 5, 'train.batch_size') == 4
  assert batches_lib.steps_per_epoch(25, 5, 'train.batch_size') == 5
  assert batches_lib.steps_per_epoch(5, 5, 'train.batch_size') == 1


def test_a_batch_larger_than_the_data_is_refused():
  with pytest.raises(UsageError, match='train.batch_size = 6, .* 5 images'):
    batches_lib.steps_per_epoch(5, 6, 'train.batch_size')


def test_batches_hold_each_example_at_most_once():
  batches = batches_lib.epoch_batches(INDICES, 5, 4, (0, 1))
  assert batches.shape == (4, 5)
  assert batches.dtype == np.int32
  assert len(set(batches.ravel())) == 20
  assert set(batches.ravel()) <= set(INDICES)


def test_batches_follow_the_seed():
  first = batches_lib.epoch_batches(INDICES, 5, 4, (0, 1))
  np.testing.assert_array_equal(
    first, batches_lib.epoch_batches(INDICES, 5, 4, (0, 1))
  )
  for seed in ((0, 2), (1, 1), (0, 1, 1)):
    assert (first != batches_lib.epoch_batches(INDICES, 5, 4, seed)).any()


def test_what_is_left_out_changes_from_epoch_to_epoch():
  seen = set()
  for epoch in range(20):
    seen |= set(batches_lib.epoch_batches(INDICES, 5, 4, (0, epoch)).ravel())
  assert seen == set(INDICES)


def test_balanced_batches_have_all_classes_as_often():
  labels = np.array([0] * 17 + [3] * 5 + [7])
  batches = batches_lib.balanced_batches(INDICES, labels, 5, 4, (0, 1))
  assert batches.shape == (4, 5)
  assert batches.dtype == np.int32
  of = dict(zip(INDICES, labels, strict=True))
  counts = np.bincount([of[index] for index in batches.ravel()], minlength=8)
  # Twenty images of three classes.
  assert sorted(counts[[0, 3, 7]]) == [6, 7, 7]
  # None a second time before all of its class have come once.
  times = np.bincount(batches.ravel(), minlength=INDICES[-1] + 1)[INDICES]
  for label in 0, 3, 7:
    own = times[labels == label]
    assert own.max() - own.min() <= 1
  again = batches_lib.balanced_batches(INDICES, labels, 5, 4, (0, 1))
  np.testing.assert_array_equal(batches, again)
  other = batches_lib.balanced_batches(INDICES, labels, 5, 4, (0, 2))
  assert (batches != other).any()


def test_fewer_images_than_classes_are_balanced_as_far_as_they_go():
  labels = np.arange(len(INDICES))
  batches = batches_lib.balanced_batches(INDICES, labels, 2, 3, (0, 1))
  assert len(set(batches.ravel())) == 6
