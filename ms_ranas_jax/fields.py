"""Fields of a config, each written down once: as an attribute of a dataclass.

A section of a config is a frozen dataclass whose attributes are made by `field`
or, for sections within it, by `section`. From it come the ConfigDict that a
config file starts from, the checks of what a user has set, the typed values
that the program works with, and what a reference says.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from ml_collections import ConfigDict
from ml_collections import FieldReference

from ms_ranas_jax import paths
from ms_ranas_jax.errors import UsageError

if TYPE_CHECKING:
  from _typeshed import DataclassInstance

T = TypeVar('T', bound='DataclassInstance')
_KEY = 'field'
# Where a user finds what there is.
PLACE = paths.of_module('sections.py')


@dataclasses.dataclass(frozen=True)
class Rule:
  """What a field may be.

  Attributes:
    holds: value -> whether it may be that.
    expected: the same in words, after "give".
    mixed: whether values of several types may be.
  """

  holds: Callable[[Any], bool]
  expected: str
  mixed: bool = False


@dataclasses.dataclass(frozen=True)
class Field:
  """What is known of a field beside its default.

  Attributes:
    rule: what it may be.
    meaning: what it decides, a phrase.
    unit: of a number, where it has one.
    stages: that depend on it; None is those of its section.
    free: whether it may change from one call to the next in a work directory,
      since nothing that is kept depends on it.
    needs: another field of its section, and the value which that must have for
      this one to do anything, or the rule of it; None is any value that is not
      0, False or ''.
  """

  rule: Rule
  meaning: str
  unit: str = ''
  stages: tuple[str, ...] | None = None
  free: bool = False
  needs: tuple[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class _Section:
  kind: type
  meaning: str
  stages: tuple[str, ...] | None


def field(
  default: Any,
  rule: Rule,
  meaning: str,
  *,
  unit: str = '',
  stages: tuple[str, ...] | None = None,
  free: bool = False,
  needs: tuple[str, Any] | None = None,
) -> Any:
  """Returns an attribute of a section's dataclass.

      epochs: int = field(5, whole(1), 'passes over the images')

  Args:
    default: its value where nothing is said.
    rule: what it may be.
    meaning: what it decides.
    unit: of a number.
    stages: that depend on it; None is those of its section.
    free: whether it may change in a work directory.
    needs: (another field of the section, its value, rule or None) without which
      it does nothing, and is refused.
  """
  entry = Field(rule, meaning, unit, stages, free, needs)
  # pylint: disable-next=invalid-field-call; for the body of a dataclass
  return dataclasses.field(default=default, metadata={_KEY: entry})


def section(
  kind: type, meaning: str, stages: tuple[str, ...] | None = None
) -> Any:
  """Returns an attribute that is a section itself.

  Args:
    kind: its dataclass.
    meaning: what its fields are about.
    stages: that depend on them; None is those of the section around it.
  """
  entry = _Section(kind, meaning, stages)
  # pylint: disable-next=invalid-field-call; for the body of a dataclass
  return dataclasses.field(default_factory=kind, metadata={_KEY: entry})


def is_whole(value: Any) -> bool:
  """Returns whether a value is a whole number."""
  return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
  """Returns whether a value is a finite number."""
  # Not math.isfinite, which cannot take an integer beyond the floats.
  largest = sys.float_info.max
  return (is_whole(value) or isinstance(value, float)) and abs(value) <= largest


def is_sequence_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
  """Returns what holds of tuples and lists of which each entry holds."""
  return lambda v: isinstance(v, tuple | list) and all(map(holds, v))


def whole(low: int, high: int | None = None) -> Rule:
  """Whole numbers from `low`, to `high` where there is an end."""
  end = '' if high is None else f' and at most {high}'
  return Rule(
    lambda v: is_whole(v) and v >= low and (high is None or v <= high),
    f'a whole number of at least {low}{end}',
  )


def number(low: float, high: float = math.inf, above: bool = False) -> Rule:
  """Numbers from `low`, without it where `above`, to `high`."""
  start = f'above {low:g}' if above else f'of at least {low:g}'
  end = '' if high == math.inf else f' and at most {high:g}'
  return Rule(
    lambda v: is_number(v) and low <= v <= high and not (above and v == low),
    f'a number {start}{end}',
  )


def one_of(*values: Any) -> Rule:
  """Some values, by type and value."""
  return Rule(
    lambda v: type(v) in {type(x) for x in values} and v in values,
    f'one of {", ".join(map(repr, values))}',
  )


def named(*names: str) -> Rule:
  """Names of what the package has, or of what `importing.load` finds."""
  listed = ', '.join(map(repr, names))
  return Rule(
    lambda v: isinstance(v, str) and (v in names or ':' in v),
    f"one of {listed}, or 'my_module:my_name' of your own",
  )


TEXT = Rule(lambda v: isinstance(v, str), 'a text')
FLAG = Rule(lambda v: isinstance(v, bool), 'True or False')
NUMBERS = Rule(
  is_sequence_of(lambda v: is_number(v) and v >= 0),
  'a tuple of numbers of at least 0',
)


def parse_tuple(text: str) -> tuple[Any, ...]:
  """Returns the tuple that is meant on a command line.

      parse_tuple('search,train')        # ('search', 'train')
      parse_tuple('0,1e6')               # (0, 1e6)
      parse_tuple("('search','train')")  # ('search', 'train')
      parse_tuple('search')              # ('search',)
      parse_tuple('')                    # ()

  Args:
    text: entries with commas between them, with or without brackets around
      them and quotes around texts. What is written as a number is one.
  """
  inner = text.strip()
  if inner[:1] + inner[-1:] in ('()', '[]'):
    inner = inner[1:-1]
  parts = [part.strip() for part in inner.split(',')]
  if not parts[-1]:  # nothing at all, or a comma at the end
    parts.pop()
  return tuple(map(_parse_entry, parts))


def _parse_entry(text: str) -> Any:
  try:
    value = ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text
  # None and True are names like any other.
  return value if isinstance(value, str) or is_number(value) else text


@dataclasses.dataclass(frozen=True)
class Entry:
  """A field where it stands.

  Attributes:
    name: with the sections around it, 'search.epochs'.
    default: its default.
    field: what is known of it, `stages` settled.
  """

  name: str
  default: Any
  field: Field


@functools.cache
def entries(
  kind: type, prefix: str = '', stages: tuple[str, ...] = ()
) -> tuple[Entry, ...]:
  """Returns the fields of a section and of those within it.

  Args:
    kind: a dataclass.
    prefix: what stands before the names.
    stages: of fields that name none.
  """
  found: list[Entry] = []
  for attribute in dataclasses.fields(kind):
    entry = attribute.metadata[_KEY]
    name = prefix + attribute.name
    settled = stages if entry.stages is None else entry.stages
    if isinstance(entry, _Section):
      found += entries(entry.kind, f'{name}.', settled)
    else:
      known = dataclasses.replace(entry, stages=settled)
      found.append(Entry(name, attribute.default, known))
  return tuple(found)


def config_dict(kind: type) -> ConfigDict:
  """Returns a section with its defaults, as config files change it.

  Args:
    kind: a dataclass.
  """
  config = ConfigDict()
  for attribute in dataclasses.fields(kind):
    entry = attribute.metadata[_KEY]
    if isinstance(entry, _Section):
      config[attribute.name] = config_dict(entry.kind)
    elif entry.rule.mixed:
      config[attribute.name] = FieldReference(
        attribute.default, field_type=object
      )
    else:
      config[attribute.name] = attribute.default
  return config


def typed(kind: type[T], values: Mapping[str, Any]) -> T:
  """Returns a section with the values that were set.

  Args:
    kind: a dataclass.
    values: nested mappings, checked; what `kind` has no field for is left out,
      and what is not there has its default.
  """
  found = {}
  for attribute in dataclasses.fields(kind):
    if attribute.name not in values:
      continue
    value = values[attribute.name]
    entry = attribute.metadata[_KEY]
    if isinstance(entry, _Section):
      # What another floor has typed already stays.
      if isinstance(value, Mapping):
        value = typed(entry.kind, value)
    elif isinstance(value, list):
      value = tuple(value)
    found[attribute.name] = value
  return kind(**found)


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns a nested config as {'section.field': value}."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = value
  return flat


def check(values: Mapping[str, Any], known: Mapping[str, Entry]) -> None:
  """Refuses unknown, missing or impossible fields.

  Args:
    values: nested mappings, such as `ConfigDict.to_dict` makes.
    known: name -> field, all that there may and must be.

  Raises:
    UsageError: names the field, its value and what it may be.
  """
  flat = flatten(values)
  for name in flat:
    if name not in known:
      raise UsageError(
        f'config.{name} is not a field; remove it, or see {PLACE} for the '
        'fields there are.'
      )
  for name, entry in known.items():
    if name not in flat:
      raise UsageError(
        f'config.{name} is missing; set it, or start from '
        f'{paths.of_module("default_config.py")}.'
      )
    if not entry.field.rule.holds(flat[name]):
      raise UsageError(
        f'config.{name} = {flat[name]!r}: give {entry.field.rule.expected}.'
      )


def is_default(value: Any, entry: Entry) -> bool:
  """Returns whether a field is as where nothing was said."""
  if isinstance(value, list):
    value = tuple(value)
  return value == entry.default


def check_needs(flat: Mapping[str, Any], known: Mapping[str, Entry]) -> None:
  """Refuses fields that are set and do nothing.

  Args:
    flat: name -> value, all checked.
    known: name -> field.

  Raises:
    UsageError: names the field, and the one that it needs.
  """
  for name, entry in known.items():
    if entry.field.needs is None or is_default(flat[name], entry):
      continue
    other, wanted = entry.field.needs
    other = '.'.join([*name.split('.')[:-1], other])
    found = flat[other]
    if isinstance(wanted, Rule):
      holds, mend = wanted.holds(found), f'set {other} to {wanted.expected}'
    elif wanted is None:
      holds, mend = bool(found), f'set {other}'
    else:
      holds, mend = found == wanted, f'set {other} = {wanted!r}'
    if not holds:
      raise UsageError(
        f'config.{name} = {flat[name]!r} does nothing while config.{other} = '
        f'{found!r}; {mend}, or leave it at {entry.default!r}.'
      )
