"""A user's own images, from one .npz file."""

from __future__ import annotations

import pathlib
import tarfile
from typing import NamedTuple
import zipfile
import zlib

import numpy as np

from ms_ranas_jax import errors


class Arrays(NamedTuple):
  """The arrays of the file, by their names in it.

  Attributes:
    x_train: uint8 (N, H, W, C).
    y_train: int32 (N,), from 0.
    x_test: uint8 (M, H, W, C).
    y_test: int32 (M,), from 0, none above those of `y_train`.
  """

  x_train: np.ndarray
  y_train: np.ndarray
  x_test: np.ndarray
  y_test: np.ndarray


def read(path: str) -> Arrays:
  """Reads and checks a .npz file of labelled images.

  Args:
    path: a file with x_train and x_test, uint8 (N, H, W, C) or (N, H, W), and
      y_train and y_test, integers (N,) or (N, 1) that number the classes from
      0. Nothing pickled is read.

  Returns:
    The arrays, images with a channel axis and labels as int32.

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
  raw = _load(file)
  arrays = Arrays(
    _images(file, 'x_train', raw['x_train']),
    _labels(file, 'y_train', raw['y_train'], len(raw['x_train'])),
    _images(file, 'x_test', raw['x_test']),
    _labels(file, 'y_test', raw['y_test'], len(raw['x_test'])),
  )
  if arrays.x_train.shape[1:] != arrays.x_test.shape[1:]:
    raise errors.UsageError(
      f'{file}: the images of x_test are {arrays.x_test.shape[1:]}, those of '
      f'x_train {arrays.x_train.shape[1:]}; bring them to one size.'
    )
  if arrays.y_test.max() > arrays.y_train.max():
    raise errors.UsageError(
      f'{file}: y_test has the label {arrays.y_test.max()}, y_train none '
      f'above {arrays.y_train.max()}; leave out images of classes that cannot '
      f'be learnt.'
    )
  return arrays


def _load(file: pathlib.Path) -> dict[str, np.ndarray]:
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
      return {name: content[name] for name in names}
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


def _images(file: pathlib.Path, name: str, images: np.ndarray) -> np.ndarray:
  """Returns images (N, H, W, C)."""
  if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
    raise errors.UsageError(
      f'{file}: {name} is {images.dtype} {images.shape}; give uint8 images '
      f'(N, H, W, C) or (N, H, W) of 0 to 255, at least one.'
    )
  if images.ndim == 3:
    return images[..., None]
  if images.shape[1] in (1, 3) and images.shape[2] == images.shape[3] > 4:
    raise errors.UsageError(
      f'{file}: {name} is {images.shape}, which looks like channels first; '
      f'give (N, H, W, C): {name}.transpose(0, 2, 3, 1).'
    )
  return images


def _labels(
  file: pathlib.Path, name: str, labels: np.ndarray, num_images: int
) -> np.ndarray:
  """Returns labels (N,) as int32."""
  if labels.ndim == 2 and labels.shape[1] == 1:  # As Keras stores them.
    labels = labels[:, 0]
  if labels.dtype.kind not in 'iu' or labels.shape != (num_images,):
    raise errors.UsageError(
      f'{file}: {name} is {labels.dtype} {labels.shape}; give one integer '
      f'label for each of the {num_images} images.'
    )
  if labels.min() < 0 or labels.max() > np.iinfo(np.int32).max:
    raise errors.UsageError(
      f'{file}: {name} runs from {labels.min()} to {labels.max()}; number the '
      f'classes from 0.'
    )
  return labels.astype(np.int32)
