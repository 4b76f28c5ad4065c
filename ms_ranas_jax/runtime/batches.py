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


def balanced_batches(
  indices: np.ndarray,
  labels: np.ndarray,
  batch_size: int,
  steps: int,
  seed: tuple[int, ...],
) -> np.ndarray:
  """Draws batches in which all classes come equally often.

  Images of a class take turns: none comes a second time in an epoch before all
  have come once.

  Args:
    indices: (examples,) int.
    labels: (examples,) int, of the same examples.
    batch_size: of all devices together.
    steps: batches to draw.
    seed: of this epoch.

  Returns:
    (steps, batch_size) int32.
  """
  random = np.random.default_rng(seed)
  total = steps * batch_size
  classes = random.permutation(np.unique(labels))
  # Some come once more where the images cannot be shared out evenly.
  counts = np.full(len(classes), total // len(classes))
  counts[: total % len(classes)] += 1
  chosen = []
  for label, count in zip(classes, counts, strict=True):
    own = indices[labels == label]
    turns = -(-count // len(own))
    order = [random.permutation(own) for _ in range(turns)]
    chosen.append(np.concatenate(order)[:count] if turns else own[:0])
  drawn = random.permutation(np.concatenate(chosen))
  return drawn.reshape(steps, batch_size).astype(np.int32)
