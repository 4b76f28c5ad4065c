"""How far a long loop is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
import sys
import time
from typing import Any, TextIO

import tqdm

_LINE_SECONDS = 10.0
_LINE_FORMAT = (
  '{desc}: {n_fmt}/{total_fmt} {unit}s, {percentage:.0f}% '
  '[{elapsed}<{remaining}, {rate_fmt}{postfix}]'
)


class Progress(tqdm.tqdm):
  """Shows steps done, time, rate and metrics.

  On a terminal it draws a bar. Elsewhere it writes a line at the start, at the
  first update, at the end, and between them one at most every ten seconds:

    search: 120/400 steps, 30% [00:10<02:13, 2.10step/s, loss=1.234]

  Time and rate leave out what a resumed run had done before, and the first
  update, in which the step is compiled.
  """

  def __init__(
    self,
    label: str,
    total: int,
    initial: int = 0,
    disable: bool = False,
    stream: TextIO | None = None,
    unit: str = 'step',
  ) -> None:
    """Shows where the loop starts.

    Args:
      label: the name of the loop, first in every line.
      total: the steps that the loop has in all.
      initial: those that an interrupted run had done already.
      disable: nothing is shown.
      stream: where to write; standard error if None.
      unit: what is counted.
    """
    stream = stream or sys.stderr
    look: dict[str, Any] = {'file': stream, 'dynamic_ncols': True}
    if not stream.isatty():
      look = {
        'file': _Lines(stream),
        'bar_format': _LINE_FORMAT,
        'mininterval': _LINE_SECONDS,
      }
    # Without smoothing the rate is over all steps since the first update.
    super().__init__(
      desc=label,
      total=total,
      initial=initial,
      disable=disable,
      unit=unit,
      miniters=1,  # the time alone decides when to show
      smoothing=0,
      **look,
    )
    self._compiling = True

  def update(
    self, n: float | None = 1, metrics: Mapping[str, float] | None = None
  ) -> None:
    """Counts steps that are done, and shows them.

    Args:
      n: the steps done since the last call.
      metrics: numbers to show beside them; those of the last call stay if None.
    """
    if metrics is not None:
      texts = {name: f'{value:.4g}' for name, value in metrics.items()}
      self.set_postfix(texts, refresh=False)
    if not self._compiling:
      super().update(n)
      return
    self._compiling = False
    self.n += n
    self.initial = self.last_print_n = self.n
    self.start_t = self.last_print_t = time.time()
    self.refresh()


class _Lines:
  """A stream that makes a line of each text that tqdm would redraw."""

  def __init__(self, stream: TextIO) -> None:
    self._stream = stream
    self._last = ''

  def write(self, text: str) -> None:
    """Writes a text as a line, unless it is empty or that of the last line."""
    text = text.strip()
    if text and text != self._last:
      self._stream.write(f'{text}\n')
      self._last = text

  def flush(self) -> None:
    """Flushes the stream."""
    self._stream.flush()
