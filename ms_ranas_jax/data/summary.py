"""What a dataset holds: numbers and a few examples, for its user to check.

Written to a work directory before anything is trained: images that are labelled
wrongly, upside down or cut off are seen there.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import Image

from ms_ranas_jax.data.datasets import Dataset
from ms_ranas_jax.runtime import files

SUMMARY_FILE = 'images/summary.json'
EXAMPLES_FILE = 'images/examples.npz'
# Of more classes, these are shown; of each so many images, and no larger.
_CLASSES, _OF_EACH, _SIDE = 10, 8, 64


def counts(labels: np.ndarray, num_classes: int) -> np.ndarray:
  """Returns how many images each class has, (classes,) int64.

  Args:
    labels: int (n,).
    num_classes: how many classes there are.
  """
  return np.bincount(labels, minlength=num_classes)


def summarize(dataset: Dataset) -> dict[str, Any]:
  """Returns what is told of a dataset, as JSON.

  Args:
    dataset: the dataset.
  """
  return {
    'name': dataset.name,
    'image_shape': list(dataset.image_shape),
    'mean': list(dataset.mean),
    'std': list(dataset.std),
    'notes': list(dataset.notes),
    'classes': [
      {'name': name, 'train': int(train), 'test': int(test)}
      for name, train, test in zip(
        dataset.class_names,
        counts(dataset.train_labels, dataset.num_classes),
        counts(dataset.test_labels, dataset.num_classes),
        strict=True,
      )
    ],
  }


def examples(dataset: Dataset) -> dict[str, np.ndarray]:
  """Returns some training images, the first ones of up to ten classes.

  Args:
    dataset: the dataset.

  Returns:
    `images`, uint8 (n, height, width, channels) of at most 64 pixels a side,
    and `labels`, int32 (n,), in the order of the classes.
  """
  height, width, channels = dataset.image_shape
  scale = min(_SIDE / max(height, width), 1.0)
  size = max(round(width * scale), 1), max(round(height * scale), 1)
  images, labels = [], []
  # Not the first classes alone, which may be alike.
  shown = np.linspace(0, dataset.num_classes - 1, _CLASSES).round()
  for label in np.unique(shown).astype(int):
    rows = np.flatnonzero(dataset.train_labels == label)[:_OF_EACH]
    for image in dataset.train_images[rows]:
      planes = [
        Image.fromarray(image[..., channel]).resize(size, Image.Resampling.BOX)
        for channel in range(channels)
      ]
      images.append(np.stack([np.asarray(plane) for plane in planes], axis=-1))
      labels.append(label)
  return {'images': np.stack(images), 'labels': np.array(labels, np.int32)}


def write(dataset: Dataset, workdir: str) -> None:
  """Writes `images/summary.json` and `images/examples.npz`.

  Args:
    dataset: the dataset.
    workdir: the work directory.
  """
  files.write_json(os.path.join(workdir, SUMMARY_FILE), summarize(dataset))
  files.write_npz(os.path.join(workdir, EXAMPLES_FILE), **examples(dataset))
