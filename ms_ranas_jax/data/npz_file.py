"""A user's own images, from one .npz file."""

from __future__ import annotations

import math
import pathlib
import tarfile
from typing import Any, NamedTuple
import zipfile
import zlib

import numpy as np

from ms_ranas_jax import errors
from ms_ranas_jax.data import image_layout
from ms_ranas_jax.data import image_store

_BYTES_PER_READ = 2**20


class Arrays(NamedTuple):
  """The arrays of the file, by their names in it.

  Attributes:
    x_train: uint8 (N, H, W, C).
    y_train: int32 (N,), 0 to the number of classes - 1.
    x_test: uint8 (M, H, W, C).
    y_test: int32 (M,), the same.
  """

  x_train: np.ndarray
  y_train: np.ndarray
  x_test: np.ndarray
  y_test: np.ndarray


def read(
  path: str, storage: image_store.Storage = image_store.DEFAULT
) -> tuple[Arrays, tuple[str, ...]]:
  """Reads and checks a .npz file of labelled images.

  Args:
    path: a file with x_train and x_test, uint8 (N, H, W, C) or (N, H, W), and
      y_train and y_test, integers of at least 0, (N,) or (N, 1). The classes
      are the labels that y_train has, in their order: 1 to 10 are ten classes,
      and so are ten numbers up to 999. Nothing pickled is read.
    storage: where images are to lie.

  Returns:
    The arrays, images with a channel axis and labels as the numbers of their
    classes; and the label of each class, as its name.

  Raises:
    UsageError: the file is missing or unreadable, or an array of it is
      missing or does not fit.
  """
  file = pathlib.Path(path)
  if not path or not file.is_file():
    raise errors.UsageError(
      f'dataset.dir is {path!r}, not a file; for npz give the path of a .npz '
      f'file with {", ".join(Arrays._fields)}.'
    )
  raw = _load(file, storage)
  x_train, x_test = (
    _images(file, f'x_{part}', raw[f'x_{part}'], np.size(raw[f'y_{part}']))
    for part in ('train', 'test')
  )
  train, test = (
    _labels(file, f'y_{part}', raw[f'y_{part}'], len(raw[f'x_{part}']))
    for part in ('train', 'test')
  )
  ids, y_train = np.unique(train, return_inverse=True)
  unknown = np.setdiff1d(test, ids)
  if unknown.size:
    raise errors.UsageError(
      f'{file}: y_test has the labels {errors.listed(unknown.tolist())}, of '
      'which y_train has no image; leave out images of classes that cannot '
      'be learnt.'
    )
  arrays = Arrays(
    x_train,
    y_train.astype(np.int32),
    x_test,
    np.searchsorted(ids, test).astype(np.int32),
  )
  if arrays.x_train.shape[1:] != arrays.x_test.shape[1:]:
    raise errors.UsageError(
      f'{file}: the images of x_test are {arrays.x_test.shape[1:]}, those of '
      f'x_train {arrays.x_train.shape[1:]}; bring them to one size.'
    )
  return arrays, tuple(map(str, ids))


def _load(
  file: pathlib.Path, storage: image_store.Storage
) -> dict[str, np.ndarray]:
  """Returns the four arrays as they are in the file."""
  names = Arrays._fields
  if tarfile.is_tarfile(file):
    raise errors.UsageError(
      f'dataset.dir: {file} is an archive; unpack it, and give the .npz file '
      'that comes out.'
    )
  if not zipfile.is_zipfile(file):
    raise errors.UsageError(
      f'dataset.dir: {file} is not a whole .npz file; write one with '
      f'numpy.savez(path, {", ".join(f"{name}=..." for name in names)}).'
    )
  try:
    # NumPy leaves a file that it opened itself open when it is damaged.
    with (
      open(file, 'rb') as stream,
      np.load(stream, allow_pickle=False) as content,
    ):
      for name in names:
        if name not in content:
          raise errors.UsageError(
            f'{file} has no array {name!r} (it has '
            f'{", ".join(content.files)}); it needs {", ".join(names)}.'
          )
      return {
        name: _stored(file, f'{name}.npy', storage)
        if name.startswith('x_') and f'{name}.npy' in content.zip.namelist()
        else content[name]
        for name in names
      }
  except errors.UsageError:
    raise
  except (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,  # encrypted, or packed in a way that Python does not know
    zipfile.BadZipFile,
    zlib.error,
  ) as error:
    raise errors.UsageError(
      f'{file} cannot be read ({error}); write it anew with numpy.savez, as '
      f'arrays of numbers.'
    ) from error


