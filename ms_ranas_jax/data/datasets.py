"""Datasets: two image arrays and two label arrays in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import functools
import math
import types
from typing import Any, NamedTuple

import numpy as np

from ms_ranas_jax import errors
from ms_ranas_jax import importing
from ms_ranas_jax import paths
from ms_ranas_jax.data import cifar_files
from ms_ranas_jax.data import cifar_source
from ms_ranas_jax.data import class_folders
from ms_ranas_jax.data import image_layout
from ms_ranas_jax.data import image_store
from ms_ranas_jax.data import labelled_pictures
from ms_ranas_jax.data import npz_file
from ms_ranas_jax.data import picture_options
from ms_ranas_jax.data import tfds_pictures

# Per channel, of the training images / 255; those in common use.
_CIFAR_MEAN = types.MappingProxyType(
  {
    'cifar10': (0.4914, 0.4822, 0.4465),
    'cifar100': (0.5071, 0.4865, 0.4409),
  }
)
_CIFAR_STD = types.MappingProxyType(
  {
    'cifar10': (0.2471, 0.2435, 0.2616),
    'cifar100': (0.2673, 0.2564, 0.2762),
  }
)
# scikit-learn's digits come as one part. Its split is fixed, so that test
# accuracies compare whatever the seed of a run.
_DIGITS_TEST_SIZE = 360
_DIGITS_SPLIT_SEED = 0
# So is the part of the training images that a small run is given.
_PART_SEED = 0
_PIXELS_AT_A_TIME = 2**22
# Above, labels are not numbers of classes but something else.
_MOST_CLASSES = 1_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """Labelled images, with the constants that normalise them.

  Attributes:
    name: as in `dataset.name` of a config.
    train_images: uint8 (N, H, W, C).
    train_labels: int32 (N,), each in 0 .. num_classes - 1.
    test_images: uint8 (M, H, W, C).
    test_labels: int32 (M,).
    num_classes: how many classes there are.
    mean: per channel, of images / 255.
    std: per channel, of images / 255; positive.
    class_names: one per class, by default their numbers.
    notes: what was done to the images before, in sentences.
    resident_bytes: of the training images that may lie on a device; more are
      brought there batch by batch. They may be a memory-mapped array.

  Raises:
    UsageError: an array has another shape, dtype or range, or the constants
      do not fit the channels.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import numpy as np
    >>> images = np.zeros((4, 8, 8, 3), np.uint8)
    >>> labels = np.array([0, 1, 0, 1], np.int32)
    >>> dataset = mr.Dataset(
    ...   'mine', images, labels, images, labels, 2, (0.5,) * 3, (0.25,) * 3
    ... )
    >>> dataset.image_shape, dataset.class_names
    ((8, 8, 3), ('0', '1'))
  """

  name: str
  train_images: np.ndarray
  train_labels: np.ndarray
  test_images: np.ndarray
  test_labels: np.ndarray
  num_classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  class_names: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()
  resident_bytes: int = image_store.RESIDENT_BYTES

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, channels)."""
    return tuple(self.train_images.shape[1:])

  def __post_init__(self) -> None:
    for part in ('train', 'test'):
      images = getattr(self, f'{part}_images')
      labels = getattr(self, f'{part}_labels')
      if images.ndim != 4 or images.dtype != np.uint8 or not images.size:
        raise errors.UsageError(
          f'{self.name}: {part}_images is {images.dtype} {images.shape}; give '
          f'a uint8 array (images, height, width, channels), not empty.'
        )
      image_layout.check(f'{self.name}: {part}_images', images.shape)
      if labels.dtype != np.int32 or labels.shape != images.shape[:1]:
        raise errors.UsageError(
          f'{self.name}: {part}_labels is {labels.dtype} {labels.shape}; give '
          f'one int32 for each of the {len(images)} images.'
        )
      if labels.min() < 0 or labels.max() >= self.num_classes:
        raise errors.UsageError(
          f'{self.name}: {part}_labels runs from {labels.min()} to '
          f'{labels.max()}; give labels of 0 to {self.num_classes - 1}.'
        )
    if self.train_images.shape[1:] != self.test_images.shape[1:]:
      raise errors.UsageError(
        f'{self.name}: test_images are {self.test_images.shape[1:]} each, '
        f'train_images {self.train_images.shape[1:]}; give both the same '
        f'height, width and channels.'
      )
    channels = self.train_images.shape[-1]
    for field in ('mean', 'std'):
      if len(getattr(self, field)) != channels:
        raise errors.UsageError(
          f'{self.name}: {field} has {len(getattr(self, field))} entries; '
          f'give one for each of the {channels} channels.'
        )
    if min(self.std) <= 0:
      raise errors.UsageError(
        f'{self.name}: std is {self.std}; give positive numbers.'
      )
    if not self.class_names and self.num_classes > _MOST_CLASSES:
      raise errors.UsageError(
        f'{self.name}: num_classes is {self.num_classes}; number the labels '
        'that there are from 0 on.'
      )
    if not self.class_names:
      numbers = tuple(map(str, range(self.num_classes)))
      object.__setattr__(self, 'class_names', numbers)
    if len(self.class_names) != self.num_classes:
      raise errors.UsageError(
        f'{self.name}: class_names has {len(self.class_names)} entries; give '
        f'one for each of the {self.num_classes} classes.'
      )


