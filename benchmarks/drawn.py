"""Numbers that belong to a name, the same in every process.

A tensor of a state dict depends on its name and shape alone, so that two
programs that call it by the same name have the same one. Nothing is 0 or 1,
not even a running average, and signals pass many layers.
"""

from __future__ import annotations

from collections.abc import Sequence
import math
import zlib

import numpy as np

_COUNTER = 'num_batches_tracked'


def _generator(name: str, seed: int) -> np.random.Generator:
  return np.random.default_rng([seed, zlib.crc32(name.encode())])


def tensor(name: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
  """Returns what a tensor of a state dict holds.

  Args:
    name: as PyTorch calls it.
    shape: of it.
    seed: another one gives another network.

  Returns:
    float32; int64 of a counter.
  """
  rng = _generator(name, seed)
  if name.endswith(_COUNTER):
    return np.asarray(rng.integers(1, 1000), np.int64)
  if name.endswith('running_var') or (
    name.endswith('weight') and len(shape) == 1
  ):
    return rng.uniform(0.5, 1.5, shape).astype(np.float32)
  scale = 0.2
  if name.endswith('weight'):
    scale = math.sqrt(2 / math.prod(shape[1:]))
  return (scale * rng.normal(size=shape)).astype(np.float32)


def images(count: int, side: int, seed: int = 0) -> np.ndarray:
  """Returns images, uint8 (count, side, side, 3)."""
  rng = _generator('images', seed)
  return rng.integers(0, 256, (count, side, side, 3), np.uint8)
