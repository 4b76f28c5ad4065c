"""Checkpoints of a training state that a run can trust after a crash.

A thin layer over orbax. A checkpoint is the step's folder with two items:

- `state/bytes`, the bytes of all leaves one after the other. A search network
  has many thousand small leaves; written one by one they take more than ten
  times as long.
- `manifest`, JSON: `fields` says of every leaf, by the path of its field, its
  `dtype`, `shape` and `offset` in the bytes. Two checksums tell a damaged
  checkpoint from one of another network: the first is passed over for the one
  before, the second is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import json
import logging as python_logging
import math
import os
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
import zlib

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax import errors
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import processes

if TYPE_CHECKING:
  # Where it is used, its import takes longer than that of JAX.
  import orbax.checkpoint as ocp

State = TypeVar('State')

_STATE = 'state'
_MANIFEST = 'manifest'
_BYTES = 'bytes'


@dataclasses.dataclass
class Manager:
  """The checkpoints of one folder. Made by `open_manager`; close it.

  Attributes:
    directory: the folder, absolute.
    orbax: orbax's manager of it.
    read_only: whether `save` is refused.
    damaged: the steps that the last restore passed over.
  """

  directory: epath.Path
  orbax: ocp.CheckpointManager
  read_only: bool = False
  damaged: frozenset[int] = frozenset()

  def close(self) -> None:
    """Waits for the saves under way and releases the folder.

    Raises:
      UsageError: a save failed.
    """
    with _failures_in_words(self.directory):
      self.orbax.close()

  def __enter__(self) -> Manager:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    try:
      self.close()
    except Exception as second:
      if error is None:
        raise
      # What went wrong first is what to tell.
      logging.warning('%s', second)


def open_manager(
  directory: str | os.PathLike[str], keep: int = 2, *, read_only: bool = False
) -> Manager:
  """Opens the checkpoints of a folder.

  Args:
    directory: the folder; made where it is missing, unless `read_only`.
    keep: how many of the newest checkpoints stay, at least 1. With 1, there is
      none to go back to when it is damaged.
    read_only: for reading what another run may be writing: nothing in the
      folder is made, moved or removed.

  Returns:
    A manager, also a context manager, whose end waits for saves under way.

  Raises:
    UsageError: the folder cannot be made, or `keep` is less than 1.
  """
  import orbax.checkpoint as ocp

  if keep < 1:
    raise UsageError(f'keep must be at least 1 checkpoint, got {keep}')
  _quiet_orbax()
  folder = epath.Path(directory)
  if not files.is_remote(directory):
    folder = folder.absolute()  # orbax refuses relative paths
  if not read_only:
    try:
      folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise UsageError(
        f'{folder} cannot hold checkpoints ({error.strerror}): choose another '
        'work directory'
      ) from error
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep,
    create=False,
    cleanup_tmp_directories=not read_only,
  )
  return Manager(
    folder, ocp.CheckpointManager(folder, options=options), read_only
  )


def save(manager: Manager, step: int, state: Any) -> None:
  """Saves a state, in the background.

  The state is copied before this returns, so its buffers may be donated. The
  write itself ends later; an error in it is raised by the next `save` or by
  `close`. With several processes, all call this, and the first one writes.

  Args:
    manager: an open manager.
    step: the number of the checkpoint. Checkpoints of this step or a later one
      are of a run that was gone back on; they are moved aside.
    state: any pytree with named or numbered fields. Leaves are arrays of JAX
      (typed PRNG keys too) and NumPy, or Python's numbers, which are saved
      with the dtype that JAX gives them. Arrays over several processes must be
      replicated.

  Raises:
    ValueError: a leaf is no array or number, an integer does not fit into the
      dtype that JAX gives it, or two fields have the same path.
    UsageError: this save, or the one before, could not be written.
  """
  import orbax.checkpoint as ocp

  if manager.read_only:
    raise ValueError(f'{manager.directory} was opened to be read only')
  leaves = _named_leaves(state)
  fields, data = _pack(leaves)
  manifest = {
    'fields': fields,
    'fields_crc32': _fields_checksum(fields),
    'bytes_crc32': zlib.crc32(data.data),
  }
  with _failures_in_words(manager.directory):
    # The list of checkpoints is settled only when no save is under way.
    manager.orbax.wait_until_finished()
    _move_aside(manager, step)
    manager.orbax.save(
      step,
      args=ocp.args.Composite(
        **{
          _STATE: ocp.args.StandardSave({_BYTES: data}),
          _MANIFEST: ocp.args.JsonSave(manifest),
        }
      ),
      force=True,
    )


@contextlib.contextmanager
def _failures_in_words(directory: epath.Path) -> Iterator[None]:
  """Says what a save that fails means, and what to do."""
  try:
    yield
  # What orbax and tensorstore raise for a full disk is not a closed list: a
  # ValueError is among it.
  except (OSError, ValueError, RuntimeError) as error:
    if isinstance(error, jax.errors.JaxRuntimeError):
      raise  # another process is gone, or a device failed
    raise UsageError(
      f'a checkpoint could not be written to {directory} '
      f'({_first_line(error)}); free space there, and the same command goes on '
      'from the last good one'
    ) from error


def restore_latest(
  manager: Manager, template: State
) -> tuple[int, State] | None:
  """Restores the newest checkpoint that is whole.

  A damaged one is passed over, with a warning, for the one before it. Nothing
  is deleted; the next `save` moves the damaged ones aside.

  Args:
    manager: an open manager.
    template: a state of the same structure, shapes and dtypes, whose values do
      not matter; leaves may be `jax.ShapeDtypeStruct`.

  Returns:
    The step and the state, with every leaf a JAX array on the default device,
    bit for bit what was saved; or None where there are no checkpoints.

  Raises:
    UsageError: the newest whole checkpoint is of another state, or all
      checkpoints are damaged.
  """
  manager.orbax.wait_until_finished()
  leaves = _named_leaves(template)
  structs = jax.eval_shape(
    lambda values: [_plain(value) for value in values], list(leaves.values())
  )
  wanted = _layout(dict(zip(leaves, structs)))
  failures = {}
  for step in sorted(manager.orbax.all_steps(), reverse=True):
    folder = manager.directory / str(step)
    try:
      manifest = _read_manifest(folder)
      fields = manifest['fields']
      differences = _differences(fields, wanted)
      data = None if differences else _read_bytes(folder, manifest)
    except MemoryError:
      raise
    # What reading damaged files can raise is not a closed list.
    except Exception as error:
      failures[step] = error
      logging.warning(
        'checkpoint %s is damaged and is passed over: %s',
        folder,
        _first_line(error),
      )
      continue
    if data is None:
      raise UsageError(
        f'{folder} is a checkpoint of another configuration; these fields '
        f'differ: {errors.listed(differences)}. Run with the configuration '
        'that it was made with, or give another --workdir'
      )
    manager.damaged = frozenset(failures)
    restored = [
      _unpack(data, fields[name], leaf) for name, leaf in leaves.items()
    ]
    return step, jax.tree.unflatten(jax.tree.structure(template), restored)
  if not failures:
    return None
  reasons = '; '.join(
    f'{step}: {_first_line(error)}' for step, error in failures.items()
  )
  raise UsageError(
    f'no checkpoint in {manager.directory} can be read ({reasons}): bring one '
    'back from a copy, or move this folder away to start from the beginning'
  )


def any_in(directory: str | os.PathLike[str]) -> bool:
  """Returns whether a folder holds a checkpoint; opens none.

  Args:
    directory: see `open_manager`; it need not be there.
  """
  folder = epath.Path(directory)
  return folder.is_dir() and any(p.name.isdigit() for p in folder.iterdir())


def steps(manager: Manager) -> list[int]:
  """Returns the steps of the checkpoints, the newest last; waits for saves."""
  manager.orbax.wait_until_finished()
  return sorted(manager.orbax.all_steps())


def _named_leaves(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by the paths of their fields, in order."""
  leaves = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if name in leaves:
      raise ValueError(f'two fields of the state have the path {name!r}')
    leaves[name] = leaf
  return leaves


