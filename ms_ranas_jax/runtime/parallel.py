"""Chunks of steps on one or several devices; the only module that pmaps.

A step is a pure function of a state, of data that lie on the device and of the
indices of its batch. A chunk runs many of them in one call. On one device it is
jitted; on several it is pmapped: the state and the data are replicated and the
batch is split, and the step averages what it has to over `AXIS_NAME`.

A chunk may run the same step for several seeds side by side: states, metrics
and indices have a leading axis of seeds then, and the data are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
import time
from typing import Any

from absl import logging
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.errors import UsageError

AXIS_NAME = 'devices'
STOP, SKIP = 'stop', 'skip'
# What to do about a step with a metric that is not finite.
NONFINITE_CHOICES = (STOP, SKIP)

PyTree = Any
Metrics = Mapping[str, jax.Array]
Step = Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, Metrics]]


def axis_name(num_devices: int) -> str | None:
  """Returns the name of the device axis, None where there is one device."""
  return AXIS_NAME if num_devices > 1 else None


def choose_devices(requested: int, batch_size: int, field: str) -> int:
  """Returns how many devices to use, those of all processes together.

  Args:
    requested: a number of devices, or 0 for all that there are.
    batch_size: of all devices together.
    field: the config field of the batch size, for the error message.

  Returns:
    The number of devices.

  Raises:
    UsageError: there are fewer, or the batch cannot be split evenly.
  """
  available = jax.device_count()
  processes = jax.process_count()
  count = requested or available
  if count > available:
    raise UsageError(
      f'num_devices = {requested}, but there are {available}; set num_devices '
      'to at most that, or to 0 for all.'
    )
  if processes > 1 and count != available:
    raise UsageError(
      f'num_devices = {requested}, but {processes} processes have {available} '
      'together, and all take part; set num_devices to 0.'
    )
  if batch_size % count:
    raise UsageError(
      f'{field} = {batch_size} cannot be split evenly over {count} devices; '
      'give a multiple, or set num_devices.'
    )
  return count


def _pmap(function: Callable[..., Any], num_devices: int, **fields: Any):
  """Maps over the devices of all processes, or over some of the only one."""
  devices = None
  if jax.process_count() == 1:
    devices = jax.local_devices()[:num_devices]
  return jax.pmap(function, axis_name=AXIS_NAME, devices=devices, **fields)


def _local_places(num_devices: int) -> list[int]:
  """Returns the places of this process's devices on the device axis."""
  return [
    place
    for place, device in enumerate(jax.devices()[:num_devices])
    if device.process_index == jax.process_index()
  ]


def local_parts(indices: np.ndarray, num_devices: int) -> np.ndarray:
  """Returns the indices of the examples that this process's devices work on.

  Args:
    indices: (steps, ..., batch), of all devices together.
    num_devices: of all processes together.

  Returns:
    (local devices, steps, ..., batch of a device).
  """
  parts = indices.reshape(*indices.shape[:-1], num_devices, -1)
  return np.moveaxis(parts, -2, 0)[_local_places(num_devices)]


def replicate(tree: PyTree, num_devices: int) -> PyTree:
  """Copies a tree to all devices; on one device returns it there."""
  if num_devices == 1:
    return jax.tree.map(jnp.asarray, tree)
  # A mapped argument is needed, if only to be ignored; and the axis must have
  # the chunk's name, or the chunk would compile again for its own output.
  places = _local_places(num_devices)
  return _pmap(lambda _, x: x, num_devices, in_axes=(0, None))(
    np.array(places), tree
  )


def unreplicate(tree: PyTree, num_devices: int) -> PyTree:
  """Returns the first local device's copy of a replicated tree."""
  if num_devices == 1:
    return tree
  return jax.tree.map(lambda x: x.addressable_shards[0].data[0], tree)


def global_positions(batch_size: int, axis: str | None) -> jax.Array:
  """Returns the positions in the whole batch of this device's examples.

  What is random per example is drawn by these, so that it does not depend on
  the number of devices.

  Args:
    batch_size: examples on this device.
    axis: the device axis, None on one device.

  Returns:
    (batch_size,) int32.
  """
  positions = jnp.arange(batch_size, dtype=jnp.int32)
  if axis is None:
    return positions
  return positions + batch_size * lax.axis_index(axis)


