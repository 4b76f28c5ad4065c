"""What is told of a dataset before anything is trained."""

import json

import numpy as np
import pytest

from ms_ranas_jax.data import datasets
from ms_ranas_jax.data import summary


def _dataset(labels, shape=(4, 6, 3), classes=None):
  labels = np.array(labels, np.int32)
  images = np.zeros((len(labels), *shape), np.uint8)
  images[:] = np.arange(len(labels)).reshape(-1, 1, 1, 1)
  num_classes = classes or labels.max() + 1
  channels = shape[-1]
  return datasets.Dataset(
    'mine',
    images,
    labels,
    images[:2],
    labels[:2],
    num_classes,
    (0.5,) * channels,
    (0.25,) * channels,
    notes=('something was done',),
  )


def test_the_summary_counts_images(tmp_path):
  dataset = _dataset([1, 0, 1, 1])
  summary.write(dataset, str(tmp_path))
  written = json.loads((tmp_path / summary.SUMMARY_FILE).read_text())
  assert written == {
    'name': 'mine',
    'image_shape': [4, 6, 3],
    'mean': [0.5] * 3,
    'std': [0.25] * 3,
    'notes': ['something was done'],
    'classes': [
      {'name': '0', 'train': 1, 'test': 1},
      {'name': '1', 'train': 3, 'test': 1},
    ],
  }
  with np.load(tmp_path / summary.EXAMPLES_FILE) as examples:
    assert examples['labels'].tolist() == [0, 1, 1, 1]
    # The first ones of each class, as they are.
    assert examples['images'][:, 0, 0, 0].tolist() == [1, 0, 2, 3]
    assert examples['images'].shape == (4, 4, 6, 3)


def test_of_many_classes_and_images_there_are_a_few():
  found = summary.examples(_dataset(list(range(30)) * 9))
  shown = np.unique(found['labels'])
  assert len(shown) == 10 and shown[0] == 0 and shown[-1] == 29
  assert np.bincount(found['labels'])[shown].tolist() == [8] * 10


@pytest.mark.parametrize(
  ('shape', 'expected'),
  [
    ((128, 96, 3), (64, 48, 3)),
    ((100, 300, 1), (21, 64, 1)),
    ((1, 500, 4), (1, 64, 4)),
  ],
)
def test_large_images_are_scaled_down(shape, expected):
  found = summary.examples(_dataset([0, 1], shape))['images']
  assert found.shape[1:] == expected and found.dtype == np.uint8
  np.testing.assert_array_equal(found[1], np.ones(expected, np.uint8))


def test_a_class_without_training_images_has_none():
  found = summary.examples(_dataset([0, 0, 2], classes=4))
  assert found['labels'].tolist() == [0, 0, 2]
