"""Pictures with classes of tensorflow-datasets, read with no TensorFlow.

`dataset.name = 'tfds:NAME'`, or 'tfds:NAME/CONFIG', is the newest prepared
version of any dataset that has one image and one class in each example, and was
prepared as array_record. Its split train is trained on; its split test is for
testing, or validation where there is none or it has no classes, or a part of
every class where train is the only one. The files in the records are read as
those of folders are, see `pictures`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import hashlib
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
import PIL

from ms_ranas_jax.data import image_store
from ms_ranas_jax.data import labelled_pictures
from ms_ranas_jax.data import picture_options
from ms_ranas_jax.data import pictures
from ms_ranas_jax.data import tfds_source
from ms_ranas_jax.data.labelled_pictures import TEST
from ms_ranas_jax.data.labelled_pictures import TRAIN
from ms_ranas_jax.data.labelled_pictures import Found
from ms_ranas_jax.data.labelled_pictures import Labelled
from ms_ranas_jax.data.picture_options import Options
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import processes
from ms_ranas_jax.runtime import progress

_RECORDS_PER_READ = 500
_FOR_TESTING = ('test', 'validation')
_HEADS_FORMAT = '1'
_BROKEN = -1  # in the place of a height: no picture


class _Place(NamedTuple):
  split: str
  number: int


class _Prepared(NamedTuple):
  """A prepared version, opened.

  Attributes:
    name: as in `dataset.name`.
    folder: of its files.
    prepare: says how it is prepared.
    sources: split -> its records, images as the bytes of their files.
    image: name of the image of an example.
    label: name of its class.
    class_names: of the labels.
  """

  name: str
  folder: pathlib.Path
  prepare: str
  sources: dict[str, Any]
  image: str
  label: str
  class_names: tuple[str, ...]

  def records(self, split: str, numbers: Sequence[int]) -> list[Any]:
    """Returns records of a split, which are all there."""
    with tfds_source.failures_in_words(self.folder, self.prepare):
      return list(self.sources[split].__getitems__(list(numbers)))


def find(
  name: str, directory: str, options: Options, storage: image_store.Storage
) -> Found:
  """Finds the pictures of a prepared dataset.

  Args:
    name: 'tfds:NAME' or 'tfds:NAME/CONFIG'.
    directory: the data directory of tensorflow-datasets; '' is its default.
    options: how to read it.
    storage: says where the sizes and classes are kept that reading has found.

  Raises:
    UsageError: it is not prepared, not as array_record, or not of images with
      classes, or a record that is no picture is not to be skipped.
  """
  prepared = _open(name, directory)
  tested = [s for s in _FOR_TESTING if s in prepared.sources]
  if TRAIN not in prepared.sources:
    raise UsageError(
      f'{prepared.folder} has the splits {", ".join(prepared.sources)}, and '
      'none is train; use another dataset.'
    )
  tested = next((s for s in tested if _has_labels(prepared, s)), '')
  if tested and options.test_fraction != picture_options.TEST_FRACTION:
    raise UsageError(
      f'dataset.test_fraction = {options.test_fraction} does nothing, as '
      f'{name} has a split {tested}; leave it at '
      f'{picture_options.TEST_FRACTION}.'
    )
  parts = {TRAIN: TRAIN, tested: TEST} if tested else {TRAIN: ''}
  found = _find_in(prepared, parts, storage)
  if found.problems and options.unreadable == picture_options.REFUSE:
    raise labelled_pictures.refusal(found.problems)
  return found


def find_test(name: str, directory: str, storage: image_store.Storage) -> Found:
  """Finds the pictures of a prepared dataset that are for testing.

  Args:
    name: see `find`.
    directory: see `find`.
    storage: see `find`.

  Raises:
    UsageError: as `find`, or there is no split for testing.
  """
  prepared = _open(name, directory)
  for split in _FOR_TESTING:
    if split in prepared.sources and _has_labels(prepared, split):
      found = _find_in(prepared, {split: TEST}, storage)
      if found.problems:
        raise labelled_pictures.refusal(found.problems)
      return found
  raise UsageError(
    f'{prepared.folder} has no split {" or ".join(_FOR_TESTING)} with classes; '
    'set evaluate.dataset to another dataset.'
  )


def _open(name: str, directory: str) -> _Prepared:
  """Opens the newest prepared version of a dataset."""
  data_dir = pathlib.Path(directory or tfds_source.default_data_dir())
  dataset = name.removeprefix(picture_options.TFDS)
  prepare = (
    f'prepare it there with tfds build {dataset} --file_format='
    f'{tfds_source.FORMAT} --data_dir=DIR, where TensorFlow is installed'
  )
  if not dataset or pathlib.PurePath(dataset).is_absolute() or '..' in dataset:
    raise UsageError(
      f"dataset.name = {name!r}: give 'tfds:NAME', or 'tfds:NAME/CONFIG'."
    )
  folder = tfds_source.find_prepared(dataset, data_dir)
  if folder is None:
    configs = sorted(
      path.parent.parent.name
      for path in (data_dir / dataset).glob('*/*/dataset_info.json')
    )
    if configs:
      raise UsageError(
        f'dataset.name = {name!r}: {data_dir} has it as '
        f'{", ".join(f"{name}/{config}" for config in dict.fromkeys(configs))};'
        ' give one of these.'
      )
    raise UsageError(
      f'dataset.name = {name!r}: {data_dir} has no prepared {dataset}; set '
      f'dataset.dir to a data directory that has, or {prepare}.'
    )
  tfds_source.check_format(folder, prepare)
  tfds = tfds_source.import_tfds()
  with tfds_source.failures_in_words(folder, prepare):
    builder = tfds.builder_from_directory(str(folder))
    features = builder.info.features
    kinds = {
      kind: [key for key in features if type(features[key]) is kind]
      for kind in (tfds.features.Image, tfds.features.ClassLabel)
    }
    images, labels = kinds.values()
    if builder.info.supervised_keys is not None:
      wanted = builder.info.supervised_keys[:2]
      if wanted[0] in images and wanted[1] in labels:
        images, labels = [wanted[0]], [wanted[1]]
    if len(images) != 1 or len(labels) != 1:
      raise UsageError(
        f'{folder} has {len(images)} images and {len(labels)} classes in an '
        'example; use a dataset for image classification, of one each.'
      )
    skipped = {images[0]: tfds.decode.SkipDecoding()}
    return _Prepared(
      name,
      folder,
      prepare,
      {
        split: builder.as_data_source(split=split, decoders=skipped)
        for split in builder.info.splits
      },
      images[0],
      labels[0],
      tuple(features[labels[0]].names),
    )


def _has_labels(prepared: _Prepared, split: str) -> bool:
  """Returns whether the examples of a split have classes: -1 is none."""
  (record,) = prepared.records(split, [0])
  return record[prepared.label] >= 0


def _find_in(
  prepared: _Prepared,
  parts: dict[str, str],
  storage: image_store.Storage,
) -> Found:
  """Returns the pictures of splits, which are parts."""
  found, problems = [], []
  for split, part in parts.items():
    for number, row in enumerate(_heads(prepared, split, storage)):
      height, width, grey, label = row.tolist()
      place = _Place(split, number)
      if height == _BROKEN:
        problems.append(f'{_name(prepared, place)} is no picture')
        continue
      if label < 0:
        problems.append(f'{_name(prepared, place)} has no class')
        continue
      head = pictures.Head((height, width), bool(grey))
      found.append(Labelled(place, label, part, head))

  def source(
    chosen: Sequence[Labelled], image_shape: tuple[int, int, int]
  ) -> image_store.Source:
    places = [picture.place for picture in chosen]

    def fill(first: int, images: np.ndarray) -> dict[int, str]:
      unreadable = {}
      for start, block in _blocks(places[first : first + len(images)]):
        encoded = _read(prepared, block)
        pixels = images[start : start + len(block)]
        for number, why in pictures.fill(encoded, pixels).items():
          unreadable[first + start + number] = why
      return unreadable

    def facts() -> list[Any]:
      found = tfds_source.fingerprint(prepared.folder)
      return [PIL.__version__, found, places]

    return image_store.Source((len(places), *image_shape), fill, facts)

  return Found(
    prepared.class_names, found, problems, source, 'use another dataset'
  )


def _heads(
  prepared: _Prepared, split: str, storage: image_store.Storage
) -> np.ndarray:
  """Returns height, width, whether grey, and class, (records, 4) int64.

  Labels stand in the records, so that all have to be read for them; what was
  found is kept.
  """
  known = [_HEADS_FORMAT, PIL.__version__]
  known.append(tfds_source.fingerprint(prepared.folder))
  key = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
  path = storage.root / f'{prepared.folder.parent.name}-{split}-{key}.npz'
  try:
    return files.read_npz(path)['heads']
  except (UsageError, KeyError):
    pass  # A cache is only a shortcut: without it the records are read.
  count = len(prepared.sources[split])
  rows = []
  shown = progress.Progress(
    f'{prepared.name} {split}',
    count,
    disable=not processes.is_first(),
    unit='record',
  )
  with shown:
    for start in range(0, count, _RECORDS_PER_READ):
      numbers = range(start, min(start + _RECORDS_PER_READ, count))
      for number, record in zip(
        numbers, prepared.records(split, numbers), strict=True
      ):
        encoded = _encoded(prepared, _Place(split, number), record)
        try:
          head = pictures.read_head(encoded)
        except UsageError:
          head = pictures.Head((_BROKEN, _BROKEN), grey=False)
        rows.append([*head.size, head.grey, record[prepared.label]])
      shown.update(len(numbers))
  heads = np.array(rows, np.int64)
  try:
    files.write_npz(path, heads=heads)
  except OSError:
    pass  # as above
  return heads


def _blocks(
  places: Sequence[_Place],
) -> Iterator[tuple[int, Sequence[_Place]]]:
  """Yields places of one split each, and where they start."""
  start = 0
  while start < len(places):
    stop = start
    while (
      stop < min(start + _RECORDS_PER_READ, len(places))
      and places[stop].split == places[start].split
    ):
      stop += 1
    yield start, places[start:stop]
    start = stop


def _read(
  prepared: _Prepared, places: Sequence[_Place]
) -> list[pictures.Encoded]:
  """Returns the files in records of one split."""
  numbers = [place.number for place in places]
  records = prepared.records(places[0].split, numbers)
  return [
    _encoded(prepared, place, record)
    for place, record in zip(places, records, strict=True)
  ]


def _encoded(
  prepared: _Prepared, place: _Place, record: Any
) -> pictures.Encoded:
  return pictures.Encoded(_name(prepared, place), record[prepared.image])


def _name(prepared: _Prepared, place: _Place) -> str:
  return f'record {place.number} of {place.split} in {prepared.folder}'