def load_dataset(
  name: str,
  directory: str = '',
  train_images: int = 0,
  options: picture_options.Options = picture_options.DEFAULT,
  storage: image_store.Storage = image_store.DEFAULT,
) -> Dataset:
  """Loads a dataset; downloads nothing.

  By name:

  - 'digits': 1,437 training and 360 test images (8x8, one channel) of
    scikit-learn's handwritten digits, split once and for all.
  - 'cifar10', 'cifar100' (fine labels): from `directory`, which is, or
    contains, the unpacked python or binary version as published, or is a data
    directory of tensorflow-datasets with an array_record build. With no
    directory: the default data directory of tensorflow-datasets
    (TFDS_DATA_DIR or ~/tensorflow_datasets).
  - 'npz': `directory` is the path of a .npz file with x_train, y_train, x_test,
    y_test: uint8 images (N, H, W, C) or (N, H, W), integer labels. The classes
    are the labels that there are in y_train, in their order.
  - 'folder': `directory` has a folder of pictures for each class, or folders
    train and test that have; see `data.class_folders`.
  - 'tfds:NAME': images with a class each that tensorflow-datasets has prepared
    as array_record in its data directory `directory`, or in the default one;
    see `data.tfds_pictures`.
  - 'my_module:my_images': a function of your own, of `directory`, that returns
    a `Dataset`.

  Args:
    name: one of 'digits', 'cifar10', 'cifar100', 'npz', 'folder', 'tfds:NAME'
      and 'my_module:my_images', see above.
    directory: where the data are; must be empty for 'digits'.
    train_images: how many training images to keep, drawn at random but always
      the same ones; 0 is all.
    options: how pictures are read, of folders and of tensorflow-datasets.
    storage: where the images of these and of npz files lie, in memory or on
      disk, and how many bytes of training images may lie on a device.

  Returns:
    The dataset. The normalisation of digits, npz and folders is that of all
    training images; a channel of one value throughout gets the standard
    deviation 1.

  Raises:
    UsageError: the name is not known, the data are missing or malformed, or
      there are fewer training images.

  Example:
    >>> import ms_ranas_jax as mr
    >>> dataset = mr.load_dataset('digits')
    >>> dataset.train_images.shape, dataset.num_classes
    ((1437, 8, 8, 1), 10)
  """
  _refuse_unused(name, options)
  directory = paths.expand(directory)
  with _failures_in_words():
    if picture_options.reads_pictures(name):
      dataset = _load_pictures(name, directory, options, storage)
      return _part(dataset, train_images)
    loader = importing.find(name, _LOADERS, 'dataset.name')
    if ':' in name:
      dataset = loader(directory)
      if not isinstance(dataset, Dataset):
        raise errors.UsageError(
          f'dataset.name = {name!r} returned a {type(dataset).__name__}: '
          'return an ms_ranas_jax.Dataset.'
        )
      dataset = dataclasses.replace(
        dataset, name=name, resident_bytes=storage.resident_bytes
      )
      _refuse_empty_classes(dataset)
    else:
      dataset = loader(name, directory, storage)
  return _part(dataset, train_images)


@contextlib.contextmanager
def _failures_in_words() -> Iterator[None]:
  """Says what is to be done about a folder that may not be entered."""
  try:
    yield
  except OSError as error:
    raise errors.UsageError(
      f'dataset.dir: {error}; check the path and its permissions.'
    ) from error


def _refuse_unused(name: str, options: picture_options.Options) -> None:
  """Refuses what is said of pictures where none are read."""
  if not picture_options.reads_pictures(name) and (
    options != picture_options.DEFAULT
  ):
    raise errors.UsageError(
      f'{options} says how pictures are read, and of {name!r} there are none; '
      'leave it out.'
    )


class TestImages(NamedTuple):
  """Labelled images that only judge.

  Attributes:
    name: of the dataset.
    images: uint8 (M, H, W, C).
    labels: int32 (M,).
    class_names: one per class.
  """

  name: str
  images: np.ndarray
  labels: np.ndarray
  class_names: tuple[str, ...]


