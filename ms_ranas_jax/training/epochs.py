"""Going over a dataset epoch by epoch, in chunks; shared by all loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import time
from typing import Any

import jax
import numpy as np

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime.progress import Progress

PyTree = Any


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


def run_epoch(
  chunk: Callable[[PyTree, PyTree, np.ndarray], tuple[PyTree, PyTree]],
  state: PyTree,
  data: PyTree,
  batches: np.ndarray,
  chunk_steps: int,
  progress: Progress,
  shown: Callable[[Mapping[str, Any]], Mapping[str, float]],
) -> Iterator[tuple[PyTree, dict[str, Any]]]:
  """Runs the chunks of one epoch.

  Args:
    chunk: a compiled chunk, see `parallel.compile_chunk`.
    state: before the epoch; donated.
    data: what the steps read.
    batches: (steps, ...) indices of the epoch.
    chunk_steps: steps of a call.
    progress: told of every chunk.
    shown: metrics -> what of it the progress shows.

  Yields:
    After each chunk the state, and its metrics with 'steps' and 'seconds'.
  """
  for start in range(0, len(batches), chunk_steps):
    part = batches[start : start + chunk_steps]
    began = time.monotonic()
    state, metrics = chunk(state, data, part)
    record = {k: np.asarray(v).tolist() for k, v in metrics.items()}
    jax.block_until_ready(state)
    record |= {
      'steps': len(part),
      'seconds': round(time.monotonic() - began, 4),
    }
    progress.update(len(part), shown(record))
    yield state, record
