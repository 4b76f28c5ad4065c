"""How far a long loop is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import sys
import time
from types import TracebackType
from typing import TextIO

import tqdm

Metric = float | int | Sequence[float]


class Progress:
  """Reports how far a loop is, how fast it runs and when it ends.

  Use it as a context manager:

    with Progress('search', total=400, initial=100) as progress:
      for chunk in chunks:
        ...
        progress.update(10, {'loss': 1.23})

  On a terminal it draws a bar. Elsewhere it writes a line at the start, at the
  first update, at the end, and between them one at most every `interval`
  seconds:

    search  120/400 steps  30%  2.1 step/s  left 2m13s  loss 1.234

  The rate leaves out what a resumed run had done before, and the time up to
  the first update, in which the step is compiled; so the first update shows
  none, unless it ends the loop.
  """

  def __init__(
    self,
    label: str,
    total: int,
    initial: int = 0,
    unit: str = 'step',
    *,
    interval: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
    stream: TextIO | None = None,
  ) -> None:
    """Sets the counts; nothing is written before the context is entered.

    Args:
      label: the name of the loop, first in every line.
      total: the units that the loop has in all.
      initial: those that an interrupted run had done already.
      unit: the name of one unit.
      interval: the least time between two plain lines, in seconds.
      clock: returns the time in seconds; another one is for tests.
      stream: where to write; standard error if None.
    """
    self._label = label
    self._total = total
    self._unit = unit
    self._interval = interval
    self._clock = clock
    self._stream = stream
    self._initial = initial
    self._done = initial
    self._metrics: Mapping[str, Metric] = {}
    self._bar: tqdm.tqdm | None = None
    self._start = 0.0
    self._last = 0.0
    self._first_update: tuple[int, float] | None = None
    self._written_at = 0.0
    self._written_done: int | None = None

  def __enter__(self) -> Progress:
    if self._stream is None:
      self._stream = sys.stderr
    self._start = self._last = self._clock()
    if self._stream.isatty():
      self._bar = tqdm.tqdm(
        desc=self._label,
        total=self._total,
        initial=self._initial,
        file=self._stream,
        dynamic_ncols=True,
        # The rate and the time left are this class's own, so that a terminal
        # and a log file say the same.
        bar_format='{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}'
        '{postfix}',
      )
    else:
      self._write_line()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    if self._bar is not None:
      self._bar.close()
      self._bar = None
    elif self._written_done != self._done:
      self._write_line()

  def update(
    self, count: int, metrics: Mapping[str, Metric] | None = None
  ) -> None:
    """Counts units that are done, and shows them.

    Args:
      count: the units done since the last call.
      metrics: numbers to show beside them, or lists with a number per exit;
        those of the last call stay if None.
    """
    self._done += count
    self._last = self._clock()
    is_first = self._first_update is None
    if is_first:
      self._first_update = (self._done, self._last)
    if metrics is not None:
      self._metrics = metrics
    if self._bar is not None:
      self._bar.set_postfix_str('  '.join(self._status()), refresh=False)
      self._bar.update(count)
      return
    if (
      is_first
      or self._done >= self._total
      or self._last - self._written_at >= self._interval
    ):
      self._write_line()

  def rate(self) -> float | None:
    """Returns the units per second since the first update.

    None before there are two updates: the time up to the first one holds the
    compilation. Of a loop that ends with its first, it is over all the time.
    """
    if self._first_update is None:
      return None
    first_done, first_time = self._first_update
    if self._last > first_time and self._done > first_done:
      return (self._done - first_done) / (self._last - first_time)
    if self._done >= self._total and first_time > self._start:
      return (first_done - self._initial) / (first_time - self._start)
    return None

  def _status(self) -> list[str]:
    """Returns rate, time left and metrics, as far as they are known."""
    parts = []
    rate = self.rate()
    if rate:
      parts.append(_format_rate(rate, self._unit))
      if self._done < self._total:
        left = (self._total - self._done) / rate
        parts.append(f'left {format_duration(left)}')
    if self._done >= self._total:
      parts.append(f'took {format_duration(self._last - self._start)}')
    parts += [
      f'{name} {_format_metric(value)}' for name, value in self._metrics.items()
    ]
    return parts

  def _write_line(self) -> None:
    """Writes one plain line."""
    # Rounded down: 100% is for the end alone.
    percentage = 100 if not self._total else 100 * self._done // self._total
    units = self._unit if self._total == 1 else f'{self._unit}s'
    parts = [
      self._label,
      f'{self._done}/{self._total} {units}',
      f'{percentage}%',
      *self._status(),
    ]
    print('  '.join(parts), file=self._stream, flush=True)
    self._written_at = self._clock()
    self._written_done = self._done


def format_duration(seconds: float) -> str:
  """Formats a time for people, in its two largest units.

  Args:
    seconds: the time in seconds, at least 0.

  Returns:
    For example `45s`, `2m13s`, `1h02m` or `3d04h`.
  """
  whole = round(seconds)
  minutes, second = divmod(whole, 60)
  hours, minute = divmod(minutes, 60)
  days, hour = divmod(hours, 24)
  if days:
    return f'{days}d{hour:02d}h'
  if hours:
    return f'{hours}h{minute:02d}m'
  if minutes:
    return f'{minutes}m{second:02d}s'
  return f'{second}s'


def _format_rate(rate: float, unit: str) -> str:
  """Formats units per second, or seconds per unit where that is slow."""
  if rate < 1:
    return f'{1 / rate:.1f} s/{unit}'
  return f'{rate:.1f} {unit}/s' if rate < 100 else f'{rate:.0f} {unit}/s'


def _format_metric(value: Metric) -> str:
  """Formats a number with four digits, a list as numbers with slashes."""
  if isinstance(value, int):
    return str(value)
  try:
    return '/'.join(f'{float(item):.4g}' for item in value)
  except TypeError:
    return f'{float(value):.4g}'
