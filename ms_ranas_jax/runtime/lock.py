"""One run at a time in a work directory."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
import pathlib
import socket

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import files

try:
  import fcntl
except ImportError:  # no such locks on Windows
  fcntl = None

FILE = '.lock'


class Held(UsageError):  # noqa: N818
  """Another process holds the lock."""


@contextlib.contextmanager
def hold(workdir: str, name: str = FILE) -> Iterator[None]:
  """Holds a lock of a work directory, which the system takes back at death.

  Args:
    workdir: the directory; made where it is not there. What is no local path
      (`gs://...`) is not locked.
    name: of the file that is locked, of the work directory's own by default.

  Raises:
    Held: another process holds it.
  """
  if fcntl is None or files.is_remote(workdir):
    yield
    return
  folder = pathlib.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / name
  with open(path, 'a+', encoding='utf-8') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      owner = file.read().strip() or 'another process'
      raise Held(
        f'{workdir} is in use by {owner}; wait for it or stop it, or name '
        'another --workdir.'
      ) from error
    # The file stays when the lock is given back: another process may have
    # opened it meanwhile.
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
    file.flush()
    yield