def load_test_images(
  name: str,
  directory: str,
  image_shape: tuple[int, int, int],
  storage: image_store.Storage = image_store.DEFAULT,
) -> TestImages:
  """Loads the test images of a dataset.

  Args:
    name: see `load_dataset`.
    directory: the same; of folders of pictures the folder test, or all where
      there is none.
    image_shape: (height, width, channels) that pictures are brought to.
    storage: see `load_dataset`; pictures are read into memory.

  Raises:
    UsageError: as `load_dataset`.
  """
  if picture_options.reads_pictures(name):
    directory = paths.expand(directory)
    with _failures_in_words():
      if name == picture_options.FOLDER:
        found = class_folders.find_test(directory)
      else:
        found = tfds_pictures.find_test(name, directory, storage)
      return TestImages(name, *labelled_pictures.read_all(found, image_shape))
  dataset = load_dataset(name, directory, storage=storage)
  return TestImages(
    dataset.name,
    dataset.test_images,
    dataset.test_labels,
    dataset.class_names,
  )


def _refuse_empty_classes(dataset: Dataset) -> None:
  """Refuses classes of which there is nothing to learn."""
  there = np.unique(dataset.train_labels)
  empty = np.setdiff1d(np.arange(dataset.num_classes), there)
  if empty.size:
    names = errors.listed([dataset.class_names[index] for index in empty])
    raise errors.UsageError(
      f'{dataset.name}: {empty.size} of {dataset.num_classes} classes have no '
      f'training image ({names}); number the classes that '
      'there are from 0 on.'
    )


def _part(dataset: Dataset, train_images: int) -> Dataset:
  """Returns the dataset with that many of its training images; 0 is all."""
  if not train_images:
    return dataset
  count = len(dataset.train_images)
  if train_images > count:
    raise errors.UsageError(
      f'dataset.train_images = {train_images}, but {dataset.name} has {count}; '
      f'give fewer, or 0 for all.'
    )
  kept, _ = split_indices(count, (train_images, None), _PART_SEED)
  return dataclasses.replace(
    dataset,
    train_images=dataset.train_images[kept],
    train_labels=dataset.train_labels[kept],
  )


def image_format(
  name: str,
  directory: str = '',
  options: picture_options.Options = picture_options.DEFAULT,
  storage: image_store.Storage = image_store.DEFAULT,
) -> tuple[tuple[int, int, int], int]:
  """Returns what a network has to know of a dataset.

  Args:
    name: as for `load_dataset`.
    directory: the same; only 'npz' has to read it, and the heads of pictures.
    options: the same.
    storage: the same.

  Returns:
    ((height, width, channels), number of classes).

  Raises:
    UsageError: as `load_dataset`.
  """
  if name in cifar_files.NUM_CLASSES:
    _refuse_unused(name, options)
    return (32, 32, 3), cifar_files.NUM_CLASSES[name]
  if picture_options.reads_pictures(name):
    with _failures_in_words():
      found = _find_pictures(name, paths.expand(directory), options, storage)
      return labelled_pictures.image_format(found, options)
  dataset = load_dataset(name, directory, options=options, storage=storage)
  return dataset.image_shape, dataset.num_classes


def split_indices(
  num_examples: int, sizes: Sequence[int | float | None], seed: int
) -> tuple[np.ndarray, ...]:
  """Deals examples out at random, none of them twice.

      params_half, alphas_half = split_indices(n, (0.5, None), seed)
      train, held_out = split_indices(n, (None, 5_000), seed)

  Args:
    num_examples: how many there are.
    sizes: for each part a number of examples (int), a fraction of
      `num_examples` in 0 .. 1, rounded down (float), or, once at most, None:
      all that the others leave.
    seed: of `np.random.default_rng`; the same arguments give the same parts.

  Returns:
    One int32 array of indices per part, in random order. Some examples are
    in none where the sizes do not add up to all.

  Raises:
    UsageError: a size is negative or no number, or they are too many.
  """
  counts = []
  for size in sizes:
    if isinstance(size, float) and 0 <= size <= 1:
      size = int(size * num_examples)
    elif size is not None and (
      isinstance(size, bool)
      or not isinstance(size, (int, np.integer))
      or size < 0
    ):
      raise errors.UsageError(
        f'the size of a part is {size!r}; give a number of examples, a '
        f'fraction of 0.0 to 1.0, or None for the rest.'
      )
    counts.append(size)
  rest = num_examples - sum(count for count in counts if count is not None)
  if rest < 0 or counts.count(None) > 1:
    raise errors.UsageError(
      f'{num_examples} examples cannot be split into parts of {tuple(sizes)}; '
      f'give smaller sizes, and None once at most.'
    )
  counts = [rest if count is None else int(count) for count in counts]
  order = np.random.default_rng(seed).permutation(num_examples)
  bounds = np.cumsum([0, *counts])
  return tuple(
    order[start:stop].astype(np.int32)
    for start, stop in zip(bounds[:-1], bounds[1:])
  )


