"""Picture files as the uint8 images that a network takes.

A picture is turned upright as its EXIF data say, brought to the network's
colours, cut to its aspect ratio around the centre, and scaled. Each of these is
told, since a network sees what is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
import contextlib
import dataclasses
import io
import os
import pathlib
from typing import Any, NamedTuple
import warnings

import numpy as np
import PIL
from PIL import Image
from PIL import ImageOps

from ms_ranas_jax import paths
from ms_ranas_jax.data import image_store
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import files

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.gif', '.webp', '.tif', '.tiff')
_MODES = {1: 'L', 3: 'RGB'}
_WORDS = {'L': 'grey', 'RGB': 'RGB'}
_ORIENTATION = 0x0112  # of EXIF; 1 is upright
# 16 bits a pixel, which Pillow would cut off at 255.
_DEEP = ('I;16', 'I;16L', 'I;16B', 'I;16N', 'I')
_TRANSPARENT = ('RGBA', 'LA', 'PA', 'RGBa', 'La')
_GREY = ('1', 'L', 'LA', 'La', *_DEEP)
_SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange height and width


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
  """A picture as the network takes it.

  Attributes:
    path: of the file.
    pixels: (height, width, channels) uint8.
    changes: what was done to it, in words; empty where it fitted.
  """

  path: pathlib.Path
  pixels: np.ndarray
  changes: str


class Encoded(NamedTuple):
  """The content of a picture file that lies within another file.

  Attributes:
    name: what a message calls it.
    content: the bytes of the file.
  """

  name: str
  content: bytes

  def __str__(self) -> str:
    return self.name


# What a picture is read from.
File = pathlib.Path | Encoded


@dataclasses.dataclass(frozen=True)
class Head:
  """What the head of a file says of the picture in it.

  Attributes:
    size: (height, width) once it is upright.
    grey: whether it has no colours.
  """

  size: tuple[int, int]
  grey: bool


def find_files(names: Iterable[str]) -> list[pathlib.Path]:
  """Returns picture files: those that are named, and those in folders.

  Args:
    names: paths of files, whatever they end in, and of folders, of which all
      pictures are taken, also those in folders within, sorted by name.

  Raises:
    UsageError: a path is not there, or a folder holds no picture.
  """
  found = []
  for name in names:
    path = pathlib.Path(paths.expand(name))
    if path.is_dir():
      within = sorted(
        p
        for p in path.rglob('*')
        if p.suffix.lower() in SUFFIXES and p.is_file()
      )
      if not within:
        raise UsageError(
          f'{path} holds no picture ({", ".join(SUFFIXES)}); name another '
          'folder, or the files themselves.'
        )
      found += within
    elif files.is_archive(path):
      raise UsageError(
        f'{path} is an archive; unpack it, and name the folder that comes out.'
      )
    elif path.is_file():
      found.append(path)
    else:
      raise UsageError(f'{path} is not there; correct the path.')
  return found


def read(path: pathlib.Path, image_shape: tuple[int, int, int]) -> Picture:
  """Reads a picture and brings it to a shape.

  Args:
    path: of a file of any format that Pillow reads; of several frames the
      first one.
    image_shape: (height, width, channels), 1 (grey) or 3 (RGB) channels.

  Raises:
    UsageError: it is no whole picture, or the network takes no pictures.
  """
  with _no_bombs():
    return Picture(path, *_read(path, image_shape))


def _read(
  file: File, image_shape: tuple[int, int, int]
) -> tuple[np.ndarray, str]:
  """Returns the pixels, and what was done to them."""
  height, width, channels = image_shape
  if channels not in _MODES:
    raise UsageError(
      f'the network takes images of {channels} channels, and pictures have 1 '
      'or 3; call Model.predict with arrays instead.'
    )
  with _refused(file):
    upright, turned = _upright(file)
    changes = ['turned upright'] * turned
    plain = _plain_colours(upright, _MODES[channels], changes)
  if plain.size != (width, height):
    before = f'{plain.width}x{plain.height}'
    if plain.width * height != plain.height * width:
      changes.append('cut to the middle')
    plain = ImageOps.fit(plain, (width, height), Image.Resampling.BICUBIC)
    changes.append(f'{before} scaled to {width}x{height} (bicubic)')
  pixels = np.asarray(plain, np.uint8).reshape(image_shape)
  return pixels, ', '.join(changes)


def read_head(file: File) -> Head:
  """Returns the size and the colours of a picture, without its pixels.

  Args:
    file: of any format that Pillow reads.

  Raises:
    UsageError: it is no picture.
  """
  with _refused(file), _no_bombs(), _opened(file) as image:
    width, height = image.size
    if image.getexif().get(_ORIENTATION, 1) in _SIDEWAYS:
      width, height = height, width
    return Head((height, width), image.mode in _GREY)


def fill(found: Sequence[File], images: np.ndarray) -> dict[int, str]:
  """Reads pictures, several at a time.

  Args:
    found: the files.
    images: uint8 (files, height, width, channels), to be filled; what cannot be
      read is left as it is.

  Returns:
    Why pictures could not be read, by their numbers.
  """
  unreadable = {}

  def one(number: int) -> tuple[int, str]:
    try:
      images[number], _ = _read(found[number], images.shape[1:])
    except UsageError as error:
      return number, str(error)
    return number, ''

  # Pillow works outside of Python's lock.
  with _no_bombs(), futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    for number, why in pool.map(one, range(len(found))):
      if why:
        unreadable[number] = why
  return unreadable


def source(
  names: Sequence[pathlib.Path], image_shape: tuple[int, int, int]
) -> image_store.Source:
  """Returns pictures as what an `image_store` reads.

  Args:
    names: of the files.
    image_shape: (height, width, channels) that all are brought to.
  """

  def fill_from(first: int, images: np.ndarray) -> dict[int, str]:
    found = fill(names[first : first + len(images)], images)
    return {first + number: why for number, why in found.items()}

  def facts() -> list[Any]:
    found = [
      (os.path.abspath(name), status.st_size, status.st_mtime_ns)
      for name in names
      for status in (name.stat(),)
    ]
    return [PIL.__version__, found]

  shape = (len(names), *image_shape)
  return image_store.Source(shape, fill_from, facts)


@contextlib.contextmanager
def _no_bombs() -> Iterator[None]:
  """Makes of a picture that may be a bomb an error, not a warning.

  Around threads and not in them: what warnings do is of the whole process.
  """
  with warnings.catch_warnings():
    warnings.simplefilter('error', Image.DecompressionBombWarning)
    yield


@contextlib.contextmanager
def _refused(file: File) -> Iterator[None]:
  """Says of what goes wrong which file it was."""
  try:
    yield
  except (
    OSError,
    ValueError,
    SyntaxError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
  ) as error:
    raise UsageError(
      f'{file} is no picture that can be read ({error}); save it again as PNG '
      'or JPEG, with 8 bits a channel.'
    ) from error


def _opened(file: File) -> Image.Image:
  if isinstance(file, Encoded):
    return Image.open(io.BytesIO(file.content))
  return Image.open(file)


def _upright(file: File) -> tuple[Image.Image, bool]:
  """Returns a picture as its EXIF data say, and whether it was turned."""
  with _opened(file) as image:
    image.load()
    turned = image.getexif().get(_ORIENTATION, 1) != 1
    return ImageOps.exif_transpose(image), turned


def _plain_colours(
  image: Image.Image, mode: str, changes: list[str]
) -> Image.Image:
  """Returns a picture of 8 bits in grey or RGB, and notes what was done."""
  if image.mode in _DEEP:
    values = np.asarray(image).astype(np.int64)
    # Whose numbers run to 255, or beyond 16 bits, has a range of its own.
    if values.min() < 0 or not 255 < values.max() <= 65535:
      raise ValueError(
        f'its pixels run from {values.min()} to {values.max()}, which is not '
        'the range of 16 bits'
      )
    image = Image.fromarray((values // 257).astype(np.uint8))
    changes.append('16 to 8 bits')
  elif image.mode == 'F':
    raise ValueError('its pixels are fractions of no known range')
  if image.mode in _TRANSPARENT or 'transparency' in image.info:
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(white, image).convert('RGB')
    changes.append('laid on white')
  if image.mode != mode:
    changes.append(f'{_WORDS.get(image.mode, image.mode)} to {_WORDS[mode]}')
    image = image.convert(mode)
  return image
