"""Where the images of a dataset lie: in memory, or decoded in a file on disk.

Images that are larger than what may lie on a device are decoded once, into a
memory-mapped file of a cache folder, and read from there as they are needed.
The file is filled block by block under a lock: a killed process loses a block,
and others that want the same images wait for the one that decodes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import sys
import time
from typing import Any, NamedTuple

from absl import logging
import numpy as np

from ms_ranas_jax import paths
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import lock
from ms_ranas_jax.runtime import processes
from ms_ranas_jax.runtime import progress

RESIDENT_BYTES = 2**31
_FORMAT = 1  # of the files here, and of how images are decoded
_BLOCK_BYTES = 2**26
# While images are being decoded, and once all of them are.
_PARTIAL, _DONE = 'partial', 'images'
_WAIT_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Storage:
  """What a user says of where images lie.

  Attributes:
    resident_bytes: of training images that may lie in memory and on a device.
    cache_dir: the folder for larger ones; '' is `ms_ranas_jax` in the user's
      cache folder (XDG_CACHE_HOME or ~/.cache).
  """

  resident_bytes: int = RESIDENT_BYTES
  cache_dir: str = ''

  @property
  def root(self) -> pathlib.Path:
    """The folder for decoded images."""
    if self.cache_dir:
      return pathlib.Path(paths.expand(self.cache_dir))
    home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return pathlib.Path(home).expanduser() / 'ms_ranas_jax'


DEFAULT = Storage()
IN_MEMORY = Storage(sys.maxsize)  # whoever reads it wants it all at once


@dataclasses.dataclass(frozen=True)
class Source:
  """Images that can be read in blocks.

  Attributes:
    shape: (images, height, width, channels).
    fill: (number of the first image, uint8 (n, height, width, channels) to fill
      with it and those after it) -> why an image could not be read, by its
      number from 0 on.
    facts: what the images depend on, as JSON; others are other images.
    unit: what is counted while they are read.
  """

  shape: tuple[int, ...]
  fill: Callable[[int, np.ndarray], dict[int, str]]
  facts: Callable[[], Any]
  unit: str = 'picture'


def read(source: Source, storage: Storage) -> tuple[np.ndarray, dict[int, str]]:
  """Reads images to where they are to lie.

  Args:
    source: what is read.
    storage: where to.

  Returns:
    uint8 (images, height, width, channels), in memory or a memory-mapped file
    that is only read, and why images could not be read, by their numbers.

  Raises:
    UsageError: the cache folder cannot be written, or has too little space.
  """
  total = math.prod(source.shape)
  if total <= storage.resident_bytes:
    images = np.zeros(source.shape, np.uint8)
    unreadable: dict[int, str] = {}
    for _, found in _filled(source, images, 0):
      unreadable |= found
    return images, unreadable
  facts = json.dumps([_FORMAT, source.shape, source.facts()])
  name = hashlib.sha256(facts.encode()).hexdigest()[:16]
  folder = storage.root / f'images-{name}'
  kept = _opened(folder, _DONE, source)
  if kept is None or not _is_still_so(kept, source):
    with _alone(folder, total):
      kept = _opened(folder, _DONE, source)
      if kept is None or not _is_still_so(kept, source):
        kept = _decoded(source, folder)
  # Others may be at work with the file: it is never written to again.
  return kept.images, kept.unreadable


class _Kept(NamedTuple):
  images: np.memmap
  done: int
  unreadable: dict[int, str]


def _filled(
  source: Source, images: np.ndarray, done: int
) -> Iterator[tuple[int, dict[int, str]]]:
  """Fills the rest of an array; yields how far, and what was not read."""
  size = max(_BLOCK_BYTES // max(math.prod(source.shape[1:]), 1), 1)
  shown = progress.Progress(
    'dataset',
    len(images),
    done,
    disable=not processes.is_first(),
    unit=source.unit,
  )
  with shown:
    for first in range(done, len(images), size):
      stop = min(first + size, len(images))
      yield stop, source.fill(first, images[first:stop])
      shown.update(stop - first)


def _opened(
  folder: pathlib.Path, name: str, source: Source, mode: str = 'r'
) -> _Kept | None:
  """Returns what a folder has, None where there is nothing that is whole."""
  try:
    about = files.read_json(folder / f'{name}.json')
    unreadable = {int(n): why for n, why in about['unreadable'].items()}
    images = np.lib.format.open_memmap(folder / f'{name}.npy', mode)
    if images.shape == tuple(source.shape) and images.dtype == np.uint8:
      return _Kept(images, about['done'], unreadable)
  except (UsageError, OSError, ValueError, LookupError, TypeError) as error:
    # A cache is only a shortcut: without it the pictures are read.
    logging.debug('No decoded images in %s: %s', folder, error)
  return None


def _is_still_so(kept: _Kept, source: Source) -> bool:
  """Returns whether what could not be read cannot be read today."""
  image = np.empty((1, *source.shape[1:]), np.uint8)
  return all(source.fill(number, image) for number in kept.unreadable)


def _decoded(source: Source, folder: pathlib.Path) -> _Kept:
  """Decodes what is missing, and puts the whole in its place."""
  total = math.prod(source.shape)
  partial, whole = (folder / f'{name}.npy' for name in (_PARTIAL, _DONE))
  with _room(folder, total):
    kept = _opened(folder, _PARTIAL, source, 'r+')
    if kept is None:
      images = np.lib.format.open_memmap(
        partial, 'w+', np.uint8, tuple(source.shape)
      )
      kept = _Kept(images, 0, {})
      # A page of a sparse file that has no room on the disk ends the process.
      if hasattr(os, 'posix_fallocate'):
        with open(partial, 'r+b') as file:
          os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
  unreadable = dict(kept.unreadable)
  for stop, found in _filled(source, kept.images, kept.done):
    unreadable |= found
    with _room(folder, total):
      kept.images.flush()  # before it is said to be there
      files.write_json(
        folder / f'{_PARTIAL}.json', {'done': stop, 'unreadable': unreadable}
      )
  with _room(folder, total):
    os.replace(partial, whole)
    os.replace(folder / f'{_PARTIAL}.json', folder / f'{_DONE}.json')
  logging.info('The decoded images are kept in %s.', folder)
  found = _opened(folder, _DONE, source)
  if found is None:
    raise UsageError(f'{folder} was removed while it was read; start again.')
  return found


@contextlib.contextmanager
def _room(folder: pathlib.Path, total: int) -> Iterator[None]:
  """Says what is to be done where a folder cannot be written."""
  try:
    yield
  except OSError as error:
    raise UsageError(
      f'{folder}: {error}; the decoded images take {total / 1e9:.1f} GB there: '
      'make room, set dataset.cache_dir to another folder, or raise '
      'dataset.resident_bytes to keep them in memory.'
    ) from error


@contextlib.contextmanager
def _alone(folder: pathlib.Path, total: int) -> Iterator[None]:
  """Waits until no other process is at work in a folder."""
  told = False
  with contextlib.ExitStack() as stack:
    while True:
      try:
        with _room(folder, total):
          stack.enter_context(lock.hold(str(folder)))
        break
      except lock.Held:
        if not told:
          logging.info('Another process decodes these images: waiting.')
        told = True
        time.sleep(_WAIT_SECONDS)
    yield
