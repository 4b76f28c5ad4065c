"""Folders of pictures, one for each class.

Either DIR/train/CLASS/... and DIR/test/CLASS/..., or DIR/CLASS/.... The classes
are the names of their folders, in the order of the alphabet; pictures lie in
them or in folders within. A picture is read as `predict` reads it, see
`pictures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import os
import pathlib

from ms_ranas_jax import errors
from ms_ranas_jax.data import image_store
from ms_ranas_jax.data import labelled_pictures
from ms_ranas_jax.data import picture_options
from ms_ranas_jax.data import pictures
from ms_ranas_jax.data.labelled_pictures import PARTS
from ms_ranas_jax.data.labelled_pictures import TEST
from ms_ranas_jax.data.labelled_pictures import Found
from ms_ranas_jax.data.labelled_pictures import Labelled
from ms_ranas_jax.data.picture_options import Options
from ms_ranas_jax.errors import UsageError

# What systems leave in folders beside what is hidden anyway.
_LEFT_BY_SYSTEMS = ('thumbs.db', 'desktop.ini')


def find(directory: str, options: Options) -> Found:
  """Finds the pictures of a folder of classes.

  Args:
    directory: see the module.
    options: how to read it.

  Raises:
    UsageError: there are no class folders, or what is no picture is not to be
      skipped.
  """
  root = _root(directory)
  return _find_in(_part_folders(root, options), root, options)


def find_test(directory: str) -> Found:
  """Finds the pictures of a folder test, or of a folder of classes.

  Args:
    directory: see the module.

  Raises:
    UsageError: there are no class folders, or a file in them is no picture.
  """
  root = _root(directory)
  folder = root / TEST if (root / TEST).is_dir() else root
  found = _find_in({TEST: folder}, root, picture_options.DEFAULT)
  if not found.pictures:
    raise UsageError(f'{folder} holds no picture; give another folder.')
  return found


def _source(
  found: Sequence[Labelled], image_shape: tuple[int, int, int]
) -> image_store.Source:
  return pictures.source([picture.place for picture in found], image_shape)


def _root(directory: str) -> pathlib.Path:
  if not directory:  # which would be that of the process
    raise UsageError(
      'dataset.dir is not set; give a folder that holds a folder of pictures '
      'for each class.'
    )
  return pathlib.Path(directory)


def _find_in(
  parts: Mapping[str, pathlib.Path], root: pathlib.Path, options: Options
) -> Found:
  if not root.is_dir():
    raise UsageError(
      f'dataset.dir: {root} is no folder; give one that holds a folder of '
      'pictures for each class.'
    )
  problems: list[str] = []
  classes = {
    part: _class_folders(folder, problems) for part, folder in parts.items()
  }
  names = tuple(sorted(next(iter(classes.values()))))
  _check_names(root, names)
  for part, folders in classes.items():
    unknown = sorted(set(folders) - set(names))
    if unknown:
      raise UsageError(
        f'{parts[part]} has the classes {errors.listed(unknown)}, of which '
        f'{parts["train"]} has no folder; remove them, or add pictures there.'
      )
  files = []
  for part, folders in classes.items():
    for label, name in enumerate(names):
      for path in _files_within(folders.get(name), root, problems):
        try:
          head = pictures.read_head(path)
        except UsageError as error:
          problems.append(str(error))
        else:
          files.append(Labelled(path, label, part, head))
  if problems and options.unreadable == picture_options.REFUSE:
    raise labelled_pictures.refusal(problems)
  return Found(names, files, problems, _source, 'remove its folder')


def _part_folders(
  root: pathlib.Path, options: Options
) -> dict[str, pathlib.Path]:
  """Returns the folders of classes, by the part that they are."""
  parts = {part: root / part for part in PARTS if (root / part).is_dir()}
  if not parts:
    return {'': root}
  missing = [part for part in PARTS if part not in parts]
  others = [
    entry.name
    for entry in _entries(root)
    if entry.is_dir() and entry.name not in PARTS
  ]
  if missing or others:
    raise UsageError(
      f'dataset.dir: {root} has the folder {", ".join([*parts, *others])}; '
      'give one with train and test and no other folder, or one whose folders '
      'are the classes.'
    )
  if options.test_fraction != picture_options.TEST_FRACTION:
    raise UsageError(
      f'dataset.test_fraction = {options.test_fraction} does nothing, as '
      f'{root} has a folder test; leave it at {picture_options.TEST_FRACTION}.'
    )
  return parts


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns what is in a folder and not hidden, sorted by name."""
  return sorted(
    entry
    for entry in folder.iterdir()
    if not entry.name.startswith('.')
    and entry.name.lower() not in _LEFT_BY_SYSTEMS
  )


def _class_folders(
  folder: pathlib.Path, problems: list[str]
) -> dict[str, pathlib.Path]:
  """Returns the folders in one by their names, which are those of classes."""
  found = {}
  for entry in _entries(folder):
    if entry.is_symlink():
      problems.append(f'{entry} is a link, and no folder of pictures.')
    elif entry.is_dir():
      found[entry.name] = entry
    else:
      problems.append(f'{entry} is a file beside the folders of the classes.')
  return found


def _check_names(root: pathlib.Path, names: Sequence[str]) -> None:
  """Refuses classes that are none, or cannot be told apart or printed."""
  if len(names) < 2:
    has = f'one folder, {names[0]}' if names else 'no folder'
    raise UsageError(
      f'dataset.dir: {root} has {has}; give a folder that holds a folder of '
      'pictures for each of two or more classes.'
    )
  same: dict[str, str] = {}
  for name in names:
    if not name.isprintable():
      raise UsageError(
        f'dataset.dir: {root} has a folder {name!r}; rename it, as its name is '
        'that of a class and cannot be printed.'
      )
    other = same.setdefault(name.casefold(), name)
    if other != name:
      raise UsageError(
        f'dataset.dir: {root} has the folders {other} and {name}, which differ '
        'in capital letters alone; rename one, or put them together.'
      )


def _files_within(
  folder: pathlib.Path | None, root: pathlib.Path, problems: list[str]
) -> list[pathlib.Path]:
  """Returns the picture files in a folder and in those within, sorted."""
  if folder is None:
    return []
  inside = pathlib.Path(os.path.realpath(root))
  found = []
  for entry in _entries(folder):
    # Not Path.resolve, which raises at a link to itself.
    if entry.is_symlink() and (
      entry.is_dir()
      or inside not in pathlib.Path(os.path.realpath(entry)).parents
    ):
      problems.append(f'{entry} is a link to a folder, or out of {root}.')
    elif entry.is_dir():
      found += _files_within(entry, root, problems)
    elif entry.suffix.lower() in pictures.SUFFIXES:
      found.append(entry)
    else:
      problems.append(
        f'{entry} is no picture ({", ".join(pictures.SUFFIXES)}).'
      )
  return found
