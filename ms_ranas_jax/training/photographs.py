"""Augmentation for photographs: random resized crop, jitter, random operations.

All of it happens on the device, on float images of 0 to 1, image by image; what
comes out is of 0 to 1 again. Where dm-pix has an operation, it is that of
dm-pix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import math
import types

import dm_pix as pix
import jax
import jax.numpy as jnp

# Of a random resized crop, width / height (Szegedy and others, 2015).
_RATIOS = (3 / 4, 4 / 3)
# How many random numbers of 0 to 1 each takes for an image.
CROP_DRAWS, JITTER_DRAWS, OPERATION_DRAWS = 4, 4, 2
# The magnitude of random operations is of so many.
LEVELS = 30
_GREY = 0.5  # where an operation moves the border of an image into it


def random_resized_crop(
  image: jax.Array, draws: jax.Array, smallest: float
) -> jax.Array:
  """Cuts a part out of an image, and scales it to the size of the image.

  The part is of a share of the area drawn evenly from `smallest` to 1, and of
  an aspect ratio drawn evenly in its logarithm from 3/4 to 4/3 of that of the
  image; a side that would be longer than the image's is as long. After Szegedy
  and others (2015), arXiv 1409.4842. Pixels are interpolated linearly.

  Args:
    image: (height, width, channels) float of 0 to 1.
    draws: (4,) of 0 to 1: area, ratio, row, column.
    smallest: share of the area, above 0.

  Returns:
    The same shape and dtype.
  """
  area = smallest + (1 - smallest) * draws[0]
  low, high = map(math.log, _RATIOS)
  ratio = jnp.exp(low + (high - low) * draws[1])
  # Shares of the image's sides.
  sides = jnp.minimum(jnp.sqrt(jnp.stack([area / ratio, area * ratio])), 1.0)
  corner = (1 - sides) * draws[2:4]
  size = jnp.asarray(image.shape[:2], image.dtype)
  found = jax.image.scale_and_translate(
    image,
    image.shape,
    (0, 1),
    1 / sides,
    -corner * size / sides,
    'linear',
    antialias=False,
  )
  return jnp.clip(found, 0.0, 1.0)


def colour_jitter(
  image: jax.Array, draws: jax.Array, strength: float
) -> jax.Array:
  """Changes brightness, contrast, saturation and hue at random, in this order.

  The first three by a factor of 1 - strength to 1 + strength; the hue by a
  share of a turn of -strength / 2 to strength / 2, as 0.4 and 0.2 in the
  training of DARTS on ImageNet. Images without three channels have no
  saturation and hue.

  Args:
    image: (height, width, channels) float of 0 to 1.
    draws: (4,) of 0 to 1.
    strength: 0 to 1.

  Returns:
    The same shape and dtype.
  """
  signed = strength * (2 * draws - 1)
  image = jnp.clip(image * (1 + signed[0]), 0.0, 1.0)
  found = jnp.clip(pix.adjust_contrast(image, 1 + signed[1]), 0.0, 1.0)
  if image.shape[-1] == 3:
    found = pix.adjust_saturation(found, 1 + signed[2])
    found = pix.adjust_hue(found, signed[3] / 2)
  return jnp.clip(found, 0.0, 1.0)


def random_operations(
  image: jax.Array, draws: jax.Array, magnitude: float
) -> jax.Array:
  """Does some of `OPERATIONS`, drawn evenly, one after the other.

  After RandAugment (Cubuk and others, 2020), arXiv 1909.13719, with its ranges;
  without the operation that makes a histogram even.

  Args:
    image: (height, width, channels) float of 0 to 1.
    draws: (2 * operations,) of 0 to 1: for each, which one, and its sign.
    magnitude: of all of them, 0 to 30.

  Returns:
    The same shape and dtype.
  """
  share = magnitude / LEVELS
  for which, sign in draws.reshape(-1, OPERATION_DRAWS):
    index = jnp.floor(which * len(OPERATIONS)).astype(jnp.int32)
    signed = jnp.where(sign < 0.5, -share, share)
    image = jax.lax.switch(index, list(OPERATIONS.values()), image, signed)
    image = jnp.clip(image, 0.0, 1.0)
  return image


def _moved(image: jax.Array, matrix: jax.Array) -> jax.Array:
  """Reads each pixel from where a matrix has it, around the centre.

  Args:
    image: (height, width, channels).
    matrix: (2, 3): rows and columns in pixels, and what is added to them.
  """
  linear, added = matrix[:, :2], matrix[:, 2]
  centre = (jnp.asarray(image.shape[:2], image.dtype) - 1) / 2
  offset = centre - linear @ centre + added
  full = jnp.eye(4, dtype=image.dtype)
  full = full.at[:2, :2].set(linear).at[:2, 3].set(offset)
  return jnp.asarray(
    pix.affine_transform(image, full[:3], order=1, mode='constant', cval=_GREY)
  )


def _matrix(*entries: jax.Array | float) -> jax.Array:
  """Returns (2, 3), of six numbers row by row."""
  return jnp.stack([jnp.asarray(x, jnp.float32) for x in entries]).reshape(2, 3)


def _unchanged(image: jax.Array, signed: jax.Array) -> jax.Array:
  del signed
  return image


def _rotated(image: jax.Array, signed: jax.Array) -> jax.Array:
  angle = math.radians(30) * signed
  sine, cosine = jnp.sin(angle), jnp.cos(angle)
  return _moved(image, _matrix(cosine, -sine, 0, sine, cosine, 0))


def _sheared_down(image: jax.Array, signed: jax.Array) -> jax.Array:
  return _moved(image, _matrix(1, 0.3 * signed, 0, 0, 1, 0))


def _sheared_across(image: jax.Array, signed: jax.Array) -> jax.Array:
  return _moved(image, _matrix(1, 0, 0, 0.3 * signed, 1, 0))


def _shifted_down(image: jax.Array, signed: jax.Array) -> jax.Array:
  shift = 0.45 * image.shape[0] * signed
  return _moved(image, _matrix(1, 0, shift, 0, 1, 0))


def _shifted_across(image: jax.Array, signed: jax.Array) -> jax.Array:
  shift = 0.45 * image.shape[1] * signed
  return _moved(image, _matrix(1, 0, 0, 0, 1, shift))


def _brighter(image: jax.Array, signed: jax.Array) -> jax.Array:
  return image * (1 + 0.9 * signed)


def _more_contrast(image: jax.Array, signed: jax.Array) -> jax.Array:
  return jnp.asarray(pix.adjust_contrast(image, 1 + 0.9 * signed))


def _more_colour(image: jax.Array, signed: jax.Array) -> jax.Array:
  if image.shape[-1] != 3:
    return image
  return jnp.asarray(pix.adjust_saturation(image, 1 + 0.9 * signed))


def _sharper(image: jax.Array, signed: jax.Array) -> jax.Array:
  """Goes away from a smoothed image, or towards it, but for the border."""
  weights = jnp.ones((3, 3), image.dtype).at[1, 1].set(5.0) / 13.0
  padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
  height, width, _ = image.shape
  smooth = sum(
    weights[i, j] * padded[i : i + height, j : j + width]
    for i in range(3)
    for j in range(3)
  )
  inside = jnp.zeros((height, width, 1), bool).at[1:-1, 1:-1].set(True)
  smooth = jnp.where(inside, smooth, image)
  return smooth + (1 + 0.9 * signed) * (image - smooth)


def _fewer_levels(image: jax.Array, signed: jax.Array) -> jax.Array:
  """Keeps the 8 to 4 highest bits."""
  bits = 8 - jnp.round(4 * jnp.abs(signed))
  step = 2.0 ** (8 - bits)
  levels = jnp.round(image * 255)
  return jnp.floor(levels / step) * step / 255


def _solarized(image: jax.Array, signed: jax.Array) -> jax.Array:
  return jnp.asarray(pix.solarize(image, (1 - jnp.abs(signed)) * 256 / 255))


def _full_range(image: jax.Array, signed: jax.Array) -> jax.Array:
  """Spreads the values of each channel from 0 to 1."""
  del signed
  low = image.min(axis=(0, 1), keepdims=True)
  high = image.max(axis=(0, 1), keepdims=True)
  spread = jnp.where(high > low, high - low, 1.0)
  return jnp.where(high > low, (image - low) / spread, image)


# (image, signed magnitude of -1 to 1) -> image, which may leave 0 to 1.
OPERATIONS: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = (
  types.MappingProxyType(
    {
      'identity': _unchanged,
      'rotate': _rotated,
      'shear_y': _sheared_down,
      'shear_x': _sheared_across,
      'translate_y': _shifted_down,
      'translate_x': _shifted_across,
      'brightness': _brighter,
      'contrast': _more_contrast,
      'colour': _more_colour,
      'sharpness': _sharper,
      'posterize': _fewer_levels,
      'solarize': _solarized,
      'autocontrast': _full_range,
    }
  )
)
