"""CIFAR from tensorflow-datasets, read with no TensorFlow.

tensorflow-datasets reads a dataset that was prepared as array_record without
TensorFlow; `tfds_prepare` prepares one so.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import hashlib
import json
import os
import pathlib
import re
import time
from typing import Any
import zipfile

from absl import logging
import numpy as np

from ms_ranas_jax import errors
from ms_ranas_jax.data import cifar_files
from ms_ranas_jax.data import image_store
from ms_ranas_jax.runtime import files

FORMAT = 'array_record'
_RECORDS_PER_READ = 2_000
_CACHE_AFTER_S = 2.0  # A read that took longer is worth 185 MB of disk.


def default_data_dir() -> pathlib.Path:
  """Returns the folder that tensorflow-datasets uses unless told otherwise."""
  chosen = os.environ.get('TFDS_DATA_DIR', '')
  return pathlib.Path(chosen or '~/tensorflow_datasets').expanduser()


def prepare_command(name: str, data_dir: pathlib.Path | None = None) -> str:
  """Returns the shell command that downloads and prepares a dataset."""
  command = f'python -m ms_ranas_jax.data.prepare_data --dataset={name}'
  return command + (f' --dir={data_dir}' if data_dir else '')


def find_prepared(name: str, data_dir: pathlib.Path) -> pathlib.Path | None:
  """Returns the folder of the newest prepared version, None if there is none.

  Looks at file names only, so that missing data is noticed at once.

  Args:
    name: 'cifar10' or 'cifar100'.
    data_dir: the data directory of tensorflow-datasets.
  """
  versions = [
    path.parent
    for path in (data_dir / name).glob('*/dataset_info.json')
    if re.fullmatch(r'\d+\.\d+\.\d+', path.parent.name)
  ]
  return max(
    versions,
    key=lambda path: tuple(map(int, path.name.split('.'))),
    default=None,
  )


def read(
  name: str,
  data_dir: pathlib.Path,
  storage: image_store.Storage = image_store.DEFAULT,
) -> cifar_files.Arrays | None:
  """Reads a prepared dataset; downloads nothing.

  A slow read leaves a copy of the arrays in a cache folder, which serves the
  next run for as long as the prepared files stay as they are.

  Args:
    name: 'cifar10' or 'cifar100' (fine labels).
    data_dir: the data directory of tensorflow-datasets.
    storage: says which cache folder.

  Returns:
    The arrays, in the order of the records; None where none is prepared.

  Raises:
    UsageError: what is prepared is in another format or cannot be read, or
      tensorflow-datasets is not installed.
  """
  folder = find_prepared(name, data_dir)
  if folder is None:
    return None
  check_format(folder, prepare_words(name))
  cache, found = _cache_path(folder, storage), fingerprint(folder)
  cached = _read_cache(cache, found)
  if cached is not None:
    return cached
  start = time.monotonic()
  arrays = _read_records(name, folder)
  if time.monotonic() - start > _CACHE_AFTER_S:
    _write_cache(cache, found, arrays)
  return arrays


def import_tfds() -> Any:
  """Imports tensorflow_datasets; half a second, so only where it is needed.

  Returns:
    The module.

  Raises:
    UsageError: it is not installed.
  """
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise errors.UsageError(
      f'tensorflow-datasets cannot be imported ({error}); install it with '
      f'pip install tensorflow-datasets array-record importlib_resources '
      f'pillow.'
    ) from error
  return tfds


def check_format(folder: pathlib.Path, prepare: str) -> None:
  """Refuses a prepared version that only TensorFlow can read.

  Args:
    folder: as from `find_prepared`.
    prepare: says how one that can be read is prepared.

  Raises:
    UsageError: the folder is not an array_record build.
  """
  path = folder / 'dataset_info.json'
  try:
    info = json.loads(path.read_text(encoding='utf-8'))
    file_format = info.get('fileFormat', 'tfrecord')
  except (OSError, ValueError, AttributeError) as error:
    raise errors.UsageError(
      f'{path} cannot be read ({error}); remove {folder}, and {prepare}.'
    ) from error
  if file_format != FORMAT:
    raise errors.UsageError(
      f'{folder} was prepared as {file_format}, which only TensorFlow reads; '
      f'name a folder DIR of its own as dataset.dir, and {prepare}.'
    )


def prepare_words(name: str) -> str:
  """Returns how CIFAR is prepared in a folder DIR, after "and".

  Args:
    name: 'cifar10' or 'cifar100'.
  """
  return f'prepare it there with {prepare_command(name)} --dir=DIR'


@contextlib.contextmanager
def failures_in_words(folder: pathlib.Path, prepare: str) -> Iterator[None]:
  """Says of what goes wrong with prepared files where they are.

  Args:
    folder: of a prepared version.
    prepare: says how it is prepared.

  Raises:
    UsageError: instead of what its readers raise, which their file formats
      happen to raise.
  """
  try:
    yield
  except errors.UsageError:
    raise
  except (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    AttributeError,
    TypeError,
  ) as error:
    raise errors.UsageError(
      f'{folder} cannot be read ({error}); remove it, and {prepare}.'
    ) from error


def _read_records(name: str, folder: pathlib.Path) -> cifar_files.Arrays:
  """Returns the arrays of a prepared version."""
  tfds = import_tfds()
  with failures_in_words(folder, prepare_words(name)):
    builder = tfds.builder_from_directory(str(folder))
    parts = []
    for split in ('train', 'test'):
      source = builder.as_data_source(split=split)
      images, labels = [], []
      for start in range(0, len(source), _RECORDS_PER_READ):
        stop = min(start + _RECORDS_PER_READ, len(source))
        # In batch: record by record takes several times as long.
        for record in source.__getitems__(list(range(start, stop))):
          images.append(record['image'])
          labels.append(record['label'])
      parts += [np.stack(images), np.asarray(labels, np.int32)]
  return cifar_files.Arrays(*parts)


def fingerprint(folder: pathlib.Path) -> str:
  """Returns a digest that changes when the prepared files do.

  Args:
    folder: of a prepared version.
  """
  facts = [
    (path.name, path.stat().st_size, path.stat().st_mtime_ns)
    for path in sorted(folder.iterdir())
  ]
  return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _cache_path(
  folder: pathlib.Path, storage: image_store.Storage
) -> pathlib.Path:
  """Returns where the arrays of a prepared folder are cached."""
  key = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
  return storage.root / f'{folder.parent.name}-{key}.npz'


def _read_cache(
  path: pathlib.Path, fingerprint: str
) -> cifar_files.Arrays | None:
  """Returns the cached arrays, None unless they are whole and up to date."""
  try:
    # NumPy leaves a file that it opened itself open when it is damaged.
    with open(path, 'rb') as file, np.load(file, allow_pickle=False) as cache:
      if cache['fingerprint'].item() != fingerprint:
        return None
      return cifar_files.Arrays(*(cache[k] for k in cifar_files.Arrays._fields))
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    # A cache is only a shortcut: without it the records are read.
    logging.debug('No cached arrays in %s: %s', path, error)
    return None


def _write_cache(
  path: pathlib.Path, fingerprint: str, arrays: cifar_files.Arrays
) -> None:
  """Stores the arrays; does without where the folder cannot be written."""
  try:
    files.write_npz(path, fingerprint=fingerprint, **arrays._asdict())
  except OSError as error:
    logging.info('The arrays are not cached: %s', error)
  else:
    logging.info('The arrays are cached in %s.', path)
