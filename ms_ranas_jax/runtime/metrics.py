"""The metrics of a run, as JSON lines and as TensorBoard events.

The JSON lines are the record: one object a line, `step` in each, and after an
interruption no step twice. The TensorBoard events hold the same numbers for
looking at; they are written without TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import math
import os
from types import TracebackType
from typing import Any, TextIO

from etils import epath
import numpy as np
import tensorboardX

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import files

Metric = float | int | Sequence[float]
# How the names of lists with a number per seed end.
BY_SEED = '_by_seed'


class MetricsWriter:
  """Appends records to `metrics.jsonl` and to TensorBoard event files.

  One process of a run writes; the others leave it to that one. A record is on
  its way to the disk when `write` returns; in an object store, where a file
  cannot grow, when `flush` does. TensorBoard events are written to disks only.

  Attributes:
    path: the file of JSON lines.
  """

  def __init__(
    self, directory: str | os.PathLike[str], resume_step: int
  ) -> None:
    """Opens the files and forgets what lies after the resumed step.

    Args:
      directory: the folder of the stage; gets `metrics.jsonl` and
        `tensorboard/`.
      resume_step: the step from which the run goes on. Lines of later steps,
        and a last line that an interruption cut short, are dropped;
        TensorBoard hides the events of later steps. -1 drops everything.

    Raises:
      UsageError: a line other than the last is not a record.
    """
    folder = epath.Path(directory)
    files.make_directory(folder)
    self.path = folder / 'metrics.jsonl'
    _drop_after(self.path, resume_step)
    self._file: TextIO | None = None
    self._events: tensorboardX.SummaryWriter | None = None
    if files.is_remote(directory):
      self._text = self.path.read_text() if self.path.exists() else ''
      return
    self._file = open(self.path, 'a', encoding='utf-8', newline='\n')
    try:
      self._events = _open_events(folder / 'tensorboard', resume_step)
    except BaseException:
      self._file.close()
      raise

  def write(self, record: Mapping[str, Metric]) -> None:
    """Writes one record.

    Args:
      record: `step`, an integer, and metrics by name. A metric is a number, or
        a list with a number per exit, which TensorBoard gets as `name/exit_0`,
        `name/exit_1` and so on, or per seed where the name ends in `_by_seed`,
        which it gets as `name/seed_0`. Arrays and scalars of NumPy and JAX are
        taken.

    Raises:
      ValueError: the record has no integer `step`.
      TypeError: a metric is neither a number nor a list of numbers.
      UsageError: a number is not finite: the run has diverged.
    """
    plain = {name: _plain(name, value) for name, value in record.items()}
    step = plain.get('step')
    if isinstance(step, bool) or not isinstance(step, int):
      raise ValueError(f"a record needs an integer 'step', got {step!r}")
    scalars = _scalars(plain)
    for name, value in scalars.items():
      if not math.isfinite(value):
        raise UsageError(
          f'{name} is {value} at step {step}: the run has diverged; lower the '
          'learning rate, or start again with another seed'
        )
    line = json.dumps(plain, allow_nan=False) + '\n'
    if self._file is None or self._events is None:
      self._text += line
      return
    self._file.write(line)
    self._file.flush()
    for name, value in scalars.items():
      self._events.add_scalar(name, value, step)
    self._events.flush()

  def flush(self) -> None:
    """Brings all records to where they are kept."""
    if self._file is None:
      files.write_text(self.path, self._text)
    elif not self._file.closed:
      os.fsync(self._file.fileno())

  def close(self) -> None:
    """Closes the files; a second call does nothing."""
    self.flush()
    if self._file is not None:
      self._file.close()
    if self._events is not None:
      self._events.close()

  def __enter__(self) -> MetricsWriter:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Reads the records of a `metrics.jsonl` file.

  Args:
    path: the file. It may be written to meanwhile: a last line that is not
      whole yet is left out.

  Returns:
    The records, in the order of the file.

  Raises:
    UsageError: the file is missing, or a line other than the last is not a
      record.
  """
  return [record for record, _ in _read_lines(epath.Path(path))]


def _open_events(
  directory: epath.Path, resume_step: int
) -> tensorboardX.SummaryWriter:
  """Opens a new event file, which hides the later steps of older ones."""
  directory.mkdir(parents=True, exist_ok=True)
  # The name holds the second alone: a run that goes on within it would write
  # over the file of the run before.
  number = len(list(directory.iterdir()))
  return tensorboardX.SummaryWriter(
    str(directory),
    purge_step=resume_step + 1,
    filename_suffix=f'.{number:04d}',
  )


def _read_lines(path: epath.Path) -> list[tuple[dict[str, Any], bytes]]:
  """Returns each record with its line, without a last line cut short."""
  try:
    content = path.read_bytes()
  except FileNotFoundError as error:
    raise UsageError(
      f'{path} does not exist: run the stage that writes it'
    ) from error
  except OSError as error:
    raise UsageError(
      f'{path} cannot be read ({error.strerror}): check its permissions'
    ) from error
  lines = content.split(b'\n')
  records = []
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      record = json.loads(line.decode('utf-8'))
      step = record.get('step') if isinstance(record, dict) else None
      if isinstance(step, bool) or not isinstance(step, int):
        raise ValueError("it has no integer 'step'")
      records.append((record, line))
    except (ValueError, RecursionError) as error:
      if number == len(lines):
        # No line end: the write of this line was cut short, or is under way.
        break
      raise UsageError(
        f'{path}, line {number} is not a record ({error}): delete that line'
      ) from error
  return records


def _drop_after(path: epath.Path, step: int) -> None:
  """Rewrites the file without the records of later steps."""
  if not path.exists():
    return
  kept = [line for record, line in _read_lines(path) if record['step'] <= step]
  content = b''.join(line + b'\n' for line in kept)
  if content != path.read_bytes():
    files.write_bytes(path, content)


def _plain(name: str, value: Any) -> int | float | list[int | float]:
  """Turns a metric into a number of Python's, or a list of them."""
  array = np.asarray(value)
  if array.dtype.kind not in 'biuf' or array.ndim > 1:
    raise TypeError(
      f'metric {name!r} must be a number or a list of numbers, got {value!r}'
    )
  return array.tolist()


def _scalars(
  record: Mapping[str, int | float | list[int | float]],
) -> dict[str, int | float]:
  """Returns the numbers of a record, without `step`, by TensorBoard's tags."""
  scalars = {}
  for name, value in record.items():
    if name == 'step':
      continue
    if isinstance(value, list):
      plain = name.removesuffix(BY_SEED)
      each = 'exit' if plain == name else 'seed'
      scalars.update(
        {f'{plain}/{each}_{index}': item for index, item in enumerate(value)}
      )
    else:
      scalars[name] = value
  return scalars
