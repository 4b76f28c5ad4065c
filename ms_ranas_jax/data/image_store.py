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
import os
import pathlib
import sys
import time
from typing import Any

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
_ARRAY, _ABOUT = 'images.npy', 'about.json'
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
  if int(np.prod(source.shape, dtype=object)) <= storage.resident_bytes:
    images = np.zeros(source.shape, np.uint8)
    unreadable: dict[int, str] = {}
    for _, found in _blocks(source, images, 0):
      unreadable |= found
    return images, unreadable
  facts = json.dumps([_FORMAT, source.shape, source.facts()])
  name = hashlib.sha256(facts.encode()).hexdigest()[:16]
  folder = storage.root / f'images-{name}'
  try:
    with _alone(folder):
      return _cached(source, folder)
  except OSError as error:
    raise UsageError(
      f'{folder}: {error}; the decoded images take '
      f'{np.prod(source.shape) / 1e9:.1f} GB there: make room, set '
      'dataset.cache_dir to another folder, or raise dataset.resident_bytes '
      'to keep them in memory.'
    ) from error


def _blocks(
  source: Source, images: np.ndarray, done: int
) -> Iterator[tuple[int, dict[int, str]]]:
  """Fills the rest of an array; yields how far, and what was not read."""
  size = max(_BLOCK_BYTES // int(np.prod(source.shape[1:])), 1)
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


def _cached(
  source: Source, folder: pathlib.Path
) -> tuple[np.ndarray, dict[int, str]]:
  """Returns decoded images, after decoding what is missing of them."""
  images, done, unreadable = _opened(folder, source.shape)
  for stop, found in _blocks(source, images, done):
    unreadable |= found
    images.flush()  # before it is said to be there
    files.write_json(
      folder / _ABOUT,
      {'shape': source.shape, 'done': stop, 'unreadable': unreadable},
    )
  if done < len(images):
    logging.info('The decoded images are kept in %s.', folder)
  return np.lib.format.open_memmap(folder / _ARRAY, mode='r'), unreadable


def _opened(
  folder: pathlib.Path, shape: tuple[int, ...]
) -> tuple[np.memmap, int, dict[int, str]]:
  """Returns the array, how many images it has, and what was not read."""
  path = folder / _ARRAY
  try:
    kept = files.read_json(folder / _ABOUT)
    unreadable = {int(n): why for n, why in kept['unreadable'].items()}
    return np.lib.format.open_memmap(path, 'r+'), kept['done'], unreadable
  except (UsageError, OSError, ValueError, LookupError) as error:
    # A cache is only a shortcut: without it the pictures are read.
    logging.debug('No decoded images in %s: %s', folder, error)
  images = np.lib.format.open_memmap(path, 'w+', np.uint8, shape)
  # A page of a sparse file for which the disk has no room ends the process.
  if hasattr(os, 'posix_fallocate'):
    with open(path, 'r+b') as file:
      os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
  return images, 0, {}


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
  """Waits until no other process is at work in a folder."""
  told = False
  with contextlib.ExitStack() as stack:
    while True:
      try:
        stack.enter_context(lock.hold(str(folder)))
        break
      except lock.Held:
        if not told:
          logging.info('Another process decodes these images: waiting.')
        told = True
        time.sleep(_WAIT_SECONDS)
    yield