def mean_over_devices(tree: PyTree, axis: str | None) -> PyTree:
  """Averages a tree over the device axis, if there is one."""
  return tree if axis is None else lax.pmean(tree, axis)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a chunk returns.

  Attributes:
    state: after the steps, replicated.
    sums: of the metrics, replicated; to be passed to the next chunk.
    done: how many steps it did: all, unless metrics stopped being finite.
    finite: whether the metrics of the last step are.
    flags: the largest of all processes, elementwise.
  """

  state: PyTree
  sums: Metrics
  done: int
  finite: bool
  flags: np.ndarray


Chunk = Callable[..., Outcome]


@dataclasses.dataclass(frozen=True)
class Seeds:
  """Several seeds side by side.

  Attributes:
    count: how many.
    at_once: so many of them are vectorised, one group after the other; the
      largest divisor of `count` up to this is taken.
  """

  count: int
  at_once: int

  @property
  def group(self) -> int:
    """How many seeds are vectorised."""
    most = min(max(self.at_once, 1), self.count)
    return next(n for n in range(most, 0, -1) if self.count % n == 0)


def zero_sums(
  shapes: Mapping[str, tuple[int, ...]],
  on_nonfinite: str = STOP,
  seeds: Seeds | None = None,
) -> dict[str, np.ndarray]:
  """Returns the sums of metrics before the first step.

  Args:
    shapes: of the metrics of one seed.
    on_nonfinite: see `compile_chunk`.
    seeds: see `compile_chunk`.
  """
  if on_nonfinite == SKIP:
    shapes = {**shapes, 'skipped_steps': ()}
  lead = () if seeds is None else (seeds.count,)
  return {
    name: np.zeros((*lead, *shape), np.float32)
    for name, shape in shapes.items()
  }


def _all_finite(metrics: Metrics) -> jax.Array:
  return functools.reduce(
    jnp.logical_and,
    (jnp.all(jnp.isfinite(m)) for m in metrics.values()),
    jnp.bool_(True),
  )


def _skipping(step: Step) -> Step:
  """Leaves a step with a metric that is not finite out, and counts it."""

  def skipping(state, data, indices):
    after, metrics = step(state, data, indices)
    finite = _all_finite(metrics)
    kept = state.replace(step=after.step)
    after = jax.tree.map(
      lambda new, old: lax.select(finite, new, old), after, kept
    )
    metrics = {
      name: jnp.where(finite, value, 0) for name, value in metrics.items()
    }
    return after, {**metrics, 'skipped_steps': 1.0 - finite}

  return skipping


def _of_seeds(step: Step, seeds: Seeds) -> Step:
  """Takes the step of every seed."""

  def of_seeds(state, data, indices):
    def one(pair):
      return step(pair[0], data, pair[1])

    if seeds.group == seeds.count:
      return jax.vmap(one)((state, indices))
    # A group of one stays as it is: a batch axis of one would only be carried
    # through all rules.
    group = seeds.group if seeds.group > 1 else None
    return lax.map(one, (state, indices), batch_size=group)

  return of_seeds


def compile_chunk(
  step: Step,
  num_devices: int,
  chunk_steps: int,
  on_nonfinite: str = STOP,
  seeds: Seeds | None = None,
) -> Chunk:
  """Returns a function that runs up to `chunk_steps` steps in one call.

  It compiles once whatever the number of steps, which is a loop bound. Metrics
  are added up over the steps, on from what is passed in, so that no bit depends
  on how steps are cut into calls.

  Args:
    step: (state, data, indices (..., batch)) -> (state, metrics); on several
      devices it sees its part of the batch and averages over `AXIS_NAME`.
    num_devices: 1, or more devices of all processes.
    chunk_steps: the most steps of a call.
    on_nonfinite: 'stop' ends the chunk after a step with a metric that is not
      finite; 'skip' leaves it out and goes on: the state stays but for its
      `step`, and `skipped_steps` among the sums counts it. With several seeds
      'stop' ends all of them, 'skip' leaves out that of the seed alone.
    seeds: takes the step for so many seeds: state, sums and, after their axis
      of steps, the indices have a leading axis of them. None is for one, with
      no such axis.

  Returns:
    (state, sums, data, indices (steps, ..., batch), flags) -> `Outcome`. State
    and data are replicated by `replicate`, or data are of the local devices
    along a leading axis; state and sums are donated. `sums` are those of an
    earlier outcome or `zero_sums`. `flags` is any array of int32, of the same
    shape in every process.
  """

  # Traced once for all that it is used in; tracing a search takes seconds. What
  # was traced is kept for as long as the function lives that it was traced
  # from, so that is one of this call's own.
  @jax.jit
  def traced(state, data, indices):
    return step(state, data, indices)

  each: Step = traced
  if on_nonfinite == SKIP:
    each = _skipping(each)
  if seeds is not None:
    each = _of_seeds(each, seeds)

  def chunk(state, sums, data, indices, count, flags):
    def proceeds(carry):
      index, _, _, finite = carry
      return (index < count) & finite

    def body(carry):
      index, state, sums, _ = carry
      after, metrics = each(state, data, indices[index])
      # A metric may be wider than its sum, which is carried as it is.
      sums = {
        name: sums[name] + jnp.asarray(value, sums[name].dtype)
        for name, value in metrics.items()
      }
      return index + 1, after, sums, _all_finite(metrics)

    done, state, sums, finite = lax.while_loop(
      proceeds, body, (jnp.int32(0), state, sums, jnp.bool_(True))
    )
    if num_devices > 1:
      flags = lax.pmax(flags, AXIS_NAME)
    return state, sums, done, finite, flags

  if num_devices == 1:
    compiled = jax.jit(chunk, donate_argnums=(0, 1))
  else:
    compiled = _pmap(
      chunk,
      num_devices,
      in_axes=(0, 0, 0, 0, None, None),
      donate_argnums=(0, 1),
    )
  executable = None

  def run(state, sums, data, indices, flags=()):
    nonlocal compiled, executable
    count = len(indices)
    if not 1 <= count <= chunk_steps:
      raise ValueError(f'a chunk has 1 to {chunk_steps} steps, not {count}')
    padding = [(0, chunk_steps - count)] + [(0, 0)] * (indices.ndim - 1)
    indices = np.pad(indices, padding).astype(np.int32)
    if num_devices > 1:
      indices = local_parts(indices, num_devices)
      sums = {
        name: np.broadcast_to(value, (len(indices), *value.shape))
        if isinstance(value, np.ndarray)
        else value
        for name, value in sums.items()
      }
    flags = np.asarray(flags, np.int32)
    args = (state, sums, data, indices, np.int32(count), flags)
    if executable is None:
      # Ahead of time, pmap takes no arrays of one of several processes.
      alone = jax.process_count() == 1
      executable = _compile(compiled, args) if alone else compiled
      # What was traced can be hundreds of megabytes, and is not needed again.
      compiled = None
    state, sums, *small = executable(*args)
    done, finite, flags = jax.device_get(unreplicate(small, num_devices))
    return Outcome(state, sums, int(done), bool(finite), flags)

  return run


def _compile(function: Any, args: tuple[PyTree, ...]) -> Callable[..., Any]:
  """Compiles ahead of the first call, to say what that takes."""
  began = time.monotonic()
  executable = function.lower(*args).compile()
  seconds = time.monotonic() - began
  if logging.get_verbosity() < logging.INFO:
    return executable  # asking for the memory takes seconds
  memory = executable.memory_analysis()
  needs = ''
  if memory is not None:  # not all backends tell
    needs = (
      f'; a step takes {memory.temp_size_in_bytes / 1e9:.2f} GB of memory '
      'besides its state and data'
    )
  logging.info('compiled in %.0f s%s', seconds, needs)
  return executable