def _plain(leaf: Any) -> jax.Array:
  """Returns an array, keys as the numbers that they are."""
  return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(leaf: Any) -> bool:
  """Says whether a leaf is a typed PRNG key, or an array of them."""
  return hasattr(leaf, 'dtype') and jnp.issubdtype(
    leaf.dtype, jax.dtypes.prng_key
  )


def _layout(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Returns dtype, shape and offset of arrays, as the manifest has them."""
  fields = {}
  offset = 0
  for name, array in arrays.items():
    fields[name] = {
      'dtype': str(array.dtype),
      'shape': list(array.shape),
      'offset': offset,
    }
    offset += math.prod(array.shape) * array.dtype.itemsize
  return fields


def _size(field: Mapping[str, Any]) -> int:
  """Returns the bytes that a field takes."""
  return math.prod(field['shape']) * jnp.dtype(field['dtype']).itemsize


def _pack(leaves: Mapping[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
  """Copies leaves into one array of bytes, uint8 of shape (bytes,)."""
  arrays = {name: _checked_array(name, leaf) for name, leaf in leaves.items()}
  fields = _layout(arrays)
  data = np.empty(_total(fields), np.uint8)
  # All at once, so that copies from a device overlap. The result may look into
  # the device's own buffers: the caller is free to donate those, this is not.
  hosts = jax.device_get(list(arrays.values()))
  for field, host in zip(fields.values(), hosts):
    start = field['offset']
    data[start : start + host.nbytes] = np.frombuffer(host.tobytes(), np.uint8)
  return fields, data


def _total(fields: Mapping[str, Any]) -> int:
  """Returns the length of the array of bytes."""
  # orbax cannot write an array without elements.
  return max(1, sum(map(_size, fields.values())))


def _checked_array(name: str, leaf: Any) -> jax.Array:
  """Returns a leaf as an array, and refuses one that this would change."""
  if isinstance(leaf, jax.Array):
    return _plain(leaf)
  try:
    array = jnp.asarray(leaf)
  except (TypeError, OverflowError) as error:
    raise ValueError(f'field {name} cannot be saved: {error}') from error
  # JAX narrows integers to 32 bits, and wraps what does not fit.
  if array.dtype.kind in 'iu' and not np.array_equal(array, np.asarray(leaf)):
    raise ValueError(
      f'field {name} cannot be saved: {leaf} does not fit into {array.dtype}'
    )
  return array


def _unpack(data: np.ndarray, field: Mapping[str, Any], like: Any) -> jax.Array:
  """Returns a field of the bytes as the array, or the keys, that `like` is."""
  start = field['offset']
  part = data[start : start + _size(field)]
  # A copy: `asarray` may leave the array in memory that NumPy owns.
  array = jnp.array(
    np.frombuffer(part.tobytes(), jnp.dtype(field['dtype'])).reshape(
      field['shape']
    )
  )
  if not _is_key(like):
    return array
  implementations = []
  # Traced, because an abstract key cannot be asked.
  jax.eval_shape(
    lambda key: implementations.append(jax.random.key_impl(key)), like
  )
  return jax.random.wrap_key_data(array, impl=implementations[0])


def _fields_checksum(fields: Mapping[str, Any]) -> int:
  """Returns a checksum of the manifest itself."""
  return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


def _read_manifest(folder: epath.Path) -> dict[str, Any]:
  """Reads what a checkpoint says about itself."""
  import orbax.checkpoint as ocp

  handler = ocp.JsonCheckpointHandler()
  with contextlib.closing(ocp.Checkpointer(handler)) as reader:
    manifest = reader.restore(folder / _MANIFEST)
  if manifest['fields_crc32'] != _fields_checksum(manifest['fields']):
    raise ValueError('its manifest has been changed')
  return manifest


def _read_bytes(folder: epath.Path, manifest: Mapping[str, Any]) -> np.ndarray:
  """Reads the bytes of a checkpoint and proves them by their checksum."""
  import orbax.checkpoint as ocp

  empty = {_BYTES: np.empty(_total(manifest['fields']), np.uint8)}
  with contextlib.closing(ocp.StandardCheckpointer()) as reader:
    data = np.asarray(reader.restore(folder / _STATE, empty)[_BYTES])
  if manifest['bytes_crc32'] != zlib.crc32(data.data):
    raise ValueError('its bytes have been changed')
  return data


def _differences(
  found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> list[str]:
  """Says of every field that differs how it does."""

  def describe(fields: Mapping[str, Any], name: str) -> str:
    if name not in fields:
      return 'absent'
    return f'{fields[name]["dtype"]}{fields[name]["shape"]}'

  return [
    f'{name} ({describe(found, name)} there, {describe(wanted, name)} here)'
    for name in sorted(wanted.keys() | found.keys())
    if describe(wanted, name) != describe(found, name)
  ]


def _first_line(error: Exception) -> str:
  """Returns the kind of an error and the first line of what it says."""
  lines = str(error).strip().splitlines()
  if not lines:
    return repr(error)
  line = lines[0]
  if len(line) > 200:  # paths stand in the middle, the reason at the end
    line = f'{line[:80]} ... {line[-110:]}'
  return f'{type(error).__name__}: {line}'


def _move_aside(manager: Manager, step: int) -> None:
  """Renames the checkpoints that a save of `step` must not stand beside."""
  # orbax keeps the largest steps: a damaged one, or one of a run that was gone
  # back on, would push out the good ones.
  stale = [
    other
    for other in manager.orbax.all_steps()
    if other >= step or other in manager.damaged
  ]
  if not stale:
    return
  if processes.is_first():
    for other in stale:
      folder = manager.directory / str(other)
      number = 0
      aside = folder.with_name(f'{other}.aside')
      while aside.exists():
        number += 1
        aside = folder.with_name(f'{other}.aside{number}')
      folder.rename(aside)
      logging.warning('checkpoint %s is moved aside to %s', folder, aside.name)
  processes.wait_for_all('checkpoints aside')
  manager.orbax.reload()
  manager.damaged = frozenset()


def _quiet_orbax() -> None:
  """Keeps what orbax tells its own developers out of the log of a run."""
  # addFilter ignores one that is there already.
  logging.get_absl_logger().addFilter(_is_worth_logging)


def _is_worth_logging(record: python_logging.LogRecord) -> bool:
  """Says whether a log record is not orbax's chatter."""
  return (
    record.levelno >= python_logging.WARNING
    or f'{os.sep}orbax{os.sep}' not in record.pathname
  )
