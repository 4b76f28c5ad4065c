"""A trained hypernetwork as a file, for any program.

It is a file of the safetensors library whose metadata say what the hypernetwork
is: the sizes of the networks, the names of the operations and its own sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
import os
from typing import Any

from flax import traverse_util
import jax
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from ms_ranas_jax import paths
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.hypernetwork.hypernetwork import Hypernetwork
from ms_ranas_jax.runtime import files
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import operations as ops

FOLDER = 'search'
_STEM, _SUFFIX = 'hypernetwork', '.safetensors'
_KEY = 'ms_ranas_jax hypernetwork'
_VERSION = 1
_SIZES = ('rounds', 'width', 'hidden', 'tile')


def name(seed: int | None = None) -> str:
  """Returns the name of the file in the folder of a search.

  Args:
    seed: which, of a search of several.
  """
  return f'{_STEM}{"" if seed is None else f"_{seed}"}{_SUFFIX}'


def save(path: str, hypernetwork: Hypernetwork, params: Any) -> None:
  """Writes a hypernetwork, whole or not at all.

  Args:
    path: of the file.
    hypernetwork: what it is.
    params: its own.
  """
  description = {
    'version': _VERSION,
    'spec': dataclasses.asdict(hypernetwork.spec),
    'primitives': list(hypernetwork.primitives),
    **{size: getattr(hypernetwork, size) for size in _SIZES},
  }
  arrays = {
    name: np.ascontiguousarray(array)
    for name, array in traverse_util.flatten_dict(
      jax.device_get(params), sep='/'
    ).items()
  }
  files.write_bytes(
    path, safetensors_numpy.save(arrays, {_KEY: json.dumps(description)})
  )


def load_hypernetwork(path: str) -> tuple[Hypernetwork, dict[str, Any]]:
  """Reads what a search with a hypernetwork has trained.

      hypernetwork, params = load_hypernetwork('runs/my_search')
      params = make_params(hypernetwork, params, genotype)
      network = derived_network(hypernetwork.spec, genotype)

  Args:
    path: of the file, or of the work directory of a search of one seed.

  Returns:
    The hypernetwork and its params, as `make_params` takes them.

  Raises:
    UsageError: there is none, or it is damaged or of another program.

  Example:
    >>> import ms_ranas_jax as mr
    >>> try:
    ...   mr.load_hypernetwork('runs/no_such_search')
    ... except mr.UsageError as error:
    ...   print(type(error).__name__)
    ...
    UsageError
  """
  path = paths.expand(path)
  if files.is_directory(path):
    path = os.path.join(path, FOLDER, name())
  if not files.is_file(path):
    raise UsageError(
      f'{path} is missing; name a work directory whose search with '
      "search.method = 'ghn' has ended, or its file."
    )
  try:
    data = files.read_bytes(path)
    arrays = safetensors_numpy.load(data)
    # The header of the format: its length, and JSON.
    length = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8 : 8 + length])
    found = json.loads(header['__metadata__'][_KEY])
    hypernetwork = _described(found)
  except (
    OSError,
    safetensors.SafetensorError,
    ValueError,
    KeyError,
    TypeError,
  ) as error:
    raise UsageError(
      f'{path} is no hypernetwork of this program, or damaged ({error!r}); '
      'copy it again, or search again.'
    ) from error
  shapes = {
    '/'.join(place): shape
    for place, (shape, _) in hypernetwork.param_shapes().items()
  }
  if {name: array.shape for name, array in arrays.items()} != shapes:
    raise UsageError(
      f'{path} holds other params than those of what it describes; copy it '
      'again, or search again.'
    )
  return hypernetwork, traverse_util.unflatten_dict(arrays, sep='/')


def _described(found: Mapping[str, Any]) -> Hypernetwork:
  """Returns what the metadata of a file say."""
  if found['version'] != _VERSION:
    raise ValueError(f'version {found["version"]}')
  sizes: dict[str, Any] = {
    field: tuple(value) if isinstance(value, list) else value
    for field, value in found['spec'].items()
  }
  spec = grid.NetworkSpec(**sizes)
  return Hypernetwork(
    spec,
    ops.named(found['primitives'], 'search.primitives'),
    *(found[size] for size in _SIZES),
  )
