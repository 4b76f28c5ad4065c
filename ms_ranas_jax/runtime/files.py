"""Files that are either whole or absent: atomic writes, and reading them.

Every writer fills a temporary file in the folder of the target, brings it to
the disk and renames it over the target. A reader, and a run that goes on after
a crash, therefore sees the old content or the new one, never a part. In an
object store (`gs://...`, through epath) an object is whole or absent anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import io
import json
import os
import pathlib
import secrets
import tarfile
from typing import Any, BinaryIO
import zipfile
import zlib

from etils import epath
import numpy as np

from ms_ranas_jax.errors import UsageError


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Returns whether a path is in an object store and not in a file system."""
  return '://' in os.fspath(path)


def is_file(path: str | os.PathLike[str]) -> bool:
  """Returns whether there is such a file, local or remote."""
  return epath.Path(path).is_file()


def is_directory(path: str | os.PathLike[str]) -> bool:
  """Returns whether there is such a folder, local or remote."""
  return epath.Path(path).is_dir()


def exists(path: str | os.PathLike[str]) -> bool:
  """Returns whether there is such a file or folder, local or remote."""
  return epath.Path(path).exists()


def move(
  source: str | os.PathLike[str], target: str | os.PathLike[str]
) -> None:
  """Moves a file or folder, making the folder of its new place.

  Args:
    source: what there is; its new place is in the same file system.
    target: what there is not.
  """
  if exists(target):
    raise FileExistsError(f'{target} is there already')
  make_directory(epath.Path(target).parent)
  epath.Path(source).rename(target)


def is_archive(path: str | os.PathLike[str]) -> bool:
  """Returns whether a local path is an archive that has to be unpacked."""
  return os.path.isfile(path) and (
    tarfile.is_tarfile(path) or zipfile.is_zipfile(path)
  )


def make_directory(path: str | os.PathLike[str]) -> None:
  """Makes a folder, local or remote, where it is missing."""
  epath.Path(path).mkdir(parents=True, exist_ok=True)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
  """Reads a file, local or remote."""
  return epath.Path(path).read_bytes()


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
  """Writes bytes atomically, making the folder where it is missing.

  Args:
    path: the file to write or to replace.
    data: its whole content.
  """
  if is_remote(path):
    epath.Path(path).write_bytes(data)
    return
  with _atomic(path) as file:
    file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes text atomically as UTF-8, with its line ends as they are.

  Args:
    path: the file to write or to replace.
    text: its whole content.
  """
  write_bytes(path, text.encode('utf-8'))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes a value atomically as indented JSON.

  Args:
    path: the file to write or to replace.
    value: what `json` takes, and arrays and scalars of NumPy and JAX in it,
      which become lists and numbers.

  Raises:
    ValueError: a number is not finite; JSON has no word for it.
    TypeError: something in the value has no JSON form.
  """
  try:
    text = json.dumps(
      value, indent=2, allow_nan=False, ensure_ascii=False, default=_plain
    )
  except (TypeError, ValueError) as error:
    raise type(error)(f'{path} was not written: {error}') from error
  write_text(path, text + '\n')


def write_npz(path: str | os.PathLike[str], /, **arrays: Any) -> None:
  """Writes named arrays atomically as an uncompressed `.npz` file.

  Args:
    path: the file to write or to replace; the name is taken as it is.
    **arrays: arrays of NumPy or JAX, or nested lists of numbers. Dtypes that
      the format does not know (bfloat16, objects) are refused, because a
      reader would not get back what was written.

  Raises:
    ValueError: an array has such a dtype.
  """
  converted: dict[str, Any] = {
    name: np.asarray(array) for name, array in arrays.items()
  }
  for name, array in converted.items():
    if array.dtype.hasobject or array.dtype.kind == 'V':
      raise ValueError(
        f'{path} was not written: array {name!r} has dtype {array.dtype}, '
        'which npz cannot hold; convert it to float32 first'
      )
  buffer = io.BytesIO()
  np.savez(buffer, **converted)
  write_bytes(path, buffer.getvalue())


def read_json(path: str | os.PathLike[str]) -> Any:
  """Reads a JSON file.

  Args:
    path: the file, in any encoding that JSON has, with or without a byte order
      mark.

  Returns:
    The value in it.

  Raises:
    UsageError: the file is missing, cannot be read or is not JSON.
  """
  try:
    return json.loads(read_bytes(path), parse_constant=_refuse_constant)
  except FileNotFoundError as error:
    raise UsageError(
      f'{path} does not exist: check the path, or run the stage that writes it'
    ) from error
  except OSError as error:
    raise UsageError(
      f'{path} cannot be read ({error.strerror}): check the path and its '
      'permissions'
    ) from error
  except (ValueError, RecursionError) as error:
    raise UsageError(
      f'{path} is not valid JSON ({error}): mend the file, or delete it and '
      'run the stage that writes it again'
    ) from error


def read_npz(
  path: str | os.PathLike[str],
  mend: str = (
    'bring it back from a copy, or run the stage that writes it again'
  ),
) -> dict[str, np.ndarray]:
  """Reads all arrays of a `.npz` file; nothing pickled is read.

  Args:
    path: the file.
    mend: what to do about a file that cannot be read.

  Returns:
    The arrays by name.

  Raises:
    UsageError: the file is missing, cannot be read or is damaged.
  """
  try:
    # Read here: NumPy leaves a damaged file that it opened itself open.
    with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as arrays:
      return {name: arrays[name] for name in arrays.files}
  # A file that is no archive is loaded as one array, which is no context.
  except (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    AttributeError,
    RuntimeError,  # encrypted, or packed in a way that Python does not know
    zipfile.BadZipFile,
    zlib.error,
  ) as error:
    raise UsageError(f'{path} cannot be read ({error}): {mend}') from error


@contextlib.contextmanager
def _atomic(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
  """Yields a file that takes the place of `path` once the block succeeds."""
  target = pathlib.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  temporary = target.parent / f'.{secrets.token_hex(8)}.tmp'
  try:
    # open, not tempfile: the file gets the permissions that the umask gives
    # to any other file, not 0600.
    with open(temporary, 'xb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, target)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
  _sync_directory(target.parent)


def _sync_directory(directory: pathlib.Path) -> None:
  """Brings a rename to the disk, where the system can do that."""
  # Not every system and file system can: the content is safe without it, only
  # the moment of the rename is not.
  with contextlib.suppress(OSError):
    descriptor = os.open(directory, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def _plain(value: Any) -> Any:
  """Turns an array or scalar into lists and numbers, for `json.dumps`."""
  if hasattr(value, '__array__'):
    return np.asarray(value).tolist()
  raise TypeError(f'{type(value).__name__} has no JSON form')


def _refuse_constant(name: str) -> None:
  """Refuses what Python's reader takes beyond JSON."""
  raise ValueError(f'{name} is not a JSON value')
