"""Chunks of steps on one or several devices; the only module that pmaps.

A step is a pure function of a state, of data that lie on the device and of the
indices of its batch. A chunk runs many of them in one call. On one device it is
jitted; on several it is pmapped: the state and the data are replicated and the
batch is split, and the step averages what it has to over `AXIS_NAME`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import time
from typing import Any

from absl import logging
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.errors import UsageError

AXIS_NAME = 'devices'

PyTree = Any
Metrics = Mapping[str, jax.Array]
Step = Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, Metrics]]


def axis_name(num_devices: int) -> str | None:
  """Returns the name of the device axis, None where there is one device."""
  return AXIS_NAME if num_devices > 1 else None


def choose_devices(requested: int, batch_size: int, field: str) -> int:
  """Returns how many devices to use.

  Args:
    requested: a number of devices, or 0 for all that this process has.
    batch_size: of all devices together.
    field: the config field of the batch size, for the error message.

  Returns:
    The number of devices.

  Raises:
    UsageError: there are fewer, or the batch cannot be split evenly.
  """
  available = jax.local_device_count()
  count = requested or available
  if count > available:
    raise UsageError(
      f'num_devices = {requested}, but this machine has {available}; set '
      'num_devices to at most that, or to 0 for all.'
    )
  if batch_size % count:
    raise UsageError(
      f'{field} = {batch_size} cannot be split evenly over {count} devices; '
      'give a multiple, or set num_devices.'
    )
  return count


def replicate(tree: PyTree, num_devices: int) -> PyTree:
  """Copies a tree to all devices; on one device returns it there."""
  if num_devices == 1:
    return jax.tree.map(jnp.asarray, tree)
  # A mapped argument is needed, if only to be ignored; and the axis must have
  # the chunk's name, or the chunk would compile again for its own output.
  return jax.pmap(
    lambda _, x: x,
    axis_name=AXIS_NAME,
    in_axes=(0, None),
    devices=jax.local_devices()[:num_devices],
  )(np.arange(num_devices), tree)


def unreplicate(tree: PyTree, num_devices: int) -> PyTree:
  """Returns the first device's copy of a replicated tree."""
  if num_devices == 1:
    return tree
  return jax.tree.map(lambda x: x[0], tree)


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


def compile_chunk(
  step: Step, num_devices: int, chunk_steps: int
) -> Callable[[PyTree, PyTree, np.ndarray], tuple[PyTree, Metrics]]:
  """Returns a function that runs up to `chunk_steps` steps in one call.

  It compiles once whatever the number of steps, which is a loop bound.

  Args:
    step: (state, data, indices (..., batch)) -> (state, metrics); on several
      devices it sees its part of the batch and averages over `AXIS_NAME`.
    num_devices: 1 or more local devices.
    chunk_steps: the most steps of a call.

  Returns:
    (state, data, indices (steps, ..., batch)) -> (state, metrics), state and
    data replicated by `replicate`, the state donated, the metrics averaged
    over the steps.
  """
  # Traced once for the shapes of the metrics and for the loop; tracing a search
  # takes seconds.
  step = jax.jit(step)

  def chunk(state, data, indices, count):
    metrics = jax.eval_shape(step, state, data, indices[0])[1]
    sums = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics)

    def body(index, carry):
      state, sums = carry
      state, metrics = step(state, data, indices[index])
      return state, jax.tree.map(jnp.add, sums, metrics)

    state, sums = lax.fori_loop(0, count, body, (state, sums))
    return state, jax.tree.map(lambda s: s / count, sums)

  if num_devices == 1:
    compiled = jax.jit(chunk, donate_argnums=0)
  else:
    compiled = jax.pmap(
      chunk,
      axis_name=AXIS_NAME,
      in_axes=(0, 0, 0, None),
      donate_argnums=0,
      devices=jax.local_devices()[:num_devices],
    )

  executable = None

  def run(state, data, indices):
    nonlocal executable
    count = len(indices)
    if not 1 <= count <= chunk_steps:
      raise ValueError(f'a chunk has 1 to {chunk_steps} steps, not {count}')
    padding = [(0, chunk_steps - count)] + [(0, 0)] * (indices.ndim - 1)
    indices = np.pad(indices, padding).astype(np.int32)
    if num_devices > 1:
      parts = indices.reshape(*indices.shape[:-1], num_devices, -1)
      indices = np.moveaxis(parts, -2, 0)
    args = (state, data, indices, np.int32(count))
    if executable is None:
      executable = _compile(compiled, args)
    state, metrics = executable(*args)
    return state, unreplicate(metrics, num_devices)

  return run


def _compile(function: Any, args: tuple[PyTree, ...]) -> Callable[..., Any]:
  """Compiles ahead of the first call, to say what that takes."""
  began = time.monotonic()
  executable = function.lower(*args).compile()
  seconds = time.monotonic() - began
  memory = executable.memory_analysis()
  needs = ''
  if memory is not None:  # not all backends tell
    needs = (
      f'; a step takes {memory.temp_size_in_bytes / 1e9:.2f} GB of memory '
      'besides its state and data'
    )
  logging.info('compiled in %.0f s%s', seconds, needs)
  return executable
