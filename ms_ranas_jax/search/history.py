"""The alphas of a search over its epochs, and the file that keeps them.

`search/alphas.npz` holds the alphas of one seed at the start and after every
epoch: `normal` and `reduction`, (epochs + 1, edges, operations). With several
seeds the record is `search/alphas_by_seed.npz`, with an axis of seeds in front,
and `alphas.npz` is written in the end, of one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
import os

import numpy as np

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import processes
from ms_ranas_jax.search import alphas as alphas_lib

ONE_FILE = 'alphas.npz'
ALL_FILE = 'alphas_by_seed.npz'
# kind -> alphas at one time; (seeds, edges, operations) with several seeds.
Moment = dict[str, np.ndarray]


def to_host(alphas: alphas_lib.Alphas) -> Moment:
  """Copies alphas, which the next step may donate."""
  return {kind: np.array(value) for kind, value in alphas.items()}


def of_seed(history: Sequence[Moment], index: int | None) -> list[Moment]:
  """Returns the history of one seed.

  Args:
    history: of all of them.
    index: which one; None where there is one, with no axis of seeds.
  """
  if index is None:
    return list(history)
  return [{kind: a[index] for kind, a in m.items()} for m in history]


def write(directory: str, history: Sequence[Moment], by_seed: bool) -> None:
  """Writes a history; the first process does.

  Args:
    directory: the folder of the search.
    history: at the start and after every epoch.
    by_seed: whether it has an axis of seeds.
  """
  if not processes.is_first():
    return
  files.write_npz(
    os.path.join(directory, ALL_FILE if by_seed else ONE_FILE),
    **{
      kind: np.stack([m[kind] for m in history], axis=1 if by_seed else 0)
      for kind in history[0]
    },
  )


def read(directory: str, epoch: int, by_seed: bool) -> list[Moment]:
  """Reads the history at the start and after each epoch up to this one.

  Args:
    directory: the folder of the search.
    epoch: the whole epochs that the checkpoints beside it know of.
    by_seed: whether it has an axis of seeds.

  Raises:
    UsageError: the file is missing, damaged or too short.
  """
  path = os.path.join(directory, ALL_FILE if by_seed else ONE_FILE)
  try:
    kinds = files.read_npz(path)
  except UsageError as error:
    raise UsageError(
      f'{error}; the checkpoints beside it are of epoch {epoch}, so the last '
      f'resort is to remove {directory} and search anew.'
    ) from error
  if by_seed:
    kinds = {kind: np.moveaxis(v, 1, 0) for kind, v in kinds.items()}
  if any(len(values) <= epoch for values in kinds.values()):
    raise UsageError(
      f'{path} ends before epoch {epoch}, which the checkpoints beside it are '
      f'of; bring it back, or remove {directory} to search anew.'
    )
  return [{k: v[e] for k, v in kinds.items()} for e in range(epoch + 1)]
