"""Bringing the examples of steps to the devices.

Data that fit there lie there for good, and a step is given the indices of its
examples. Of larger data, which may be memory-mapped files, only the examples of
the next steps are brought, a window of steps at a time. A thread fills the next
window while the steps of one are done. A step sees the same examples in the
same order either way, and cannot tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent import futures
import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.runtime import parallel

# Arrays of examples, on the host unless they fit on a device.
Data = Mapping[str, Any]


class Plan(NamedTuple):
  """The examples of all steps.

  Attributes:
    epochs: how many.
    steps: of an epoch.
    batches: epoch -> indices (steps, ..., batch).
    most: steps that are done in one call at most.
  """

  epochs: int
  steps: int
  batches: Callable[[int], np.ndarray]
  most: int


class Fed(NamedTuple):
  """What a chunk of steps takes, see `parallel.compile_chunk`.

  Attributes:
    data: on the devices, or to be brought there with the call.
    indices: of the examples of each step in `data`, (steps, ..., batch).
  """

  data: Any
  indices: np.ndarray


class Feed:
  """Gives the steps of an epoch their examples.

  Attributes:
    window: steps whose examples are there at once; a call does not go from one
      window into the next.
  """

  window: int

  def __init__(self, data: Data, plan: Plan, devices: int) -> None:
    """Brings the data to the devices.

    Args:
      data: arrays of examples, on the host.
      plan: of the steps.
      devices: how many, of all processes.
    """
    self.window = plan.steps
    self._plan = plan
    self._epoch, self._batches = -1, np.empty(0)
    self._data = parallel.replicate(dict(data), devices)

  def __call__(self, epoch: int, start: int, stop: int) -> Fed:
    """Returns what steps take, all of one window.

    Args:
      epoch: that they are of.
      start: the first one's number in it.
      stop: one more than the last one's.
    """
    return Fed(self._data, self._batches_of(epoch)[start:stop])

  def _batches_of(self, epoch: int) -> np.ndarray:
    if epoch != self._epoch:
      self._epoch, self._batches = epoch, self._plan.batches(epoch)
    return self._batches


class _Windows(Feed):
  """The same, of data that stay on the host but for two windows of steps."""

  def __init__(self, data: Data, plan: Plan, devices: int, window: int) -> None:
    self.window = window
    self._plan = plan
    self._epoch, self._batches = -1, np.empty(0)
    # A memory-mapped array is a view of the pages of its file.
    self._host = {name: np.asarray(array) for name, array in data.items()}
    self._devices = devices
    self._thread = futures.ThreadPoolExecutor(1, 'feeding')
    self._filled: dict[tuple[int, int], futures.Future[Fed]] = {}

  def __call__(self, epoch: int, start: int, stop: int) -> Fed:
    number, first = divmod(start, self.window)
    here = epoch, number
    following = (epoch, number + 1)
    if following[1] * self.window >= self._plan.steps:
      following = (epoch + 1, 0)
    wanted = [here, following] if following[0] < self._plan.epochs else [here]
    # Those behind are let go before the next one is filled.
    self._filled = {
      window: self._filled.get(window)
      or self._thread.submit(self._fill, *window)
      for window in wanted
    }
    fed = self._filled[here].result()
    return Fed(fed.data, fed.indices[first : first + stop - start])

  def close(self) -> None:
    """Waits for the thread; what it has filled is let go."""
    self._thread.shutdown(cancel_futures=True)
    self._filled = {}

  def _fill(self, epoch: int, number: int) -> Fed:
    first = number * self.window
    batches = self._batches_of(epoch)[first : first + self.window]
    # One device is this process's own, whichever of several it is.
    parts = batches[None]
    if self._devices > 1:
      parts = parallel.local_parts(batches, self._devices)
    rows = parts.reshape(len(parts), -1)
    # All windows are as large, since a compiled chunk takes one size alone.
    size = rows.shape[1] // len(batches) * self.window
    data = {
      name: _taken(array, rows, size) for name, array in self._host.items()
    }
    # On every device its own examples lie in the order of its steps.
    own = np.arange(rows.shape[1], dtype=np.int32).reshape(parts.shape[1:])
    shape = (*own.shape[:-1], self._devices, own.shape[-1])
    indices = np.broadcast_to(own[..., None, :], shape).reshape(batches.shape)
    if self._devices > 1:
      return Fed(data, indices)
    return Fed(jax.tree.map(lambda x: jnp.asarray(x[0]), data), indices)


def _taken(array: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray:
  """Returns rows of an array for every local device, filled up with zeros."""
  taken = np.zeros((len(rows), size, *array.shape[1:]), array.dtype)
  for own, of_device in zip(taken, rows, strict=True):
    own[: len(of_device)] = array[of_device]
  return taken


def fits(data: Data, resident_bytes: int) -> bool:
  """Returns whether data may lie on a device as a whole.

  Args:
    data: arrays of examples.
    resident_bytes: see `open_feed`.
  """
  return sum(array.nbytes for array in data.values()) <= resident_bytes


def open_feed(
  data: Data,
  plan: Plan,
  devices: int,
  resident_bytes: int,
  stack: contextlib.ExitStack,
) -> Feed:
  """Returns what brings examples, by how large the data are.

  Args:
    data: arrays of examples.
    plan: of the steps.
    devices: how many, of all processes.
    resident_bytes: of data that may lie on a device. Larger data are brought
      in windows, of which two are there; a window has a step at least.
    stack: closes it.
  """
  if fits(data, resident_bytes):
    return Feed(data, plan, devices)
  examples = plan.batches(0)[0].size // devices
  row = sum(array.nbytes // len(array) for array in data.values())
  window = min(max(resident_bytes // (2 * examples * row), 1), plan.most)
  windows = _Windows(data, plan, devices, window)
  stack.callback(windows.close)
  return windows
