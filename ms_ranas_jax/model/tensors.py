"""`params.safetensors`: params and batch statistics by name, for any program.

A tensor is named by its place, such as `params/cell_0_0/...`. The file is what
the safetensors library writes (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

from collections.abc import Mapping
import hashlib
import json
import os
from typing import Any

from flax import traverse_util
import jax
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from ms_ranas_jax import errors
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.model import description as description_lib
from ms_ranas_jax.runtime import files

FILE = 'params.safetensors'


def pack(
  variables: Mapping[str, Any],
) -> tuple[bytes, dict[str, tuple[int, ...]]]:
  """Returns the content of the file, and the shape of every tensor.

  Args:
    variables: {'params': ..., 'batch_stats': ...}.

  Raises:
    UsageError: a value is not finite; the network has diverged.
  """
  arrays = {
    name: np.ascontiguousarray(array)
    for name, array in traverse_util.flatten_dict(
      jax.device_get(dict(variables)), sep='/'
    ).items()
  }
  for name, array in arrays.items():
    if not np.isfinite(array).all():
      raise UsageError(
        f'{name} is not finite, so the network has diverged; train it again '
        'with a lower learning rate.'
      )
  shapes = {name: arrays[name].shape for name in sorted(arrays)}
  return safetensors_numpy.save(arrays), shapes


def describe(
  data: bytes,
  shapes: Mapping[str, tuple[int, ...]],
  description: description_lib.Description,
) -> description_lib.Tensors:
  """Returns what a description says of the file.

  The checksum is that of the file and of all in the description that decides
  what the network computes, so that neither can be changed alone.

  Args:
    data: of the file.
    shapes: of every tensor.
    description: of the network.
  """
  decides = {
    'network': description.network,
    'dtype': description.dtype,
    'image_shape': description.image_shape,
    'mean': description.mean,
    'std': description.std,
    'num_classes': len(description.class_names),
    'exits': [exit_.to_dict() for exit_ in description.exits],
  }
  digest = hashlib.sha256(data)
  digest.update(json.dumps(decides, sort_keys=True).encode())
  return description_lib.Tensors(digest.hexdigest(), dict(shapes))


def write(folder: str, data: bytes) -> None:
  """Writes the file, whole or not at all.

  Args:
    folder: the model folder.
    data: of `pack`.
  """
  files.write_bytes(os.path.join(folder, FILE), data)


def read(
  folder: str, description: description_lib.Description
) -> dict[str, Any]:
  """Reads params and batch statistics.

  Args:
    folder: the model folder.
    description: what it says of them.

  Returns:
    {'params': ..., 'batch_stats': ...}, arrays of NumPy.

  Raises:
    UsageError: the file is missing, damaged, or not the one described.
  """
  path = os.path.join(folder, FILE)
  expected = description.tensors
  if expected is None:
    raise UsageError(
      f'{folder} is of a training that has not come to its end; run the '
      "'train' stage to its end first."
    )
  if not files.is_file(path):
    raise UsageError(
      f'{path} is missing; copy the whole model folder, or train again.'
    )
  try:
    data = files.read_bytes(path)
    arrays = safetensors_numpy.load(data)
  except (
    OSError,
    safetensors.SafetensorError,
    ValueError,
    KeyError,
  ) as error:
    raise UsageError(
      f'{path} is damaged or cannot be read ({error}); copy it again, or train '
      'again.'
    ) from error
  differing = _differences(arrays, expected.shapes)
  found = describe(data, expected.shapes, description)
  if not differing and found.sha256 != expected.sha256:
    differing = ['the checksum is another one, so one of them was changed']
  if differing:
    listed = errors.listed(differing, most=4)
    raise UsageError(
      f'{path} is not the file that {description_lib.FILE} beside it is about: '
      f'{listed}; copy both from one model folder, or train again.'
    )
  variables = traverse_util.unflatten_dict(arrays, sep='/')
  return {'params': {}, 'batch_stats': {}} | variables


def _differences(
  found: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> list[str]:
  """Says of every tensor that is missing, too many or of another shape."""
  phrases = []
  for name in sorted(found.keys() | expected.keys()):
    if name not in found:
      phrases.append(f'{name} is missing')
    elif name not in expected:
      phrases.append(f'{name} is one too many')
    elif found[name].shape != tuple(expected[name]):
      phrases.append(
        f'{name} is {found[name].shape}, not {tuple(expected[name])}'
      )
  return phrases
