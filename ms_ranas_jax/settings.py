"""From what a user has set to the typed config that the program works with."""

from __future__ import annotations

from collections.abc import Mapping
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


def config_dict(family: str, method: str) -> ConfigDict:
  """Returns every field that there is, with its default.

  Args:
    family: of the network to train, as `families.named` takes it.
    method: of the search, as `methods.named` takes it.

  Raises:
    UsageError: there is none of that name.
  """
  config = fields.config_dict(Config)
  for found in (*families.FAMILIES.values(), families.named(family)):
    _add(config.train.network, fields.config_dict(found.config))
  for made in (*methods.METHODS.values(), methods.named(method)):
    _add(config.search, fields.config_dict(made.config))
  config.train.network.family = family
  config.search.method = method
  return config


def _add(section: ConfigDict, more: ConfigDict) -> None:
  for name in more:
    if name not in section:
      section[name] = more.get_ref(name)


def known_fields(
  family: families.Family | None = None,
  method: type[methods.Method] | None = None,
) -> dict[str, fields.Entry]:
  """Returns name -> field, of the whole config.

  Args:
    family: one of the user's own, whose fields there are besides.
    method: the same.
  """
  kinds = [
    *((_NETWORK, f.config) for f in families.FAMILIES.values()),
    *((_SEARCH, m.config) for m in methods.METHODS.values()),
  ]
  if family is not None:
    kinds.append((_NETWORK, family.config))
  if method is not None:
    kinds.append((_SEARCH, method.config))
  found = {entry.name: entry for entry in fields.entries(Config)}
  stages = {_NETWORK: ('train',), _SEARCH: ('search',)}
  for section, kind in kinds:
    for entry in fields.entries(kind, f'{section}.', stages[section]):
      found.setdefault(entry.name, entry)
  return found


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
  family, method = _of_ones_own(flat)
  known = known_fields(family, method)
  fields.check(config, known)
  # What a method has not is refused, so that nobody believes it was done.
  own = {
    entry.name
    for entry in fields.entries(
      methods.named(flat['search.method']).config, 'search.'
    )
  }
  for name, entry in known.items():
    if (
      name.startswith('search.')
      and name not in own
      and flat[name] != entry.default
    ):
      raise UsageError(
        f'config.{name} = {flat[name]!r}, but search.method = '
        f'{flat["search.method"]!r} has none; leave it at {entry.default!r}.'
      )


def _of_ones_own(
  flat: Mapping[str, Any],
) -> tuple[families.Family | None, type[methods.Method] | None]:
  """Returns the family and the method that are not of the package."""
  family = method = None
  name = flat.get('train.network.family')
  if isinstance(name, str) and ':' in name:
    family = families.named(name)
  name = flat.get('search.method')
  if isinstance(name, str) and ':' in name:
    method = methods.named(name)
  return family, method


def complete(config: ConfigDict) -> dict[str, Any]:
  """Returns what a config says, and the defaults of one's own fields.

  Args:
    config: a whole config.

  Raises:
    UsageError: it names a family or method that there is not.
  """
  values = config.to_dict()
  family, method = _of_ones_own(fields.flatten(values))
  for kind, section in (
    (family, lambda: values['train']['network']),
    (method, lambda: values['search']),
  ):
    if kind is not None:
      for name, value in fields.config_dict(kind.config).to_dict().items():
        section().setdefault(name, value)
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
