"""CIFAR-10 and CIFAR-100 in the layouts in which they are published.

The python version is five (CIFAR-100: one) pickled batches and a test batch;
the binary version is files of records, a label byte (CIFAR-100: coarse, then
fine) and 3072 bytes of pixels, planes of red, green and blue. See
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import dataclasses
import pathlib
import types
from typing import NamedTuple

from absl import logging
import numpy as np

from ms_ranas_jax import errors
from ms_ranas_jax.data import plain_pickle

_HEIGHT = _WIDTH = 32
_PIXELS = 3 * _HEIGHT * _WIDTH  # Bytes of one image.


class Arrays(NamedTuple):
  """The images and labels of a dataset.

  Attributes:
    train_images: uint8 (N, 32, 32, 3).
    train_labels: int32 (N,).
    test_images: uint8 (M, 32, 32, 3).
    test_labels: int32 (M,).
  """

  train_images: np.ndarray
  train_labels: np.ndarray
  test_images: np.ndarray
  test_labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Layout:
  """One published form of one dataset.

  Attributes:
    folder: the folder that the published archive unpacks to.
    train_files: the files of the training part, in order.
    test_file: the file of the test part.
    labels_key: the dict key of the labels in a python batch; empty for the
      binary version.
    label_bytes: how many label bytes open a binary record, the last being
      the one used; 0 for the python version.
  """

  folder: str
  train_files: tuple[str, ...]
  test_file: str
  labels_key: str = ''
  label_bytes: int = 0


# As published, in the order of the labels; of CIFAR-100 the fine ones.
CLASS_NAMES = types.MappingProxyType(
  {
    'cifar10': tuple(
      'airplane automobile bird cat deer dog frog horse ship truck'.split()
    ),
    'cifar100': tuple(
      """
      apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle
      bowl boy bridge bus butterfly camel can castle caterpillar cattle
      chair chimpanzee clock cloud cockroach couch crab crocodile cup
      dinosaur dolphin elephant flatfish forest fox girl hamster house
      kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
      maple_tree motorcycle mountain mouse mushroom oak_tree orange
      orchid otter palm_tree pear pickup_truck pine_tree plain plate
      poppy porcupine possum rabbit raccoon ray road rocket rose sea
      seal shark shrew skunk skyscraper snail snake spider squirrel
      streetcar sunflower sweet_pepper table tank telephone television
      tiger tractor train trout tulip turtle wardrobe whale willow_tree
      wolf woman worm
      """.split()
    ),
  }
)
NUM_CLASSES = types.MappingProxyType(
  {name: len(names) for name, names in CLASS_NAMES.items()}
)
_NUM_TRAIN, _NUM_TEST = 50_000, 10_000  # As published, both datasets.

PYTHON_LAYOUTS = types.MappingProxyType(
  {
    'cifar10': Layout(
      'cifar-10-batches-py',
      tuple(f'data_batch_{i}' for i in range(1, 6)),
      'test_batch',
      labels_key='labels',
    ),
    'cifar100': Layout(
      'cifar-100-python', ('train',), 'test', labels_key='fine_labels'
    ),
  }
)
BINARY_LAYOUTS = types.MappingProxyType(
  {
    'cifar10': Layout(
      'cifar-10-batches-bin',
      tuple(f'data_batch_{i}.bin' for i in range(1, 6)),
      'test_batch.bin',
      label_bytes=1,
    ),
    'cifar100': Layout(
      'cifar-100-binary', ('train.bin',), 'test.bin', label_bytes=2
    ),
  }
)


def find_layout(
  name: str, directory: pathlib.Path
) -> tuple[Layout, pathlib.Path] | None:
  """Looks for a published layout of a dataset.

  Args:
    name: 'cifar10' or 'cifar100'.
    directory: a folder that is, or contains, the layout's folder.

  Returns:
    The layout and the folder with its files, or None where there is none. The
    python version goes first where both are there.
  """
  for layout in (PYTHON_LAYOUTS[name], BINARY_LAYOUTS[name]):
    folder = directory / layout.folder
    if folder.is_dir():
      return layout, folder
    if (
      directory.name == layout.folder
      or (directory / layout.test_file).is_file()
    ):
      return layout, directory
  return None


def read(name: str, directory: pathlib.Path) -> Arrays | None:
  """Reads a dataset from a published layout.

  Args:
    name: 'cifar10' or 'cifar100' (fine labels).
    directory: a folder that is, or contains, the layout's folder.

  Returns:
    The arrays, in the order of the files; None where `directory` holds no
    such layout.

  Raises:
    UsageError: a file is missing, unreadable, truncated or malformed.
  """
  found = find_layout(name, directory)
  if found is None:
    return None
  layout, folder = found
  num_classes = NUM_CLASSES[name]
  train = [
    _read_file(layout, folder / f, num_classes) for f in layout.train_files
  ]
  test = _read_file(layout, folder / layout.test_file, num_classes)
  train_images, train_labels = (np.concatenate(parts) for parts in zip(*train))
  for part, labels, published in (
    ('training', train_labels, _NUM_TRAIN),
    ('test', test[1], _NUM_TEST),
  ):
    if len(labels) != published:
      logging.warning(
        '%s has %d %s images, %d are published.',
        folder,
        len(labels),
        part,
        published,
      )
  return Arrays(
    np.ascontiguousarray(train_images),
    train_labels,
    np.ascontiguousarray(test[0]),
    test[1],
  )


def parse_records(
  raw: bytes, label_bytes: int, num_classes: int, source: str
) -> tuple[np.ndarray, np.ndarray]:
  """Splits the content of a binary file into images and labels.

  Args:
    raw: whole records of `label_bytes` + 3072 bytes.
    label_bytes: label bytes in front of each image.
    num_classes: the last label of a record must be below it.
    source: the name of the file, for errors.

  Returns:
    Images, uint8 (N, 32, 32, 3), a view of `raw`; and all labels of each
    record, uint8 (N, label_bytes).

  Raises:
    UsageError: `raw` is empty or not whole records, or a label is too large.
  """
  size = label_bytes + _PIXELS
  if not raw or len(raw) % size:
    raise errors.UsageError(
      f'{source} is {len(raw)} bytes, not a whole number of records of {size} '
      f'bytes; it is truncated or of another dataset: fetch it anew.'
    )
  records = np.frombuffer(raw, np.uint8).reshape(-1, size)
  labels = records[:, :label_bytes]
  _check_labels(labels[:, -1], num_classes, source)
  return _to_images(records[:, label_bytes:]), labels


def _read_file(
  layout: Layout, path: pathlib.Path, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the images (N, 32, 32, 3) and int32 labels (N,) of one file."""
  if not path.is_file():
    raise errors.UsageError(
      f'{path} is missing; {layout.folder} should hold '
      f'{", ".join((*layout.train_files, layout.test_file))}: unpack the '
      f'published archive again.'
    )
  if not layout.label_bytes:
    return _read_python_batch(path, layout.labels_key, num_classes)
  try:
    raw = path.read_bytes()
  except OSError as error:
    raise errors.UsageError(
      f'{path} cannot be read: {error.strerror or error}.'
    ) from error
  images, labels = parse_records(
    raw, layout.label_bytes, num_classes, str(path)
  )
  return images, labels[:, -1].astype(np.int32)


