"""Several processes, on one machine or many, that are one run.

`jax.distributed` connects them. Every process runs the same program on its own
devices; the first one writes the files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from ms_ranas_jax.errors import UsageError

AUTO = 'auto'
# A process that is gone is noticed after this, and ends the others.
_HEARTBEAT_SECONDS = 20
_START_SECONDS = 300


def join(
  coordinator: str,
  count: int,
  index: int,
  say: Callable[[str], None] = lambda _: None,
) -> None:
  """Connects this process with the others, before any other call of JAX.

  Args:
    coordinator: 'HOST:PORT' of the first process; 'auto' finds it, and the
      numbers, on TPU pods and under Slurm, GKE and Open MPI; '' stays alone.
    count: of processes; ignored with 'auto'.
    index: of this process, from 0; ignored with 'auto'.
    say: told, before it waits for the others, where and for how many.

  Raises:
    UsageError: the numbers make no sense, or the others were not there.
  """
  if not coordinator:
    for flag, given in ('num_processes', count > 1), ('process_id', index > 0):
      if given:
        value = count if flag == 'num_processes' else index
        raise UsageError(
          f'--{flag}={value} needs --coordinator=HOST:PORT, of the first '
          "process, or --coordinator='auto'."
        )
    return
  fields: dict[str, Any] = {}
  if coordinator != AUTO:
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
      raise UsageError(
        f'--coordinator={coordinator}: give HOST:PORT, with a port of 1 to '
        '65535.'
      )
    if not 0 <= index < count:
      raise UsageError(
        f'--process_id={index} is none of --num_processes={count}; they count '
        'from 0.'
      )
    fields = {
      'coordinator_address': coordinator,
      'num_processes': count,
      'process_id': index,
    }
  say(_waiting(coordinator, count, index))
  # Its preemption service takes SIGTERM away from `interruption`.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      **fields,
      initialization_timeout=_START_SECONDS,
      heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )
  # What it raises is not documented.
  except (RuntimeError, ValueError) as error:
    raise UsageError(
      f'the processes of --coordinator={coordinator} did not come together '
      f'({" ".join(str(error).split())}); check the address, and that all of '
      'them are started.'
    ) from error


def _waiting(coordinator: str, count: int, index: int) -> str:
  """Returns what a process waits for."""
  limit = f'{_START_SECONDS} s at most'
  if coordinator == AUTO:
    return f'waiting for the other processes of this job, {limit}.'
  me = f'process {index} of {count}'
  if index:
    return f'{me}: waiting for the first one at {coordinator}, {limit}.'
  others = f'{count - 1} other{"s" if count > 2 else ""}'
  return (
    f'{me}: waiting at {coordinator} for {others}, --process_id=1'
    f'{f" to {count - 1}" if count > 2 else ""}, {limit}.'
  )


def is_first() -> bool:
  """Returns whether this process writes the files of a run."""
  return jax.process_index() == 0


def any_of(flag: bool) -> bool:
  """Returns whether a flag is set in any of the processes."""
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(np.int32(flag)).max())


def check_same_step(step: int) -> None:
  """Refuses to go on from different steps.

  Raises:
    UsageError: another process is at another step.
  """
  if jax.process_count() == 1:
    return
  found = multihost_utils.process_allgather(np.int32(step))
  if (found != step).any():
    raise UsageError(
      f'the processes read checkpoints of different steps, {found.tolist()}; '
      'check that all of them see the same work directory, and start again.'
    )


def wait_for_all(name: str) -> None:
  """Waits until all processes have come here.

  Args:
    name: of the place; the same in all of them.
  """
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'ms_ranas_jax {name}')