def _stored(
  file: pathlib.Path, member_name: str, storage: image_store.Storage
) -> np.ndarray:
  """Returns an array, in memory or unpacked on disk, see `image_store`."""
  with zipfile.ZipFile(file) as archive, archive.open(member_name) as member:
    version = np.lib.format.read_magic(member)
    header = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    shape, fortran_order, dtype = header(member) if header else ((), True, None)
    if (
      fortran_order
      or dtype != np.uint8
      or len(shape) not in (3, 4)
      or 0 in shape
    ):
      member.seek(0)  # to be refused, or turned around in memory
      return np.lib.format.read_array(member, allow_pickle=False)
    begin, example = member.tell(), math.prod(shape[1:])

    def take(count: int) -> bytes:
      read = member.read(min(count, _BYTES_PER_READ))
      if not read:
        raise ValueError(f'{member_name} ends too early')
      return read

    def fill(first: int, images: np.ndarray) -> dict[int, str]:
      # Read, not sought: what is passed over counts for the checksum.
      while member.tell() < begin + first * example:
        take(begin + first * example - member.tell())
      flat, done = images.reshape(-1), 0
      while done < flat.size:
        read = take(flat.size - done)
        flat[done : done + len(read)] = np.frombuffer(read, np.uint8)
        done += len(read)
      return {}

    def facts() -> list[Any]:
      status = file.stat()
      place = str(file.resolve())
      return [place, status.st_size, status.st_mtime_ns, member_name]

    channels = (*shape, 1) if len(shape) == 3 else shape
    images, _ = image_store.read(
      image_store.Source(channels, fill, facts, 'image'), storage
    )
    return images.reshape(shape)


def _images(
  file: pathlib.Path, name: str, images: np.ndarray, num_labels: int
) -> np.ndarray:
  """Returns images (N, H, W, C)."""
  if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
    raise errors.UsageError(
      f'{file}: {name} is {images.dtype} {images.shape}; give uint8 images '
      f'(N, H, W, C) or (N, H, W) of 0 to 255, at least one.'
    )
  if len(images) != num_labels == images.shape[-1]:
    order = (images.ndim - 1, *range(images.ndim - 1))
    raise errors.UsageError(
      f'{file}: {name} is {images.shape}, which looks as if the images stood '
      f'last; give (N, H, W, C): {name}.transpose{order}.'
    )
  if images.ndim == 3:
    return images[..., None]
  image_layout.check(f'{file}: {name}', images.shape)
  return images


def _labels(
  file: pathlib.Path, name: str, labels: np.ndarray, num_images: int
) -> np.ndarray:
  """Returns labels (N,)."""
  if labels.ndim == 2 and labels.shape[1] == 1:  # As Keras stores them.
    labels = labels[:, 0]
  if labels.dtype.kind not in 'iu' or labels.shape != (num_images,):
    raise errors.UsageError(
      f'{file}: {name} is {labels.dtype} {labels.shape}; give one integer '
      f'label for each of the {num_images} images.'
    )
  if labels.min() < 0:
    raise errors.UsageError(
      f'{file}: {name} has the label {labels.min()}; number the classes from '
      '0, and leave out images without a label.'
    )
  return labels
