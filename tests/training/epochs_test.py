"""Epochs: their batches, and the chunks that run them."""

import numpy as np
import pytest

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.training import epochs

INDICES = np.arange(100, 123)


def test_an_epoch_has_whole_batches():
  assert epochs.steps_per_epoch(23, 5, 'train.batch_size') == 4
  assert epochs.steps_per_epoch(25, 5, 'train.batch_size') == 5
  assert epochs.steps_per_epoch(5, 5, 'train.batch_size') == 1


def test_a_batch_larger_than_the_data_is_refused():
  with pytest.raises(UsageError, match='train.batch_size = 6, .* 5 images'):
    epochs.steps_per_epoch(5, 6, 'train.batch_size')


def test_batches_hold_each_example_at_most_once():
  batches = epochs.epoch_batches(INDICES, 5, 4, (0, 1))
  assert batches.shape == (4, 5)
  assert batches.dtype == np.int32
  assert len(set(batches.ravel())) == 20
  assert set(batches.ravel()) <= set(INDICES)


def test_batches_follow_the_seed():
  first = epochs.epoch_batches(INDICES, 5, 4, (0, 1))
  np.testing.assert_array_equal(
    first, epochs.epoch_batches(INDICES, 5, 4, (0, 1))
  )
  for seed in ((0, 2), (1, 1), (0, 1, 1)):
    assert (first != epochs.epoch_batches(INDICES, 5, 4, seed)).any()


def test_what_is_left_out_changes_from_epoch_to_epoch():
  seen = set()
  for epoch in range(20):
    seen |= set(epochs.epoch_batches(INDICES, 5, 4, (0, epoch)).ravel())
  assert seen == set(INDICES)


class _Progress:
  def __init__(self):
    self.updates = []

  def update(self, count, metrics):
    self.updates.append((count, metrics))


def test_an_epoch_is_run_in_chunks():
  given = []

  def chunk(state, data, indices):
    given.append((state, data, indices.tolist()))
    metrics = {
      'loss': np.float32(indices.mean()),
      'accuracy': np.array([0.25, 0.5]),
    }
    return state + [len(indices)], metrics

  progress = _Progress()
  batches = np.arange(10).reshape(5, 2)
  results = list(
    epochs.run_epoch(
      chunk,
      [],
      'data',
      batches,
      2,
      progress,
      lambda record: {'shown': record['loss']},
    )
  )
  assert given == [
    ([], 'data', [[0, 1], [2, 3]]),
    ([2], 'data', [[4, 5], [6, 7]]),
    ([2, 2], 'data', [[8, 9]]),
  ]
  assert [state for state, _ in results] == [[2], [2, 2], [2, 2, 1]]
  for (_, record), steps, loss in zip(results, (2, 2, 1), (1.5, 5.5, 8.5)):
    assert record.pop('seconds') >= 0
    # Plain numbers and lists, ready for JSON.
    assert record == {'steps': steps, 'loss': loss, 'accuracy': [0.25, 0.5]}
    assert type(record['loss']) is float
  assert progress.updates == [
    (2, {'shown': 1.5}),
    (2, {'shown': 5.5}),
    (1, {'shown': 8.5}),
  ]


def test_no_chunk_starts_before_it_is_asked_for():
  count = []

  def chunk(state, data, indices):
    count.append(len(indices))
    return state, {'loss': np.float32(0)}

  run = epochs.run_epoch(
    chunk, 0, None, np.zeros((4, 1)), 1, _Progress(), lambda _: {}
  )
  next(run)
  assert count == [1]
  next(run)
  assert count == [1, 1]
