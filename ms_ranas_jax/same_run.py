"""What may change in a work directory, and what is done again.

A field binds the stages that depend on it from the moment that they have kept
something. `config.json` holds the fields, `begun.json` which stages these bind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
from typing import Any

from ms_ranas_jax import errors
from ms_ranas_jax import fields
from ms_ranas_jax import settings
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.model import description as description_lib
from ms_ranas_jax.model import tensors
from ms_ranas_jax.runtime import checkpoint
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import loop as loop_lib
from ms_ranas_jax.search import selection

CONFIG_FILE = 'config.json'
BEGUN_FILE = 'begun.json'
ASIDE = 'aside'
# Fields that had another name -> what they are called now. Work directories of
# before hold the old names.
RENAMED_FIELDS: Mapping[str, str] = {}
# The stem of several scales, when there was no field for it.
_STEM_OF_BEFORE = 3
# Stages whose results later calls go on with; the others are made anew each
# time.
_KEPT = ('search', 'train')
_LEFT: Mapping[str, tuple[str, ...]] = {
  'search': ('search',),
  'train': ('train', 'model'),
  'evaluate': ('evaluate',),
  'export': ('export',),
  'report': ('figures', 'report.html'),
}
_EPOCHS = 'train.epochs'
_NETWORK = 'train.network.'
_GENOTYPE = 'train.genotype'


@dataclasses.dataclass(frozen=True)
class Changes:
  """What of a work directory is not of the config that is asked for.

  Attributes:
    again: stages whose results are of another config, and those that have read
      them; they are set aside, and done again where they are asked for.
    longer: whether a finished training goes on to more epochs.
  """

  again: tuple[str, ...] = ()
  longer: bool = False


def check_whole(values: Mapping[str, Any], workdir: str) -> None:
  """Refuses a work directory of which any field differs that is not free.

  Args:
    values: the whole config, nested mappings.
    workdir: the work directory; nothing has to be there.

  Raises:
    UsageError: it holds another config; the message names what differs.
  """
  old, new = _read(values, workdir)
  known = settings.fields_of(values)
  differing = [name for name in _differing(old, new) if _binds(known, name)]
  if differing:
    raise _other_config(workdir, old, new, differing)


def compare(
  values: Mapping[str, Any], workdir: str, redo: bool = False
) -> Changes:
  """Says what of a work directory is not of a config.

  Args:
    values: the whole config, nested mappings.
    workdir: the work directory; nothing has to be there.
    redo: whether stages may be done again.

  Returns:
    What is to be done with what is there, see `set_aside`.

  Raises:
    UsageError: a stage has kept something of another config, and may not be
      done again; the message names what differs.
  """
  old, new = _read(values, workdir)
  if not old:
    return Changes()
  known = settings.fields_of(values)
  stages = new['stages']
  begun = _begun(workdir)
  finished = begun.get('search', False)
  bound: dict[str, list[str]] = {stage: [] for stage in _KEPT}
  longer = False
  for name in _differing(old, new):
    if not _binds(known, name):
      continue
    if name == _EPOCHS and _is_more(old, new) and _can_go_on(workdir):
      if 'train' not in stages:
        raise UsageError(
          f'config.{name} was {old[name]}, now {new[name]}: add '
          "'train' to config.stages, so that the training goes on."
        )
      longer = True
      continue
    for stage in begun:
      if _depends(stage, name, known, finished):
        bound[stage].append(name)
  differing = sorted({name for names in bound.values() for name in names})
  if not differing:
    return Changes(longer=longer)
  again = [stage for stage in _KEPT if bound[stage]]
  if not redo:
    raise _other_config(workdir, old, new, differing, again)
  missing = [stage for stage in again if stage not in stages]
  if missing:
    raise UsageError(
      f'--redo: {_listed(old, new, differing)}: what {" and ".join(missing)} '
      f'kept in {workdir} is of another config; add it to config.stages, or '
      'set these fields back.'
    )
  if 'search' in again and 'train' in begun and not old[_GENOTYPE]:
    again.append('train')  # it has read what was found
  return Changes(
    tuple(
      stage
      for stage in _LEFT
      if stage in again
      or stage == 'report'
      or (stage in ('evaluate', 'export') and 'train' in again)
    ),
    longer and 'train' not in again,
  )


def begin(workdir: str, stage: str) -> None:
  """Writes down that the fields of the config bind a stage from now on."""
  if stage in _KEPT:
    _write_begun(workdir, {stage: False, **_recorded(workdir)})


def finish(workdir: str, stage: str) -> None:
  """Writes down that a stage is through."""
  if stage in _KEPT:
    _write_begun(workdir, {**_recorded(workdir), stage: True})


def is_finished(workdir: str, stage: str) -> bool:
  """Returns whether a stage is through; not known of earlier releases."""
  return _recorded(workdir).get(stage, False)


def is_of_here(workdir: str, stage: str) -> bool:
  """Returns whether what there is of a stage was made in this directory.

  It was not where a model folder was brought from elsewhere. Earlier releases
  did not write down what they have begun.
  """
  made_here = files.is_file(os.path.join(workdir, CONFIG_FILE))
  return (made_here and stage in _begun(workdir)) or not has_kept(
    workdir, stage
  )


def write_config(values: Mapping[str, Any], workdir: str) -> None:
  """Writes the config of a call, after `compare` and `set_aside`."""
  if not files.is_file(os.path.join(workdir, BEGUN_FILE)):
    # Of an earlier release all that it has kept was made here.
    there = files.is_file(os.path.join(workdir, CONFIG_FILE))
    kept = [s for s in _KEPT if there and has_kept(workdir, s)]
    _write_begun(workdir, dict.fromkeys(kept, False))
  files.write_json(os.path.join(workdir, CONFIG_FILE), values)


def set_aside(workdir: str, changes: Changes) -> str | None:
  """Moves what is not of the config any more to a folder of its own.

  A training that goes on keeps its checkpoints; what was trained so far is
  copied.

  Args:
    workdir: the work directory, held by this process.
    changes: see `compare`.

  Returns:
    The folder, None where nothing was moved.
  """
  # What was made of a result goes first: it never stands beside another one.
  moved = [
    name
    for stage in reversed(
      ('evaluate', 'export', 'report') if changes.longer else changes.again
    )
    for name in _LEFT[stage]
    if files.exists(os.path.join(workdir, name))
  ]
  folder = description_lib.folder_of(workdir)
  described = description_lib.exists(folder)
  copied = []
  if changes.longer and described:
    description = description_lib.read(folder)
    if description.tensors is not None:
      copied = [description_lib.FILE, tensors.FILE]
  if not moved and not copied:
    return None
  target = _new_folder(workdir)
  config = os.path.join(workdir, CONFIG_FILE)
  files.write_bytes(os.path.join(target, CONFIG_FILE), files.read_bytes(config))
  for name in copied:
    files.write_bytes(
      os.path.join(description_lib.folder_of(target), name),
      files.read_bytes(os.path.join(folder, name)),
    )
  for name in moved:
    files.move(os.path.join(workdir, name), os.path.join(target, name))
  if copied:
    description_lib.write(
      folder,
      dataclasses.replace(
        description_lib.read(folder), tensors=None, evaluation=None
      ),
    )
  kept = {k: v for k, v in _begun(workdir).items() if k not in changes.again}
  _write_begun(workdir, kept)
  return target


def _new_folder(workdir: str) -> str:
  number = 1
  while files.is_directory(os.path.join(workdir, ASIDE, str(number))):
    number += 1
  return os.path.join(workdir, ASIDE, str(number))


def _read(
  values: Mapping[str, Any], workdir: str
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the fields of a work directory, empty where it has none, and new.

  Both as JSON has them.
  """
  new = fields.flatten(json.loads(json.dumps(values)))
  path = os.path.join(workdir, CONFIG_FILE)
  if not files.is_file(path):
    return {}, new
  found = files.read_json(path)
  if not isinstance(found, dict):
    raise UsageError(f'{path} holds no config; name another --workdir.')
  old = _translated(fields.flatten(found))
  for name, entry in settings.fields_of(values).items():
    # Fields that are newer than the work directory had their defaults.
    old.setdefault(name, json.loads(json.dumps(entry.default)))
  return old, new


