"""CIFAR wherever it is: as published, or prepared by tensorflow-datasets."""

from __future__ import annotations

import pathlib

from ms_ranas_jax import errors
from ms_ranas_jax.data import cifar_files
from ms_ranas_jax.data import image_store
from ms_ranas_jax.data import tfds_source
from ms_ranas_jax.runtime import files


def read(
  name: str, directory: str, storage: image_store.Storage
) -> cifar_files.Arrays:
  """Reads CIFAR-10 or CIFAR-100.

  Args:
    name: 'cifar10' or 'cifar100'.
    directory: see `datasets.load_dataset`.
    storage: says where a copy of what was slow to read is kept.

  Returns:
    Images and labels.

  Raises:
    UsageError: it is not there, or cannot be read; the message says what is
      there instead.
  """
  if directory:
    path = pathlib.Path(directory)
    if not path.is_dir():
      raise errors.UsageError(f'dataset.dir: {path} {_no_folder(name, path)}')
    arrays = cifar_files.read(name, path)
  else:
    path = tfds_source.default_data_dir()
    arrays = None
  if arrays is None:
    arrays = tfds_source.read(name, path, storage)
  if arrays is None:
    raise errors.UsageError(_missing_cifar(name, directory, path))
  return arrays


def _no_folder(name: str, path: pathlib.Path) -> str:
  """Returns what a path without a folder is, and what to do about it."""
  if path.suffix == '.npz' and path.is_file():
    return "is a file of arrays; set dataset.name to 'npz'."
  folder = f'the folder that a published archive of {name} unpacks to'
  if files.is_archive(path):
    return f'is an archive; unpack it, and give {folder}.'
  if path.exists():
    return f'is a file; give {folder}.'
  return (
    f'does not exist; give {folder}, or run '
    f'{tfds_source.prepare_command(name, path)}.'
  )


def _missing_cifar(name: str, directory: str, path: pathlib.Path) -> str:
  """Returns the message for a place without the dataset."""
  if not directory:
    return (
      f'{name} is not prepared in {path}; run '
      f'{tfds_source.prepare_command(name)}, or set dataset.dir to a folder '
      f'that has it.'
    )
  for other in cifar_files.NUM_CLASSES:
    if other != name and (
      cifar_files.find_layout(other, path)
      or tfds_source.find_prepared(other, path)
    ):
      return (
        f'dataset.dir: {path} holds {other}, not {name}; set dataset.name to '
        f'{other!r}, or dataset.dir to a folder with {name}.'
      )
  for archive in sorted(path.glob('*cifar*')):
    if files.is_archive(archive):
      return (
        f'dataset.dir: {path} holds {archive.name} as it is; unpack it there.'
      )
  python = cifar_files.PYTHON_LAYOUTS[name].folder
  binary = cifar_files.BINARY_LAYOUTS[name].folder
  return (
    f'dataset.dir: {path} has neither {python}, {binary} nor a prepared '
    f'{name}; give a folder that has one, or run '
    f'{tfds_source.prepare_command(name, path)}.'
  )
