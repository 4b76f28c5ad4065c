"""Operations on photographs against closed forms, Pillow and SciPy."""

import colorsys
import math

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from PIL import ImageEnhance
from PIL import ImageOps
import pytest
from scipy import ndimage

from ms_ranas_jax.training import photographs

# Even: in the middle of odd ones lies a pixel that nothing moves.
HEIGHT, WIDTH = 10, 12
PIXELS = np.random.default_rng(0).integers(
  0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8
)
IMAGE = PIXELS.astype(np.float32) / 255


def _crop_reference(image, top, left, height, width):
  """Reads the middles of the pixels of the part, linearly between pixels."""
  size = image.shape[:2]
  sources = []
  for first, length, count in (top, height, size[0]), (left, width, size[1]):
    at = first + (np.arange(count) + 0.5) * length / count - 0.5
    sources.append(np.clip(at, 0, count - 1))
  grid = np.stack(np.meshgrid(*sources, indexing='ij'))
  return np.stack(
    [
      ndimage.map_coordinates(image[..., c], grid, order=1)
      for c in range(image.shape[-1])
    ],
    axis=-1,
  )


@pytest.mark.parametrize(
  'draws', [[0, 0.5, 0, 0], [0.3, 0.1, 0.2, 0.9], [0.9, 0.99, 1, 0.4]]
)
def test_a_resized_crop_is_a_part_of_the_image(draws):
  smallest = 0.2
  area = smallest + (1 - smallest) * draws[0]
  ratio = math.exp(math.log(3 / 4) + draws[1] * math.log(16 / 9))
  height = HEIGHT * min(math.sqrt(area / ratio), 1)
  width = WIDTH * min(math.sqrt(area * ratio), 1)
  expected = _crop_reference(
    IMAGE,
    draws[2] * (HEIGHT - height),
    draws[3] * (WIDTH - width),
    height,
    width,
  )
  found = photographs.random_resized_crop(
    jnp.asarray(IMAGE), jnp.asarray(draws, jnp.float32), smallest
  )
  # At its border it reads what lies beyond its part, within the image.
  inner = np.s_[1:-1, 1:-1]
  np.testing.assert_allclose(found[inner], expected[inner], atol=2e-5)
  assert found.min() >= 0 and found.max() <= 1


def test_the_whole_area_is_the_image():
  found = photographs.random_resized_crop(
    jnp.asarray(IMAGE), jnp.asarray([0.0, 0.5, 0.3, 0.7]), 1.0
  )
  np.testing.assert_allclose(found, IMAGE, atol=1e-6)


@pytest.mark.parametrize('column', range(4))
@pytest.mark.parametrize('draw', [0.0, 0.25, 1.0])
def test_each_jitter_alone(column, draw):
  """The others are at their middles, where they change nothing."""
  draws = np.full(4, 0.5, np.float32)
  draws[column] = draw
  found = np.asarray(
    photographs.colour_jitter(jnp.asarray(IMAGE), jnp.asarray(draws), 0.4)
  )
  signed = 0.4 * (2 * draw - 1)
  if column == 0:
    expected = np.clip(IMAGE * (1 + signed), 0, 1)
  elif column == 1:
    mean = IMAGE.mean(axis=(0, 1))
    expected = np.clip(mean + (1 + signed) * (IMAGE - mean), 0, 1)
  else:
    expected = np.empty_like(IMAGE)
    for row, of_row in enumerate(IMAGE):
      for place, pixel in enumerate(of_row):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        if column == 2:
          saturation = min(saturation * (1 + signed), 1)
        else:
          hue = (hue + signed / 2) % 1
        expected[row, place] = colorsys.hsv_to_rgb(hue, saturation, value)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_grey_images_have_no_hue():
  grey = jnp.asarray(IMAGE[..., :1])
  draws = jnp.asarray([0.5, 0.5, 1.0, 1.0])
  np.testing.assert_allclose(
    photographs.colour_jitter(grey, draws, 1.0), grey, atol=1e-6
  )


def _done(name, signed, image=IMAGE):
  found = photographs.OPERATIONS[name](jnp.asarray(image), jnp.float32(signed))
  return np.clip(np.asarray(found), 0, 1)


_MATRICES = {
  'rotate': lambda s: [
    [math.cos(s * math.pi / 6), -math.sin(s * math.pi / 6)],
    [math.sin(s * math.pi / 6), math.cos(s * math.pi / 6)],
  ],
  'shear_y': lambda s: [[1, 0.3 * s], [0, 1]],
  'shear_x': lambda s: [[1, 0], [0.3 * s, 1]],
}


