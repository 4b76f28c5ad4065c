"""SIGTERM and SIGINT: stop where nothing is lost, and soon.

A loop whose steps would be lost defers them: it asks after every call of the
device whether to stop, saves and raises `Interrupted`. Anywhere else there is
nothing to save, since files are written atomically, so the process ends at
once, even while a compiler keeps the main thread busy. That takes a thread:
Python's own handlers wait for the main thread.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
import signal
import sys
import threading

# "Temporary failure, try again" of sysexits.h.
EXIT_CODE = 75
# What shells give a process that Ctrl-C ended.
INTERRUPT_CODE = 128 + signal.SIGINT
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):  # noqa: N818
  """A loop was asked to stop, and has saved what it did."""


class Interruption:
  """Whether to stop. On its own it never does; `listen` makes one that may."""

  def __init__(self) -> None:
    self._deferred = 0
    self._requested = threading.Event()

  @property
  def requested(self) -> bool:
    """Whether a deferred signal has come."""
    return self._requested.is_set()

  @contextlib.contextmanager
  def deferred(self) -> Iterator[None]:
    """Within this, a signal is a request; a second one ends the process."""
    self._deferred += 1
    try:
      yield
    finally:
      self._deferred -= 1

  def receive(self) -> bool:
    """Takes a signal; returns whether the process is to end at once."""
    if not self._deferred or self.requested:
      return True
    self._requested.set()
    return False


def end_at_once() -> None:
  """Lets SIGINT end the process with a line, where there is nothing to save.

  For the start of a command, which is seconds of imports. An exception would
  tell of itself in a traceback, or get lost in an import that catches all.
  `listen` takes over while it lasts.
  """
  signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: object) -> None:
  del number, frame
  try:
    _say('interrupted; nothing is lost.')
    with contextlib.suppress(OSError, ValueError, RuntimeError):
      sys.stdout.flush()
  finally:
    os._exit(INTERRUPT_CODE)


@contextlib.contextmanager
def listen() -> Iterator[Interruption]:
  """Listens to the signals, in the main thread of a process."""
  interruption = Interruption()
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  # A handler of Python's has to be there for the number to be written.
  previous = {s: signal.signal(s, lambda *_: None) for s in _SIGNALS}
  thread = threading.Thread(
    target=_serve, args=(reader, interruption), daemon=True
  )
  thread.start()
  try:
    yield interruption
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(previous_fd)
    os.close(writer)  # ends the thread
    thread.join()
    os.close(reader)


def _serve(reader: int, interruption: Interruption) -> None:
  while numbers := os.read(reader, 1):
    if numbers[0] not in _SIGNALS:
      continue
    if interruption.receive():
      try:
        _say('interrupted; the same command goes on from the last checkpoint.')
        with contextlib.suppress(OSError, ValueError):
          sys.stdout.flush()
      finally:
        os._exit(EXIT_CODE)
    _say('stopping after this call, and saving; once more stops at once.')


def _say(text: str) -> None:
  # Who reads it may be gone already: `| tee` gets the same Ctrl-C.
  # A handler may have come into the middle of a write: a RuntimeError.
  with contextlib.suppress(OSError, ValueError, RuntimeError):
    print(f'\nms_ranas_jax: {text}', file=sys.stderr, flush=True)