def _translated(old: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of a work directory of before, as they are now."""
  found = {RENAMED_FIELDS.get(name, name): old[name] for name in old}
  if found.get('search.order') == 0:  # was random search
    found |= {'search.order': 1, 'search.method': 'random'}
  for part in ('search', 'train'):
    network = f'{part}.network.'
    is_grid = found.get(f'{network}family', 'grid') == 'grid'
    if is_grid and found.get(f'{network}scales', 1) > 1:
      found.setdefault(f'{network}stem_multiplier', _STEM_OF_BEFORE)
  return found


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  if not old:
    return []
  return sorted(n for n in old.keys() | new.keys() if old.get(n) != new.get(n))


def _binds(known: Mapping[str, fields.Entry], name: str) -> bool:
  return not (name in known and known[name].field.free)


def _is_more(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
  then, now = old[_EPOCHS], new[_EPOCHS]
  return fields.is_whole(then) and now > then


def _can_go_on(workdir: str) -> bool:
  return checkpoint.any_in(loop_lib.checkpoints(workdir, 'train'))


def _depends(
  stage: str, name: str, known: Mapping[str, fields.Entry], finished: bool
) -> bool:
  """Returns whether what a stage has kept depends on a field.

  A search follows what the network to be trained would cost; once it is through
  another one may be trained of its cells. A field that is not known any more is
  of all stages.
  """
  if name not in known:
    return True
  if stage == 'search' and name.startswith(_NETWORK):
    return not finished
  return stage in (known[name].field.stages or ())


def _listed(
  old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str]
) -> str:
  return errors.listed(
    [f'{name} was {old.get(name)!r}, now {new.get(name)!r}' for name in names]
  )


def _other_config(
  workdir: str,
  old: Mapping[str, Any],
  new: Mapping[str, Any],
  names: Sequence[str],
  again: Sequence[str] = (),
) -> UsageError:
  mend = 'name another --workdir, or set these fields back'
  if again:
    mend = (
      'name another --workdir, set these fields back, or say --redo: then '
      f'{" and ".join(again)} is done again, and what is there is kept in '
      f'{os.path.join(workdir, ASIDE)}'
    )
  return UsageError(
    f'{os.path.join(workdir, CONFIG_FILE)} is of another config: '
    f'{_listed(old, new, names)}; {mend}.'
  )


def _recorded(workdir: str) -> dict[str, bool]:
  """Returns the stages that were begun -> whether they are through."""
  path = os.path.join(workdir, BEGUN_FILE)
  return dict(files.read_json(path)) if files.is_file(path) else {}


def _begun(workdir: str) -> dict[str, bool]:
  """Returns the stages that have kept something -> whether they are through.

  A work directory of an earlier release does not say: its config binds all.
  """
  if not files.is_file(os.path.join(workdir, BEGUN_FILE)):
    return dict.fromkeys(_KEPT, False)
  return {
    stage: done
    for stage, done in _recorded(workdir).items()
    if has_kept(workdir, stage)
  }


def has_kept(workdir: str, stage: str) -> bool:
  """Returns whether there is anything that a stage could go on with.

  Args:
    workdir: the work directory.
    stage: 'search' or 'train'.
  """
  if checkpoint.any_in(loop_lib.checkpoints(workdir, stage)):
    return True
  if stage == 'search':
    return files.is_file(os.path.join(workdir, selection.GENOTYPE_FILE))
  folder = description_lib.folder_of(workdir)
  return (
    description_lib.exists(folder)
    and description_lib.read(folder).tensors is not None
  )


def _write_begun(workdir: str, begun: Mapping[str, bool]) -> None:
  files.write_json(os.path.join(workdir, BEGUN_FILE), begun)
