"""Images as the network sees them: crop, flip, colours, normalisation, cutout.

All of it happens on the device, on uint8 images that lie there, and depends
on a key and on each example's position in the whole batch alone.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import chex
import jax
from jax import lax
import jax.numpy as jnp

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.sections import DatasetConfig
from ms_ranas_jax.training import photographs


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """What is done to training images.

  Attributes:
    mean: per channel, of images / 255.
    std: per channel, of images / 255.
    crop_padding: zero pixels around an image before a random crop; 0 is off.
    flip: mirror half of the images.
    cutout: side of the square that is masked (DeVries and Taylor); 0 is off.
    crop_scale: smallest share of a random resized crop; 1 is off.
    colour_jitter: its strength; 0 is off.
    random_operations: so many on an image; 0 is off.
    random_magnitude: of these, 0 to 30.
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]
  crop_padding: int = 0
  flip: bool = False
  cutout: int = 0
  crop_scale: float = 1.0
  colour_jitter: float = 0.0
  random_operations: int = 0
  random_magnitude: float = 9.0

  @property
  def draws(self) -> int:
    """How many more random numbers photographs take, each of them."""
    return (
      photographs.CROP_DRAWS * (self.crop_scale < 1)
      + photographs.JITTER_DRAWS * bool(self.colour_jitter)
      + photographs.OPERATION_DRAWS * self.random_operations
    )


def of_config(
  config: DatasetConfig,
  cutout: int,
  mean: tuple[float, ...],
  std: tuple[float, ...],
) -> Augmentation:
  """Returns what a config says is done to training images.

  Args:
    config: `config.dataset`.
    cutout: of the section.
    mean: per channel, of images / 255.
    std: the same.
  """
  return Augmentation(
    mean,
    std,
    config.crop_padding,
    config.flip,
    cutout,
    config.crop_scale,
    config.colour_jitter,
    config.random_operations,
    config.random_magnitude,
  )


def check(
  size: tuple[int, int], config: DatasetConfig, cutout: int, section: str
) -> None:
  """Refuses what would leave nothing of some images, and two kinds of crops.

  Args:
    size: (height, width) of the images.
    config: `config.dataset`; at the side of an image, a crop of its
      `crop_padding` may miss all of it.
    cutout: of the section; at the side of an image it may blank all of it.
    section: of the config, for the message.

  Raises:
    UsageError: names the field, and the most that it may be.
  """
  side = min(size)
  for name, value in (
    ('dataset.crop_padding', config.crop_padding),
    (f'{section}.cutout', cutout),
  ):
    if value >= side:
      raise UsageError(
        f'config.{name} = {value}, but the images are {size[0]}x{size[1]}: '
        f'nothing would be left of some; give at most {side - 1}.'
      )
  if config.crop_padding and config.crop_scale < 1:
    raise UsageError(
      f'config.dataset.crop_scale = {config.crop_scale:g} and '
      f'config.dataset.crop_padding = {config.crop_padding} are two kinds of '
      'crops; set crop_padding to 0, or crop_scale to 1.'
    )


def normalize(
  images: jax.Array, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
  """Maps uint8 images to float32 with zero mean and unit deviation.

  Args:
    images: (batch, height, width, channels) uint8.
    mean: per channel, of images / 255.
    std: the same.

  Returns:
    float32 of the same shape.
  """
  return _standardized(images.astype(jnp.float32) / 255.0, mean, std)


def _standardized(
  images: jax.Array, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
  chex.assert_shape(images, (None, None, None, len(mean)))
  shape = (1, 1, 1, len(mean))
  center = jnp.asarray(mean, jnp.float32).reshape(shape)
  scale = jnp.asarray(std, jnp.float32).reshape(shape)
  return (images - center) / scale


def augment(
  images: jax.Array,
  key: jax.Array,
  positions: jax.Array,
  settings: Augmentation,
) -> jax.Array:
  """Crops, mirrors, changes colours, normalises and cuts out at random.

  Args:
    images: (batch, height, width, channels) uint8.
    key: of this batch.
    positions: (batch,) int32, each example's position in the whole batch.
    settings: what is done.

  Returns:
    float32 of the same shape. What is cut out is zero, the mean colour.
  """
  _, height, width, channels = images.shape
  # One draw for all decisions: every call of the generator costs compile time.
  bits = jax.vmap(
    lambda p: jax.random.bits(jax.random.fold_in(key, p), (5,), jnp.uint32)
  )(positions)

  def uniform(column: int, count: int) -> jax.Array:
    return (bits[:, column] % jnp.uint32(count)).astype(jnp.int32)

  if settings.crop_padding:
    pad = settings.crop_padding
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    images = jax.vmap(
      lambda image, row, column: lax.dynamic_slice(
        image, (row, column, jnp.int32(0)), (height, width, channels)
      )
    )(padded, uniform(0, 2 * pad + 1), uniform(1, 2 * pad + 1))
  if settings.flip:
    mirrored = (bits[:, 2] & 1).astype(bool)[:, None, None, None]
    images = jnp.where(mirrored, images[:, :, ::-1], images)
  x = images.astype(jnp.float32) / 255.0
  if settings.draws:
    # Of a key of their own, so that the draws above are those without them.
    draws = jax.vmap(
      lambda p: jax.random.uniform(
        jax.random.fold_in(jax.random.fold_in(key, p), 1), (settings.draws,)
      )
    )(positions)
    x = jax.vmap(lambda image, own: _of_photograph(image, own, settings))(
      x, draws.astype(x.dtype)
    )
  x = _standardized(x, settings.mean, settings.std)
  if settings.cutout:
    x = x * cutout_mask(
      uniform(3, height), uniform(4, width), (height, width), settings.cutout
    )
  return x


def _of_photograph(
  image: jax.Array, draws: jax.Array, settings: Augmentation
) -> jax.Array:
  """Does to an image of 0 to 1 what is for photographs."""
  if settings.crop_scale < 1:
    own, draws = jnp.split(draws, [photographs.CROP_DRAWS])
    image = photographs.random_resized_crop(image, own, settings.crop_scale)
  if settings.colour_jitter:
    own, draws = jnp.split(draws, [photographs.JITTER_DRAWS])
    image = photographs.colour_jitter(image, own, settings.colour_jitter)
  if settings.random_operations:
    image = photographs.random_operations(
      image, draws, settings.random_magnitude
    )
  return image


def cutout_mask(
  rows: jax.Array, columns: jax.Array, size: tuple[int, int], length: int
) -> jax.Array:
  """A square of zeros around a centre, cut off at the border.

  Args:
    rows: (batch,) int32, the centres.
    columns: (batch,) int32.
    size: (height, width).
    length: side of the square, centre - length // 2 on.

  Returns:
    (batch, height, width, 1) float32 of zeros and ones.
  """

  def inside(centre: jax.Array, count: int) -> jax.Array:
    first = centre[:, None] - length // 2
    at = jnp.arange(count, dtype=jnp.int32)[None, :]
    return (at >= first) & (at < first + length)

  masked = (
    inside(rows, size[0])[:, :, None] & inside(columns, size[1])[:, None, :]
  )
  return 1.0 - masked[..., None].astype(jnp.float32)
