"""Folders of pictures, one for each class, as arrays.

Either DIR/train/CLASS/... and DIR/test/CLASS/..., or DIR/CLASS/..., of which a
part of every class is set aside for testing, always the same. The classes are
the names of their folders, in the order of the alphabet; pictures lie in them
or in folders within. A picture is read as `predict` reads it, see `pictures`.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
import dataclasses
import os
import pathlib
import sys

import numpy as np

from ms_ranas_jax import errors
from ms_ranas_jax.data import image_store
from ms_ranas_jax.data import picture_options
from ms_ranas_jax.data import pictures
from ms_ranas_jax.data.picture_options import Options
from ms_ranas_jax.errors import UsageError

_PARTS = ('train', 'test')
# What systems leave in folders beside what is hidden anyway.
_LEFT_BY_SYSTEMS = ('thumbs.db', 'desktop.ini')
_SPLIT_SEED = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
  """What was read.

  Attributes:
    images: uint8 (n, height, width, channels), by part.
    labels: int32 (n,), by part.
    class_names: of the labels.
    notes: what was done to the pictures, in sentences.
  """

  images: Mapping[str, np.ndarray]
  labels: Mapping[str, np.ndarray]
  class_names: tuple[str, ...]
  notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _File:
  path: pathlib.Path
  label: int
  part: str  # '' where the program makes the parts
  head: pictures.Head


@dataclasses.dataclass(frozen=True)
class _Found:
  class_names: tuple[str, ...]
  files: list[_File]
  problems: list[str]


def image_format(
  directory: str, options: Options
) -> tuple[tuple[int, int, int], int]:
  """Returns ((height, width, channels), classes), from the files' heads.

  Args:
    directory: see the module.
    options: how to read it.

  Raises:
    UsageError: as `read`.
  """
  found = _find(_root(directory), options)
  _check_classes(found.files, found.class_names)
  return _shape(found, options), len(found.class_names)


def read(
  directory: str,
  options: Options,
  storage: image_store.Storage = image_store.DEFAULT,
) -> Pictures:
  """Reads all pictures of a folder of classes.

  Args:
    directory: see the module.
    options: how to read it.
    storage: where the images are to lie.

  Raises:
    UsageError: there are no class folders, or too few pictures in one, or what
      is no picture is not to be skipped, or sizes differ and none is given.
  """
  found = _find(_root(directory), options)
  _check_classes(found.files, found.class_names)
  shape = _shape(found, options)
  files, problems = found.files, found.problems
  while True:
    rows = _rows_of_parts(files, found.class_names, options)
    # Part by part, so that each is one piece of the array.
    ordered = [files[n] for part in _PARTS for n in rows[part]]
    names = [f.path for f in ordered]
    images, unreadable = image_store.read(
      pictures.source(names, shape), storage
    )
    if not unreadable:
      break
    why = list(unreadable.values())
    if options.unreadable == picture_options.REFUSE:
      raise _refusal(why)
    # Without them other images may be for testing.
    problems = problems + why
    broken = {names[number] for number in unreadable}
    files = [f for f in files if f.path not in broken]
  labels = np.array([f.label for f in ordered], np.int32)
  count = len(rows['train'])
  return Pictures(
    dict(zip(_PARTS, (images[:count], images[count:]), strict=True)),
    dict(zip(_PARTS, (labels[:count], labels[count:]), strict=True)),
    found.class_names,
    tuple(_notes(files, shape, problems)),
  )


def read_test(
  directory: str, image_shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
  """Reads the pictures of a folder test, or of a folder of classes.

  Args:
    directory: see the module.
    image_shape: (height, width, channels) that they are brought to.

  Returns:
    uint8 (n, height, width, channels), int32 (n,), the names of the classes.

  Raises:
    UsageError: there are no class folders, or a file in them is no picture.
  """
  root = _root(directory)
  folder = root / 'test' if (root / 'test').is_dir() else root
  found = _find_in({'test': folder}, root, picture_options.DEFAULT)
  if not found.files:
    raise UsageError(f'{folder} holds no picture; give another folder.')
  images, unreadable = image_store.read(
    pictures.source([f.path for f in found.files], image_shape),
    image_store.Storage(sys.maxsize),  # whoever judges reads them all at once
  )
  if unreadable:
    raise _refusal(list(unreadable.values()))
  labels = np.array([f.label for f in found.files], np.int32)
  return images, labels, found.class_names


def _root(directory: str) -> pathlib.Path:
  if not directory:  # which would be that of the process
    raise UsageError(
      'dataset.dir is not set; give a folder that holds a folder of pictures '
      'for each class.'
    )
  return pathlib.Path(directory)


def _find(root: pathlib.Path, options: Options) -> _Found:
  """Returns the classes, and what looks like pictures of them."""
  return _find_in(_part_folders(root, options), root, options)


def _find_in(
  parts: Mapping[str, pathlib.Path], root: pathlib.Path, options: Options
) -> _Found:
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
          files.append(_File(path, label, part, head))
  if problems and options.unreadable == picture_options.REFUSE:
    raise _refusal(problems)
  return _Found(names, files, problems)


def _part_folders(
  root: pathlib.Path, options: Options
) -> dict[str, pathlib.Path]:
  """Returns the folders of classes, by the part that they are."""
  parts = {part: root / part for part in _PARTS if (root / part).is_dir()}
  if not parts:
    return {'': root}
  missing = [part for part in _PARTS if part not in parts]
  others = [
    entry.name
    for entry in _entries(root)
    if entry.is_dir() and entry.name not in _PARTS
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


def _refusal(problems: Sequence[str]) -> UsageError:
  more = len(problems) - 1
  also = f' (and {more} more like it)' if more else ''
  return UsageError(
    f'{problems[0].rstrip(".")}{also}; mend or remove it, or, of training '
    f"images, set dataset.unreadable to '{picture_options.SKIP}', which leaves "
    'such files out and says so.'
  )


def _check_classes(files: Sequence[_File], names: Sequence[str]) -> None:
  """Refuses classes of which too little is there to learn and to test."""
  split = not files or not files[0].part
  counts = collections.Counter(f.label for f in files if f.part != 'test')
  for label, name in enumerate(names):
    count = counts[label]
    if count < (2 if split else 1):
      few = 'one picture, and one more is needed to test' if count else 'none'
      raise UsageError(
        f'dataset.dir: of the pictures of the class {name} there is {few}; add '
        'some, or remove its folder.'
      )


def _shape(found: _Found, options: Options) -> tuple[int, int, int]:
  """Returns (height, width, channels) of the images."""
  # A dataset is grey where every picture is.
  channels = 1 if all(f.head.grey for f in found.files) else 3
  if options.image_size is not None:
    return (*options.image_size, channels)
  sizes = sorted({f.head.size for f in found.files})
  if len(sizes) > 1:
    listed = errors.listed([f'{h}x{w}' for h, w in sizes], most=3)
    raise UsageError(
      f'the pictures are of {len(sizes)} sizes ({listed}, height x width); set '
      "dataset.image_size to what they are to be brought to, such as '96'."
    )
  if max(sizes[0]) > picture_options.LARGEST_SIDE:
    raise UsageError(
      f'the pictures are of {sizes[0]} pixels; set dataset.image_size to fewer.'
    )
  return (*sizes[0], channels)


def _rows_of_parts(
  files: Sequence[_File],
  names: Sequence[str],
  options: Options,
) -> dict[str, np.ndarray]:
  """Returns which images are for training and which for testing."""
  _check_classes(files, names)
  if files[0].part:
    found = np.array([f.part for f in files])
    rows = {part: np.flatnonzero(found == part) for part in _PARTS}
    if not rows['test'].size:
      raise UsageError('the folder test holds no picture; add some.')
    return rows
  labels = np.array([f.label for f in files])
  generator = np.random.default_rng(_SPLIT_SEED)
  is_test = np.zeros(len(files), bool)
  for label in range(len(names)):
    of_class = generator.permutation(np.flatnonzero(labels == label))
    count = round(options.test_fraction * len(of_class))
    is_test[of_class[: min(max(count, 1), len(of_class) - 1)]] = True
  return {'train': np.flatnonzero(~is_test), 'test': np.flatnonzero(is_test)}


def _notes(
  files: Sequence[_File],
  shape: tuple[int, int, int],
  problems: Sequence[str],
) -> list[str]:
  """Returns what was done to the pictures, in sentences."""
  notes = []
  sizes = sorted({f.head.size for f in files})
  if sizes != [shape[:2]]:
    ends = ' to '.join(f'{h}x{w}' for h, w in sorted({sizes[0], sizes[-1]}))
    notes.append(
      f'pictures of {ends} pixels (height x width) are scaled to {shape[0]}x'
      f'{shape[1]}, cut to the middle where their aspect ratio is another'
    )
  greys = sum(f.head.grey for f in files)
  if shape[2] == 3 and greys:
    notes.append(f'{greys} of {len(files)} pictures are grey')
  if problems:
    notes.append(
      f'{len(problems)} files were left out: '
      f'{errors.listed([p.rstrip(".") for p in problems], most=3)}'
    )
  return notes
