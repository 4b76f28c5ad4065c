"""Going over a dataset epoch by epoch; shared by all loops."""

from __future__ import annotations

import numpy as np

from ms_ranas_jax.errors import UsageError


def steps_per_epoch(num_examples: int, batch_size: int, field: str) -> int:
  """Returns the whole batches in an epoch; the rest of the images is left out.

  Args:
    num_examples: training images.
    batch_size: of all devices together.
    field: the config field of the batch size, for the error message.

  Raises:
    UsageError: there is not one whole batch.
  """
  steps = num_examples // batch_size
  if not steps:
    raise UsageError(
      f'{field} = {batch_size}, but there are {num_examples} images for it; '
      'give a smaller batch.'
    )
  return steps


def epoch_batches(
  indices: np.ndarray, batch_size: int, steps: int, seed: tuple[int, ...]
) -> np.ndarray:
  """Shuffles indices and cuts them into batches.

  Args:
    indices: (examples,) int.
    batch_size: of all devices together.
    steps: batches to cut; the rest is left out of this epoch.
    seed: of this epoch's order.

  Returns:
    (steps, batch_size) int32.
  """
  order = np.random.default_rng(seed).permutation(len(indices))
  chosen = indices[order[: steps * batch_size]]
  return chosen.reshape(steps, batch_size).astype(np.int32)