@pytest.mark.parametrize('name', _MATRICES)
@pytest.mark.parametrize('signed', [-0.97, -0.31, 0.29, 0.95])
def test_what_turns_and_shears_against_scipy(name, signed):
  matrix = np.array(_MATRICES[name](signed))
  centre = (np.array(IMAGE.shape[:2]) - 1) / 2
  expected = np.stack(
    [
      ndimage.affine_transform(
        IMAGE[..., channel],
        matrix,
        centre - matrix @ centre,
        order=1,
        mode='constant',
        cval=0.5,
      )
      for channel in range(3)
    ],
    axis=-1,
  )
  np.testing.assert_allclose(_done(name, signed), expected, atol=2e-5)


@pytest.mark.parametrize(
  ('name', 'axis'), [('translate_y', 0), ('translate_x', 1)]
)
def test_what_shifts(name, axis):
  side = IMAGE.shape[axis]
  shift = 3 / (0.45 * side)  # three whole pixels
  image = np.moveaxis(IMAGE, axis, 0)
  for sign in 1, -1:
    found = np.moveaxis(_done(name, sign * shift), axis, 0)[::sign]
    expected = image[::sign]
    # A pixel at the very border may lie a rounding beyond it.
    np.testing.assert_allclose(found[:-4], expected[3:-1], atol=1e-5)
    np.testing.assert_allclose(found[-3:], 0.5, atol=1e-5)


@pytest.mark.parametrize('signed', [-1.0, 0.4, 1.0])
def test_sharpness_against_pillow(signed):
  picture = Image.fromarray(PIXELS)
  expected = ImageEnhance.Sharpness(picture).enhance(1 + 0.9 * signed)
  # Pillow rounds the smoothed image to whole levels.
  np.testing.assert_allclose(
    _done('sharpness', signed), np.asarray(expected) / 255, atol=2.1 / 255
  )


@pytest.mark.parametrize(('signed', 'bits'), [(0.0, 8), (-0.5, 6), (1.0, 4)])
def test_fewer_levels_against_pillow(signed, bits):
  expected = ImageOps.posterize(Image.fromarray(PIXELS), bits)
  np.testing.assert_allclose(
    _done('posterize', signed), np.asarray(expected) / 255, atol=1e-6
  )


@pytest.mark.parametrize('signed', [0.3, -0.7])
def test_solarize_against_pillow(signed):
  level = math.ceil((1 - abs(signed)) * 256)
  expected = ImageOps.solarize(Image.fromarray(PIXELS), level)
  np.testing.assert_allclose(
    _done('solarize', signed), np.asarray(expected) / 255, atol=1e-6
  )


def test_the_full_range():
  dull = (0.2 + 0.3 * IMAGE).astype(np.float32)
  dull[..., 1] = 0.4
  found = _done('autocontrast', 1.0, dull)
  low, high = IMAGE.min(axis=(0, 1)), IMAGE.max(axis=(0, 1))
  expected = (IMAGE - low) / (high - low)
  np.testing.assert_allclose(found[..., 0], expected[..., 0], atol=1e-5)
  np.testing.assert_allclose(found[..., 1], 0.4, atol=1e-6)


@pytest.mark.parametrize('name', photographs.OPERATIONS)
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_no_magnitude_changes_nothing(name, channels):
  image = np.concatenate([IMAGE, IMAGE], axis=-1)[..., :channels]
  found = _done(name, 0.0, image)
  assert found.shape == image.shape
  if name != 'autocontrast':
    np.testing.assert_allclose(found, image, atol=1e-6)


def test_operations_are_drawn_evenly_and_one_after_the_other():
  draws = jax.random.uniform(jax.random.key(0), (400, 4))
  images = jnp.broadcast_to(jnp.asarray(IMAGE), (400, *IMAGE.shape))
  found = jax.jit(
    jax.vmap(lambda image, own: photographs.random_operations(image, own, 30.0))
  )(images, draws)
  assert found.min() >= 0 and found.max() <= 1
  names = list(photographs.OPERATIONS)
  seen = {name: 0 for name in names}
  for number in range(60):
    expected = IMAGE
    for which, sign in draws[number].reshape(2, 2):
      name = names[int(which * len(names))]
      seen[name] += 1
      expected = _done(name, 1.0 if sign >= 0.5 else -1.0, expected)
    np.testing.assert_allclose(found[number], expected, atol=2e-5)
  assert min(seen.values()) > 0
