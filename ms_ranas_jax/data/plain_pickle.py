"""Reads pickles that hold nothing but arrays, bytes, text and containers.

A pickle is a program: the ordinary unpickler imports and calls whatever the
file names. The published CIFAR batches are pickles all the same, written by
Python 2. This reader knows a handful of names, those by which numpy writes
an array, and puts stand-ins of its own in their places, so that neither numpy's
unpickling nor anything else is called on behalf of the file. Any other name
is refused.
"""

from __future__ import annotations

import os
import pickle
import re
import types
from typing import Any, BinaryIO

import numpy as np

from ms_ranas_jax import errors

# Numbers only: an array of Python objects would be a way around the list.
_DTYPE = re.compile(r'b1|[iu][1248]|f[248]')


class _StandIn:
  """Base of the stand-ins; refuses every state that a file tries to set."""

  __slots__ = ()

  def __setstate__(self, state: object) -> None:
    raise pickle.UnpicklingError('unexpected object state')


class _Dtype(_StandIn):
  """Stands for `numpy.dtype`; takes numeric types alone."""

  __slots__ = ('value',)

  def __init__(self, spec: object, align: object = 0, copy: object = 0):
    del align, copy  # Neither changes the meaning of a plain number.
    spec = _text(spec)
    if not _DTYPE.fullmatch(spec):
      raise pickle.UnpicklingError(f'array of dtype {spec!r}, not of numbers')
    self.value = np.dtype(spec)

  def __setstate__(self, state: Any) -> None:
    _, order, subdtype, names, fields = state[:5]
    if (subdtype, names, fields) != (None, None, None):
      raise pickle.UnpicklingError('array of a compound dtype, not of numbers')
    # numpy refuses what is no byte order.
    # pyrefly: ignore[bad-argument-type]
    self.value = self.value.newbyteorder(_text(order))


class _Array(_StandIn):
  """Stands for `numpy.ndarray`; filled by the state that follows it."""

  __slots__ = ('value',)

  def __setstate__(self, state: Any) -> None:
    _, shape, dtype, fortran, raw = state
    self.value = _array(raw, dtype, shape, 'F' if fortran else 'C')


class _Reconstruct(_StandIn):
  """Stands for `numpy.core.multiarray._reconstruct`."""

  __slots__ = ()

  def __new__(cls, kind: object, shape: object, code: object) -> _Array:
    del shape, code  # Those of an empty array; the state brings the real ones.
    if kind is not _Array:
      raise pickle.UnpicklingError('array of a class other than numpy.ndarray')
    return _Array()


class _FromBuffer(_StandIn):
  """Stands for `numpy.core.numeric._frombuffer`, of pickle protocol 5."""

  __slots__ = ()

  def __new__(
    cls, raw: object, dtype: object, shape: object, order: object
  ) -> np.ndarray:
    return _array(raw, dtype, shape, _text(order))


class _Scalar(_StandIn):
  """Stands for `numpy.core.multiarray.scalar`."""

  __slots__ = ()

  def __new__(cls, dtype: object, raw: object) -> int | float | bool:
    return _array(raw, dtype, (1,), 'C')[0].item()


class _Encode(_StandIn):
  """Stands for `_codecs.encode`: how Python 3 writes bytes in protocol 2."""

  __slots__ = ()

  def __new__(cls, text: Any, encoding: object) -> bytes:
    if _text(encoding) not in ('latin1', 'latin-1'):
      raise pickle.UnpicklingError(f'bytes in the encoding {encoding!r}')
    return text.encode('latin1')


class _EmptyBytes(_StandIn):
  """Stands for `bytes`, which Python 3 calls for none in protocol 2."""

  __slots__ = ()

  def __new__(cls) -> bytes:
    return b''


def _text(value: object) -> str:
  """Returns a name as text; Python 2 wrote names as bytes."""
  return value.decode('latin1') if isinstance(value, bytes) else str(value)


def _array(raw: object, dtype: object, shape: Any, order: str) -> np.ndarray:
  """Returns the array in `raw`; raises UnpicklingError where it is none."""
  if not isinstance(raw, (bytes, bytearray)) or not isinstance(dtype, _Dtype):
    raise pickle.UnpicklingError('an array without its bytes or its dtype')
  flat = np.frombuffer(raw, dtype.value) if raw else np.empty(0, dtype.value)
  # numpy refuses what is no order.
  # pyrefly: ignore[no-matching-overload]
  return flat.reshape(shape, order=order)


_NUMPY_NAMES = types.MappingProxyType(
  {
    ('multiarray', '_reconstruct'): _Reconstruct,
    ('multiarray', 'scalar'): _Scalar,
    ('numeric', '_frombuffer'): _FromBuffer,
  }
)
_NAMES = types.MappingProxyType(
  {
    ('numpy', 'ndarray'): _Array,
    ('numpy', 'dtype'): _Dtype,
    ('_codecs', 'encode'): _Encode,
    ('__builtin__', 'bytes'): _EmptyBytes,
    # numpy 2 renamed its core package; files by either are about.
    **{(f'numpy.core.{m}', n): v for (m, n), v in _NUMPY_NAMES.items()},
    **{(f'numpy._core.{m}', n): v for (m, n), v in _NUMPY_NAMES.items()},
  }
)


class _PlainUnpickler(pickle.Unpickler):
  """An unpickler that looks names up in `_NAMES` and nowhere else."""

  def __init__(self, file: BinaryIO, path: str):
    # Text written by Python 2 may be raw image bytes: leave it as bytes.
    super().__init__(file, encoding='bytes')
    self._path = path

  def find_class(self, module: str, name: str) -> type:
    """Returns the stand-in for a name, or refuses the file."""
    stand_in = _NAMES.get((module, name))
    if stand_in is None:
      raise errors.UsageError(
        f'{self._path} is refused: it is a pickle that asks for '
        f'{module}.{name}, where a published batch holds arrays, bytes and '
        f'plain containers only; nothing in it was run. Fetch the file anew '
        f'from its publisher.'
      )
    return stand_in


def load(path: str | os.PathLike[str]) -> dict[str, object]:
  """Reads a pickled dict of arrays and plain values without running anything.

  Args:
    path: a pickle file of any protocol, written by Python 2 or 3.

  Returns:
    The dict, with its keys as text. Arrays that stand directly in the dict are
    numpy arrays (read-only views of the file's bytes); text written by Python
    2 comes back as bytes.

  Raises:
    UsageError: the file cannot be read, is truncated or no pickle, names
      anything but arrays and plain values, or does not hold a dict.
  """
  path = os.fspath(path)
  try:
    with open(path, 'rb') as file:
      content = _PlainUnpickler(file, path).load()
  except errors.UsageError:
    raise
  except OSError as error:
    raise errors.UsageError(
      f'{path} cannot be read: {error.strerror or error}.'
    ) from error
  # A damaged pickle can raise nearly any exception, as the documentation of
  # the standard library says.
  except Exception as error:
    raise errors.UsageError(
      f'{path} is not a whole pickle of arrays and plain values ({error}); '
      f'it may be truncated: fetch it anew.'
    ) from error
  if not isinstance(content, dict):
    raise errors.UsageError(
      f'{path} holds a {type(content).__name__}, where a published batch '
      f'holds a dict; fetch it anew from its publisher.'
    )
  return {
    _text(key): value.value if isinstance(value, _Array) else value
    for key, value in content.items()
  }
