"""Config files by their path, or by the name of one that the package brings."""

from __future__ import annotations

import os
import pathlib

from ms_ranas_jax import paths

_FOLDER, _SUFFIX = 'configs', '.py'


def brought() -> dict[str, str]:
  """Returns name -> path of the configs that the package brings.

  An installed package holds them; in a checkout they lie beside it.
  """
  package = pathlib.Path(__file__).resolve().parent
  for folder in (package / _FOLDER, package.parent / _FOLDER):
    found = sorted(folder.glob(f'*{_SUFFIX}'))
    if found:
      return {path.stem: str(path) for path in found}
  return {}


def find(name: str) -> str:
  """Returns the path of a config file; what is on disk comes first.

      find('digits')             # of the package, from anywhere
      find('configs/digits.py')  # ./configs/digits.py, or that of the package
      find('study.py:figure6')   # ./study.py:figure6, or that of the package

  Args:
    name: a path, with or without '.py', or the name of a config that the
      package brings, alone or below 'configs/'; and, after a colon, the
      argument of its `get_config`.

  Returns:
    The path with the argument; the name as it is where there is no such file.

  Raises:
    UsageError: see `paths.expand`.
  """
  file, colon, argument = name.partition(':')
  path = paths.expand(file)
  for found in (path, path + _SUFFIX):
    if os.path.isfile(found):
      return found + colon + argument
  folder, last = os.path.split(path)
  ours = brought().get(last.removesuffix(_SUFFIX))
  if folder in ('', _FOLDER) and ours is not None:
    return ours + colon + argument
  return name