def _read_python_batch(
  path: pathlib.Path, labels_key: str, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the images (N, 32, 32, 3) and int32 labels (N,) of one batch."""
  batch = plain_pickle.load(path)
  for key in ('data', labels_key):
    if key not in batch:
      raise errors.UsageError(
        f'{path} has no entry {key!r} (it has {", ".join(sorted(batch))}); it '
        f'is not a batch of this dataset: check dataset.name and dataset.dir.'
      )
  data = batch['data']
  if (
    not isinstance(data, np.ndarray)
    or data.dtype != np.uint8
    or data.ndim != 2
    or data.shape[1] != _PIXELS
    or not data.shape[0]
  ):
    raise errors.UsageError(
      f'{path}: data is {_describe(data)}, not uint8 (N, {_PIXELS}) with at '
      f'least one row; fetch the file anew.'
    )
  try:
    labels = np.asarray(batch[labels_key])
  except ValueError as error:
    raise errors.UsageError(
      f'{path}: {labels_key} is not a list of integers ({error}); fetch the '
      f'file anew.'
    ) from error
  if labels.dtype.kind not in 'iu' or labels.shape != (len(data),):
    raise errors.UsageError(
      f'{path}: {labels_key} is {_describe(labels)}, not one integer for each '
      f'of the {len(data)} images; fetch the file anew.'
    )
  _check_labels(labels, num_classes, str(path))
  return _to_images(data), labels.astype(np.int32)


def _to_images(rows: np.ndarray) -> np.ndarray:
  """Views rows of three colour planes (N, 3072) as images (N, 32, 32, 3)."""
  return rows.reshape(-1, 3, _HEIGHT, _WIDTH).transpose(0, 2, 3, 1)


def _check_labels(labels: np.ndarray, num_classes: int, source: str) -> None:
  """Raises UsageError where a label is none of 0 .. num_classes - 1."""
  wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if wrong.size:
    raise errors.UsageError(
      f'{source}: image {wrong[0]} has the label {labels[wrong[0]]}, not one '
      f'of 0 to {num_classes - 1}; the file is damaged or of another dataset: '
      f'check dataset.name, or fetch it anew.'
    )


def _describe(value: object) -> str:
  """Names an array by dtype and shape, anything else by its type."""
  if isinstance(value, np.ndarray):
    return f'{value.dtype} {value.shape}'
  return f'a {type(value).__name__}'
