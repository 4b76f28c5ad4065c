"""What a config names by 'my_module:my_name', found by an import.

A family of networks, a search method, an operation and a data set of one's own
are named so; nothing is registered, and the name is what is written down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import importlib
import importlib.util
from typing import Any, TypeVar

from ms_ranas_jax.errors import UsageError

T = TypeVar('T')


def load(name: str) -> Any:
  """Imports what a name stands for.

      load('my_module:MyFamily')

  Args:
    name: of a module that can be imported, and of what stands in it.

  Raises:
    UsageError: there is no such module, or nothing of that name in it.
  """
  module, _, attribute = name.partition(':')
  try:
    found = importlib.import_module(module)
  # A module is code: what it can raise is not a closed list.
  except Exception as error:
    reason = ' '.join(str(error).split())
    raise UsageError(
      f'{name!r}: {type(error).__name__}: {reason}; name a module that Python '
      'finds from here, as my_module:my_name.'
    ) from error
  if not hasattr(found, attribute):
    raise UsageError(
      f'{name!r}: {found.__name__} has no {attribute!r}; correct the name.'
    )
  return getattr(found, attribute)


def find(
  name: str,
  known: Mapping[str, T],
  field: str,
  fits: Callable[[Any], bool] = callable,
  expected: str = 'a function',
) -> T:
  """Returns one of what the package has, or what is imported by its name.

  Args:
    name: a key of `known`, or 'my_module:my_name'.
    known: name -> what it stands for.
    field: of the config, for the message.
    fits: whether what was imported can stand there.
    expected: the same in words, after "name".

  Raises:
    UsageError: it is neither, or does not fit.
  """
  if name in known:
    return known[name]
  if ':' in name:
    try:
      found = load(name)
    except UsageError as error:
      raise UsageError(f'{field} = {error}') from error
    if not fits(found):
      raise UsageError(f'{field} = {name!r} is {found!r}: name {expected}.')
    return found
  raise UsageError(
    f'{field} = {name!r}: give one of {", ".join(known)}, or '
    "'my_module:my_name' of your own."
  )


def check_extra(extra: str, modules: Sequence[str], why: str) -> None:
  """Refuses what needs libraries that are not installed.

  Args:
    extra: of the package, that brings them.
    modules: what has to be there.
    why: what needs them, for the message.

  Raises:
    UsageError: says what is missing, and how to get it.
  """
  missing = [n for n in modules if importlib.util.find_spec(n) is None]
  if missing:
    raise UsageError(
      f'{why} needs {", ".join(missing)}, not installed here; run pip install '
      f"'ms_ranas_jax[{extra}]'."
    )
