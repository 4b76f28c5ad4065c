"""What stands before the network in every exported file."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """What brings uint8 images to the range of the network.

  Attributes:
    mean: per channel, of images / 255.
    std: the same.
  """

  mean: Sequence[float]
  std: Sequence[float]

  @property
  def center(self) -> np.ndarray:
    """What is taken off, (channels,) float32."""
    return (255 * np.array(self.mean, np.float64)).astype(np.float32)

  @property
  def factor(self) -> np.ndarray:
    """What the rest is multiplied by, (channels,) float32."""
    return (1 / (255 * np.array(self.std, np.float64))).astype(np.float32)
