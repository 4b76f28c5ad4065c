"""From what a user has set to the typed config that the program works with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

from ml_collections import ConfigDict

from ms_ranas_jax import families
from ms_ranas_jax import fields
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.search import methods
from ms_ranas_jax.sections import Config

# Sections whose class is another one for every family or method.
_NETWORK, _SEARCH = 'train.network', 'search'
_FAMILY, _METHOD = families.GRID, 'bilevel'


def _kinds(family: str, method: str) -> Iterator[tuple[str, type]]:
  """Yields (section, class of its fields), those that are asked for last.

  Where two have a field of one name, its default is that of the later.
  """
  # The first family is that of a config that says nothing.
  others = list(families.FAMILIES.values())[::-1]
  for found in (*others, families.named(family)):
    yield _NETWORK, found.config
  for made in (*methods.METHODS.values(), methods.named(method)):
    yield _SEARCH, made.config


def config_dict(family: str = _FAMILY, method: str = _METHOD) -> ConfigDict:
  """Returns every field that there is, with its default.

  Args:
    family: of the network to train, as `families.named` takes it.
    method: of the search, as `methods.named` takes it.

  Raises:
    UsageError: there is none of that name.
  """
  config = fields.config_dict(Config)
  for section, kind in _kinds(family, method):
    place = config.train.network if section == _NETWORK else config.search
    more = fields.config_dict(kind)
    for name, value in more.items():
      # A reference, since it says of which types the field may be.
      known = name in place or isinstance(value, ConfigDict)
      place[name] = value if known else more.get_ref(name)
  config.train.network.family = family
  config.search.method = method
  return config


def known_fields(
  family: str = _FAMILY, method: str = _METHOD
) -> dict[str, fields.Entry]:
  """Returns name -> field, of the whole config.

  Args:
    family: of the network to train; one of the user's own has more fields.
    method: of the search, the same.

  Raises:
    UsageError: there is none of that name.
  """
  found = {entry.name: entry for entry in fields.entries(Config)}
  stages = {_NETWORK: ('train',), _SEARCH: ('search',)}
  for section, kind in _kinds(family, method):
    for entry in fields.entries(kind, f'{section}.', stages[section]):
      found[entry.name] = entry
  return found


def fields_of(values: Mapping[str, Any]) -> dict[str, fields.Entry]:
  """Returns the fields that a config may have, with its family and method.

  Args:
    values: nested mappings. What is no name in them is left to `check_config`.

  Raises:
    UsageError: it names a family or method that there is not.
  """
  flat = fields.flatten(values)
  names = flat.get(f'{_NETWORK}.family'), flat.get(f'{_SEARCH}.method')
  return known_fields(
    *(
      name if isinstance(name, str) and ':' in name else usual
      for name, usual in zip(names, (_FAMILY, _METHOD), strict=True)
    )
  )


def check_config(config: Mapping[str, Any]) -> None:
  """Refuses a config with unknown, missing or impossible fields.

  Args:
    config: nested mappings, such as `ConfigDict.to_dict` makes.

  Raises:
    UsageError: names the field, its value and what it may be.
  """
  flat = fields.flatten(config)
  if flat.get('search.order') == 0 and fields.is_whole(flat['search.order']):
    raise UsageError(
      'config.search.order = 0: give 1 or 2; random search is search.method = '
      "'random' now."
    )
  known = fields_of(config)
  fields.check(config, known)
  _refuse_unused(
    flat, known, _SEARCH, 'method', methods.named(flat[f'{_SEARCH}.method'])
  )
  _refuse_unused(
    flat, known, _NETWORK, 'family', families.named(flat[f'{_NETWORK}.family'])
  )
  fields.check_needs(flat, known)
  for name in 'warmup_epochs', 'trunk_epochs':
    first, epochs = flat[f'train.{name}'], flat['train.epochs']
    if first >= epochs:
      raise UsageError(
        f'config.train.{name} = {first:g}, but config.train.epochs = {epochs}; '
        'give fewer than that.'
      )


def _refuse_unused(
  flat: Mapping[str, Any],
  known: Mapping[str, fields.Entry],
  section: str,
  names: str,
  chosen: type[methods.Method] | families.Family,
) -> None:
  """Refuses what a method or family has not, so that none believes it done.

  Args:
    flat: name -> value.
    known: name -> field.
    section: that is another one for every method or family.
    names: the field in it that names the choice.
    chosen: it.
  """
  own = {entry.name for entry in fields.entries(chosen.config, f'{section}.')}
  if hasattr(chosen.config, 'unused'):  # of those of its base
    own -= {f'{section}.{name}' for name in chosen.config.unused(flat)}
  for name, entry in known.items():
    if (
      name.startswith(f'{section}.')
      and name not in own
      and not fields.is_default(flat[name], entry)
    ):
      raise UsageError(
        f'config.{name} = {flat[name]!r}, but {section}.{names} = '
        f'{flat[f"{section}.{names}"]!r} has none; leave it at '
        f'{entry.default!r}.'
      )


def complete(config: ConfigDict) -> dict[str, Any]:
  """Returns what a config says, and the defaults of one's own fields.

  Args:
    config: a whole config.

  Raises:
    UsageError: it names a family or method that there is not.
  """
  values = config.to_dict()
  there = {*known_fields(), *fields.flatten(values)}
  for name, entry in fields_of(values).items():
    if name not in there:
      *sections, last = name.split('.')
      place = values
      for section in sections:
        place = place.setdefault(section, {})
      place[last] = entry.default
  return values


def parse(config: ConfigDict | Mapping[str, Any]) -> Config:
  """Returns the typed config, checked.

  Args:
    config: a whole config, or its nested mappings.

  Raises:
    UsageError: names the field, its value and what it may be.
  """
  values = complete(config) if isinstance(config, ConfigDict) else config
  check_config(values)
  whole = fields.typed(Config, values)
  network = fields.typed(
    families.named(values['train']['network']['family']).config,
    values['train']['network'],
  )
  return dataclasses.replace(
    whole,
    search=fields.typed(
      methods.named(values['search']['method']).config, values['search']
    ),
    train=dataclasses.replace(whole.train, network=network),
  )
