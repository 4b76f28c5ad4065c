"""Fingerprints of images and labels."""

import dataclasses
import hashlib

import numpy as np
import pytest

from ms_ranas_jax.data.datasets import Dataset
from ms_ranas_jax.model import fingerprint

RNG = np.random.default_rng(0)
DATASET = Dataset(
  name='toy',
  train_images=RNG.integers(0, 256, (6, 2, 2, 1), np.uint8),
  train_labels=np.arange(6, dtype=np.int32) % 3,
  test_images=RNG.integers(0, 256, (4, 2, 2, 1), np.uint8),
  test_labels=np.arange(4, dtype=np.int32) % 3,
  num_classes=3,
  mean=(0.5,),
  std=(0.5,),
)
HELD_OUT = np.array([4, 1], np.int32)


def test_an_array_is_known_by_its_bytes_and_shape():
  labels = np.array([[1, 258]], np.int32)
  expected = hashlib.sha256(b'\1\0\0\0\2\1\0\0').hexdigest()
  assert fingerprint.of_array(labels) == {
    'shape': [1, 2],
    'sha256': expected,
  }
  # Bytes in the other order, or not side by side, are the same numbers.
  for same in (labels.astype('>i4'), np.stack([labels, labels], -1)[..., 0]):
    assert fingerprint.of_array(same)['sha256'] == expected


def test_the_same_data_do_not_differ():
  one = fingerprint.of_dataset(DATASET, HELD_OUT)
  assert set(one) == {*fingerprint.TRAINING, *fingerprint.TEST}
  # Which are held out counts, not in which order.
  assert not fingerprint.differences(
    one, fingerprint.of_dataset(DATASET, HELD_OUT[::-1])
  )


def _flipped(array):
  array = array.copy()
  array.flat[-1] = (array.flat[-1] + 1) % 3
  return array


@pytest.mark.parametrize('name', ['train', 'test'])
@pytest.mark.parametrize('part', ['images', 'labels'])
def test_one_number_that_differs_is_seen(name, part):
  field = f'{name}_{part}'
  other = dataclasses.replace(
    DATASET, **{field: _flipped(getattr(DATASET, field))}
  )
  (phrase,) = fingerprint.differences(
    fingerprint.of_dataset(DATASET, HELD_OUT),
    fingerprint.of_dataset(other, HELD_OUT),
  )
  assert phrase.startswith(f'{field} are other ones of the same shape')


def test_another_split_is_seen():
  (phrase,) = fingerprint.differences(
    fingerprint.of_dataset(DATASET, HELD_OUT),
    fingerprint.of_dataset(DATASET, np.arange(3, dtype=np.int32)),
  )
  assert phrase == 'held_out were [2], now [3]'
