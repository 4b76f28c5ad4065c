"""Which images and labels a network was trained on, as checksums.

They stand in the model folder, so that a network is never judged on, or trained
further with, other images than those it knows, wherever these lie.
"""

from __future__ import annotations

from collections.abc import Mapping
import hashlib
from typing import Any

import numpy as np

from ms_ranas_jax.data.datasets import Dataset

TRAINING = ('train_images', 'train_labels', 'held_out')
TEST = ('test_images', 'test_labels')


def of_array(array: np.ndarray) -> dict[str, Any]:
  """Returns the fingerprint of an array: its shape and a SHA-256 checksum.

  Args:
    array: of integers; the same on machines of either byte order.
  """
  plain = np.ascontiguousarray(array, array.dtype.newbyteorder('<'))
  return {
    'shape': list(array.shape),
    'sha256': hashlib.sha256(plain.data).hexdigest(),
  }


def of_dataset(dataset: Dataset, held_out: np.ndarray) -> dict[str, Any]:
  """Returns the fingerprints of all parts of a dataset.

  Args:
    dataset: the dataset.
    held_out: indices of the training images that thresholds are solved on.
  """
  parts = {name: getattr(dataset, name) for name in (*TRAINING[:2], *TEST)} | {
    'held_out': np.sort(held_out)
  }
  return {name: of_array(parts[name]) for name in (*TRAINING, *TEST)}


def differences(
  recorded: Mapping[str, Any], found: Mapping[str, Any]
) -> list[str]:
  """Says of every part that is another one now how it differs.

  Args:
    recorded: as `of_dataset` returns them, or a part of it.
    found: the same parts, now.

  Returns:
    A phrase for each part that differs; none where all are the same.
  """
  phrases = []
  for name, then in recorded.items():
    now = found[name]
    if then['shape'] != now['shape']:
      phrases.append(f'{name} were {then["shape"]}, now {now["shape"]}')
    elif then['sha256'] != now['sha256']:
      phrases.append(
        f'{name} are other ones of the same shape (SHA-256 was '
        f'{then["sha256"][:12]}, now {now["sha256"][:12]})'
      )
  return phrases
