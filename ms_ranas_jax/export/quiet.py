"""Keeps from the terminal what libraries tell their own developers."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import io
import logging
import warnings

# That of absl has a level of its own.
_LOGGERS = (None, 'absl')


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Within this, nothing is printed, and only errors are logged.

  It is for code whose result is checked, as progress, advice and warnings are
  lost. Nothing else may print meanwhile.
  """
  loggers = [logging.getLogger(name) for name in _LOGGERS]
  levels = [logger.level for logger in loggers]
  for logger in loggers:
    logger.setLevel(logging.ERROR)
  try:
    with (
      contextlib.redirect_stdout(io.StringIO()),
      contextlib.redirect_stderr(io.StringIO()),
      warnings.catch_warnings(),
    ):
      warnings.simplefilter('ignore', UserWarning)
      yield
  finally:
    for logger, level in zip(loggers, levels, strict=True):
      logger.setLevel(level)
