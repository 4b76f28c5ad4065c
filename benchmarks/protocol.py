"""How a benchmark talks to the processes that it times.

A process prepares, says so, and then times what it is told to, so that two can
take turns. Only the standard library is used here: the other process runs in
an environment of its own.
"""

from __future__ import annotations

from collections.abc import Callable
import ctypes
import json
import os
import pathlib
import sys

_STATUS = pathlib.Path('/proc/self/status')


def _peak_bytes() -> int | None:
  """The largest resident size since the last reset; Linux only."""
  if not _STATUS.exists():
    return None
  for line in _STATUS.read_text().splitlines():
    if line.startswith('VmHWM:'):
      return int(line.split()[1]) * 1024
  return None


def _reset_peak() -> None:
  """Forgets what preparing took, such as the memory of a compiler."""
  try:
    # Freed memory that the allocator keeps would count as in use.
    ctypes.CDLL(None).malloc_trim(0)
  except (AttributeError, OSError, TypeError):
    pass  # not glibc: the peak then holds what the allocator keeps
  try:
    pathlib.Path('/proc/self/clear_refs').write_text('5')
  except OSError:
    # Then the peak is that of the whole process, preparation included.
    return


def serve(
  prepare: Callable[[], tuple[Callable[[int], float], dict]],
  peak_bytes: Callable[[], int | None] = _peak_bytes,
  reset_peak: Callable[[], None] = _reset_peak,
) -> None:
  """Prepares, then answers on standard output until standard input ends.

  The first line out is what `prepare` has to tell. Each line in is a number of
  steps to time, after one that is not counted; each line out is {"seconds": of
  one of them, "peak_bytes": of memory}.

  Args:
    prepare: () -> (run, facts); run(steps) returns seconds per step.
    peak_bytes: the most memory that was in use; by default the process's.
    reset_peak: makes `peak_bytes` forget.
  """
  # What others print must not come between the answers.
  answers = os.fdopen(os.dup(sys.stdout.fileno()), 'w', buffering=1)
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  run, facts = prepare()
  run(1)
  reset_peak()
  answers.write(json.dumps(facts) + '\n')
  for line in sys.stdin:
    # A virtual machine may have given freed memory back to its host while the
    # other side had its turn; a step that is not counted brings it back.
    run(1)
    seconds = run(int(line))
    answer = {'seconds': seconds, 'peak_bytes': peak_bytes()}
    answers.write(json.dumps(answer) + '\n')