def _load_cifar(
  name: str, directory: str, storage: image_store.Storage
) -> Dataset:
  """Loads CIFAR-10 or CIFAR-100 from wherever it is."""
  return Dataset(
    name,
    *cifar_source.read(name, directory, storage),
    num_classes=cifar_files.NUM_CLASSES[name],
    mean=_CIFAR_MEAN[name],
    std=_CIFAR_STD[name],
    class_names=cifar_files.CLASS_NAMES[name],
    resident_bytes=storage.resident_bytes,
  )


def _load_digits(
  name: str, directory: str, storage: image_store.Storage
) -> Dataset:
  """Loads scikit-learn's handwritten digits."""
  if directory:
    raise errors.UsageError(
      f'dataset.dir is {directory!r}, but digits ship with scikit-learn; leave '
      f'it empty, or set dataset.name to the dataset meant.'
    )
  try:
    images, labels = _read_digits()
  except ImportError as error:
    raise errors.UsageError(
      f'dataset.name: digits needs scikit-learn ({error}); install it with '
      f'pip install scikit-learn.'
    ) from error
  train, test = split_indices(
    len(images), (None, _DIGITS_TEST_SIZE), _DIGITS_SPLIT_SEED
  )
  mean, std = _statistics(images[train])
  return Dataset(
    name,
    images[train],
    labels[train],
    images[test],
    labels[test],
    10,
    mean,
    std,
    resident_bytes=storage.resident_bytes,
  )


@functools.cache
def _read_digits() -> tuple[np.ndarray, np.ndarray]:
  """Reads them once: they are a text, and a study asks for them at each run."""
  from sklearn import datasets  # Slow to import, and only needed here.

  digits: Any = datasets.load_digits()  # else it may be a tuple
  images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  return images, digits.target.astype(np.int32)


def _load_npz(
  name: str, directory: str, storage: image_store.Storage
) -> Dataset:
  """Loads a user's own .npz file."""
  arrays, names = npz_file.read(directory, storage)
  mean, std = _statistics(arrays.x_train)
  return Dataset(
    name,
    *arrays,
    len(names),
    mean,
    std,
    names,
    resident_bytes=storage.resident_bytes,
  )


def _find_pictures(
  name: str,
  directory: str,
  options: picture_options.Options,
  storage: image_store.Storage,
) -> labelled_pictures.Found:
  if name == picture_options.FOLDER:
    return class_folders.find(directory, options)
  return tfds_pictures.find(name, directory, options, storage)


def _load_pictures(
  name: str,
  directory: str,
  options: picture_options.Options,
  storage: image_store.Storage,
) -> Dataset:
  """Loads pictures with a class each."""
  found = labelled_pictures.read(
    _find_pictures(name, directory, options, storage), options, storage
  )
  mean, std = _statistics(found.images['train'])
  return Dataset(
    name,
    found.images['train'],
    found.labels['train'],
    found.images['test'],
    found.labels['test'],
    len(found.class_names),
    mean,
    std,
    found.class_names,
    found.notes,
    storage.resident_bytes,
  )


def _statistics(
  images: np.ndarray,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Returns the mean and standard deviation per channel of images / 255.

  Args:
    images: uint8 (N, H, W, C). Taken in pieces: whole, the float64 that a
      standard deviation goes through are eight times their size.
  """
  channels = images.shape[-1]
  counts = np.zeros((channels, 256), np.int64)
  size = max(_PIXELS_AT_A_TIME // math.prod(images.shape[1:3]), 1)
  for start in range(0, len(images), size):
    piece = images[start : start + size]
    for channel in range(channels):
      values = piece[..., channel].ravel()
      counts[channel] += np.bincount(values, minlength=256)
  values = np.arange(256) / 255
  shares = counts / counts.sum(axis=1, keepdims=True)
  mean = shares @ values
  std = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1))
  std = np.where(std > 1e-6, std, 1.0)
  return tuple(mean.tolist()), tuple(std.tolist())


# One of one's own takes the directory alone. Pictures are told apart before,
# and stand here for the message about an unknown name.
_LOADERS: types.MappingProxyType[str, Callable[..., Dataset]] = (
  types.MappingProxyType(
    {
      'cifar10': _load_cifar,
      'cifar100': _load_cifar,
      'digits': _load_digits,
      'npz': _load_npz,
      picture_options.FOLDER: _load_pictures,
      f'{picture_options.TFDS}NAME': _load_pictures,
    }
  )
)
