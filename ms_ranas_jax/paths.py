"""Paths as users write them, and as they read them."""

from __future__ import annotations

import os

from ms_ranas_jax.errors import UsageError

_PACKAGE = os.path.dirname(os.path.abspath(__file__))


def expand(path: str | os.PathLike[str]) -> str:
  """Returns a path with the home folder in the place of a leading `~`.

  A shell leaves the tilde of --workdir=~/x as it is. Whatever takes a path from
  a user expands it with this.

      expand('~/runs')         # /home/me/runs
      expand('gs://mine/run')  # as it is

  Args:
    path: local or remote.

  Raises:
    UsageError: it names a user that there is not.
  """
  found = os.path.expanduser(os.fspath(path))
  if found.startswith('~'):
    raise UsageError(
      f'{found}: there is no such home folder; write the whole path, or '
      f'./{found} for a folder of that name.'
    )
  return found


def of_module(name: str) -> str:
  """Returns the path of a file of the package, from here where it lies below.

      of_module('sections.py')  # ms_ranas_jax/sections.py in a checkout

  Args:
    name: of the file, in the folder of the package.
  """
  path = os.path.join(_PACKAGE, name)
  here = os.path.relpath(path)
  return path if here.startswith(os.pardir) else here
