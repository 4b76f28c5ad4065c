"""State dicts of PyTorch, from files that need no PyTorch."""

from __future__ import annotations

import os
import pathlib

import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from ms_ranas_jax import paths
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import files

SUFFIXES = ('.safetensors', '.npz')
# What PyTorch's own files end in.
_PICKLES = ('.pt', '.pth', '.tar', '.bin', '.ckpt', '.pkl')
# What torch.nn.DataParallel puts before every name.
_PARALLEL = 'module.'
_SAVE = 'safetensors.torch.save_file(state, FILE)'


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Reads a state dict.

      arrays = read('darts.safetensors')

  Args:
    path: of a `.safetensors` or `.npz` file, local or remote; nothing pickled
      is read.

  Returns:
    Name -> array, in the order of the names. A `module.` before all of them, of
    DataParallel, is left out.

  Raises:
    UsageError: the file is not there, of another kind, damaged or empty.
  """
  path = paths.expand(path)
  suffix = pathlib.PurePath(path).suffix.lower()
  if suffix not in SUFFIXES:
    kind = 'a pickle of PyTorch' if suffix in _PICKLES else 'of another kind'
    raise UsageError(
      f'{path} is {kind}, and {" and ".join(SUFFIXES)} files are read; write '
      f'one in PyTorch: {_SAVE}.'
    )
  if not files.is_file(path):
    raise UsageError(f'{path} is no file; correct the path.')
  mend = f'copy it again, or write it anew: {_SAVE}.'
  if suffix == '.npz':
    arrays = files.read_npz(path, mend)
  else:
    arrays = _read_safetensors(path, mend)
  if not arrays:
    raise UsageError(f'{path} holds no tensor; {mend}')
  if all(name.startswith(_PARALLEL) for name in arrays):
    arrays = {n.removeprefix(_PARALLEL): a for n, a in arrays.items()}
  return dict(sorted(arrays.items()))


def _read_safetensors(path: str, mend: str) -> dict[str, np.ndarray]:
  try:
    return safetensors_numpy.load(files.read_bytes(path))
  except KeyError as error:  # of a type that NumPy has not
    raise UsageError(
      f'{path} holds tensors of the type {error.args[0]}; write them as '
      f'float32, {{name: t.float() for name, t in state.items()}}: {_SAVE}.'
    ) from error
  except (OSError, safetensors.SafetensorError, ValueError) as error:
    raise UsageError(f'{path} cannot be read ({error}): {mend}') from error
