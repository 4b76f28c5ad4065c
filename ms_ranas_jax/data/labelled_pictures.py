"""Pictures with classes, wherever they come from, as the arrays of a dataset.

Where the pictures lie in parts for training and testing, these are taken as
they are; else a part of every class is set aside for testing, always the same.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from ms_ranas_jax import errors
from ms_ranas_jax.data import image_store
from ms_ranas_jax.data import picture_options
from ms_ranas_jax.data import pictures
from ms_ranas_jax.data.picture_options import Options
from ms_ranas_jax.errors import UsageError

PARTS = TRAIN, TEST = 'train', 'test'
_SPLIT_SEED = 0


@dataclasses.dataclass(frozen=True)
class Labelled:
  """A picture that was found and not read.

  Attributes:
    place: where it is; no two are the same.
    label: the number of its class.
    part: of `PARTS`; '' where the parts are to be made.
    head: what its file says of it.
  """

  place: Any
  label: int
  part: str
  head: pictures.Head


@dataclasses.dataclass(frozen=True)
class Found:
  """The pictures of a dataset.

  Attributes:
    class_names: of the labels.
    pictures: those that seem to be whole.
    problems: what seemed to be a picture and is none, in sentences.
    source: (pictures, image shape) -> what reads them.
    mend: what to do about a class with too few pictures, after "add some, or".
  """

  class_names: tuple[str, ...]
  pictures: list[Labelled]
  problems: list[str]
  source: Callable[
    [Sequence[Labelled], tuple[int, int, int]], image_store.Source
  ]
  mend: str


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


def image_format(
  found: Found, options: Options
) -> tuple[tuple[int, int, int], int]:
  """Returns ((height, width, channels), classes), without reading pictures.

  Args:
    found: the pictures.
    options: how to read them.

  Raises:
    UsageError: as `read`.
  """
  _check_classes(found.pictures, found)
  return _shape(found, options), len(found.class_names)


def read(
  found: Found, options: Options, storage: image_store.Storage
) -> Pictures:
  """Reads pictures.

  Args:
    found: the pictures.
    options: how to read them.
    storage: where the images are to lie.

  Raises:
    UsageError: there are too few of a class, or what is no picture is not to be
      skipped, or sizes differ and none is given.
  """
  _check_classes(found.pictures, found)
  shape = _shape(found, options)
  kept, problems = found.pictures, found.problems
  rows, ordered = _in_order(kept, found, options)
  source = found.source(ordered, shape)
  images, unreadable = image_store.read(source, storage)
  if unreadable:
    why = list(unreadable.values())
    if options.unreadable == picture_options.REFUSE:
      raise refusal(why)
    # Without them other images may be for testing.
    places = {picture.place: n for n, picture in enumerate(ordered)}
    broken = {ordered[number].place for number in unreadable}
    kept = [p for p in kept if p.place not in broken]
    problems = problems + why
    rows, ordered = _in_order(kept, found, options)
    again = [places[picture.place] for picture in ordered]
    images, _ = image_store.read(_chosen(source, images, again), storage)
  labels = np.array([p.label for p in ordered], np.int32)
  count = len(rows[TRAIN])
  return Pictures(
    dict(zip(PARTS, (images[:count], images[count:]), strict=True)),
    dict(zip(PARTS, (labels[:count], labels[count:]), strict=True)),
    found.class_names,
    tuple(_notes(kept, shape, problems)),
  )


def _in_order(
  kept: Sequence[Labelled], found: Found, options: Options
) -> tuple[dict[str, np.ndarray], list[Labelled]]:
  """Returns the rows of parts, and pictures so that each is one piece."""
  rows = _rows_of_parts(kept, found, options)
  return rows, [kept[n] for part in PARTS for n in rows[part]]


def _chosen(
  source: image_store.Source, images: np.ndarray, numbers: Sequence[int]
) -> image_store.Source:
  """Returns some images that were read, in another order, as a source."""

  def fill(first: int, found: np.ndarray) -> dict[int, str]:
    found[:] = images[numbers[first : first + len(found)]]
    return {}

  return image_store.Source(
    (len(numbers), *source.shape[1:]),
    fill,
    lambda: [source.facts(), list(numbers)],
  )


def read_all(
  found: Found, image_shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
  """Reads pictures that are all for testing into memory.

  Args:
    found: the pictures, one or more.
    image_shape: (height, width, channels) that they are brought to.

  Returns:
    uint8 (n, height, width, channels), int32 (n,), the names of the classes.

  Raises:
    UsageError: one of them is no picture.
  """
  source = found.source(found.pictures, image_shape)
  images, unreadable = image_store.read(source, image_store.IN_MEMORY)
  if unreadable:
    raise refusal(list(unreadable.values()))
  labels = np.array([p.label for p in found.pictures], np.int32)
  return images, labels, found.class_names


def refusal(problems: Sequence[str]) -> UsageError:
  """Returns what is raised about files that are no pictures.

  Args:
    problems: a sentence about each.
  """
  more = len(problems) - 1
  also = f' (and {more} more like it)' if more else ''
  return UsageError(
    f'{problems[0].rstrip(".")}{also}; mend or remove it, or, of training '
    f"images, set dataset.unreadable to '{picture_options.SKIP}', which leaves "
    'such files out and says so.'
  )


def _check_classes(kept: Sequence[Labelled], found: Found) -> None:
  """Refuses classes of which too little is there to learn and to test."""
  split = not kept or not kept[0].part
  counts = collections.Counter(p.label for p in kept if p.part != TEST)
  for label, name in enumerate(found.class_names):
    count = counts[label]
    if count < (2 if split else 1):
      few = 'one picture, and one more is needed to test' if count else 'none'
      raise UsageError(
        f'dataset.dir: of the pictures of the class {name} there is {few}; add '
        f'some, or {found.mend}.'
      )


def _shape(found: Found, options: Options) -> tuple[int, int, int]:
  """Returns (height, width, channels) of the images."""
  # A dataset is grey where every picture is.
  channels = 1 if all(p.head.grey for p in found.pictures) else 3
  if options.image_size is not None:
    return (*options.image_size, channels)
  sizes = sorted({p.head.size for p in found.pictures})
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
  kept: Sequence[Labelled], found: Found, options: Options
) -> dict[str, np.ndarray]:
  """Returns which images are for training and which for testing."""
  _check_classes(kept, found)
  if kept[0].part:
    parts = np.array([p.part for p in kept])
    rows = {part: np.flatnonzero(parts == part) for part in PARTS}
    if not rows[TEST].size:
      raise UsageError('there is no picture for testing; add some.')
    return rows
  labels = np.array([p.label for p in kept])
  generator = np.random.default_rng(_SPLIT_SEED)
  is_test = np.zeros(len(kept), bool)
  for label in range(len(found.class_names)):
    of_class = generator.permutation(np.flatnonzero(labels == label))
    count = round(options.test_fraction * len(of_class))
    is_test[of_class[: min(max(count, 1), len(of_class) - 1)]] = True
  return {TRAIN: np.flatnonzero(~is_test), TEST: np.flatnonzero(is_test)}


def _notes(
  kept: Sequence[Labelled],
  shape: tuple[int, int, int],
  problems: Sequence[str],
) -> list[str]:
  """Returns what was done to the pictures, in sentences."""
  notes = []
  sizes = sorted({p.head.size for p in kept})
  if sizes != [shape[:2]]:
    ends = ' to '.join(f'{h}x{w}' for h, w in sorted({sizes[0], sizes[-1]}))
    notes.append(
      f'pictures of {ends} pixels (height x width) are scaled to {shape[0]}x'
      f'{shape[1]}, cut to the middle where their aspect ratio is another'
    )
  greys = sum(p.head.grey for p in kept)
  if shape[2] == 3 and greys:
    notes.append(f'{greys} of {len(kept)} pictures are grey')
  if problems:
    notes.append(
      f'{len(problems)} files were left out: '
      f'{errors.listed([p.rstrip(".") for p in problems], most=3)}'
    )
  return notes
