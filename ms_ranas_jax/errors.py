"""The error that a user can mend, and how a command tells of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import os
import sys


class UsageError(ValueError):
  """Bad input: a config value, a file or a work directory.

  The message is one sentence that names the field or file and the mend. The
  command line prints it alone, without a traceback, and exits with status 2.

  Example:
    >>> import ms_ranas_jax as mr
    >>> try:
    ...   mr.load_dataset('no such images')
    ... except mr.UsageError as error:
    ...   print(str(error).split(':')[0])
    ...
    dataset.name = 'no such images'
  """


BAD_INPUT = 2  # the exit status of a command


def status_of(command: Callable[[], bool]) -> int:
  """Runs a command, and tells in a sentence what was refused.

  Args:
    command: returns whether all of it was done.

  Returns:
    The exit status: 0, or `BAD_INPUT`.
  """
  try:
    return 0 if command() else BAD_INPUT
  except UsageError as error:
    tell(error)
  except BrokenPipeError:
    # Whoever reads the answers has had enough; Python would tell at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except OSError as error:
    tell(f'{error}; check the path, its permissions and the free space.')
  return BAD_INPUT


def listed(items: Sequence[object], most: int = 6) -> str:
  """Returns the first items, and how many more there are, for a message.

  >>> listed(['a', 'b', 'c'], most=2)
  'a, b and 1 more'

  Args:
    items: at least one.
    most: how many are named.
  """
  named = ', '.join(map(str, items[:most]))
  more = len(items) - most
  return f'{named} and {more} more' if more > 0 else named


def tell(text: object) -> None:
  """Writes a line to standard error, in the name of the program.

  Args:
    text: a sentence or an error; its lines become one.
  """
  line = ' '.join(str(text).split())
  print(f'ms_ranas_jax: {line}', file=sys.stderr, flush=True)
