"""Augmentation against the same done image by image in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import parallel
from ms_ranas_jax.sections import DatasetConfig
from ms_ranas_jax.training import augmentation
from ms_ranas_jax.training import photographs

HEIGHT, WIDTH = 6, 5
MEAN, STD = (0.5, 0.25, 0.125), (0.25, 0.5, 1.0)
IMAGES = np.random.default_rng(0).integers(
  1, 256, (64, HEIGHT, WIDTH, 3), dtype=np.uint8
)
KEY = jax.random.key(11)


def _settings(**fields):
  return augmentation.Augmentation(MEAN, STD, **fields)


ALL = _settings(crop_padding=2, flip=True, cutout=3)


@functools.partial(jax.jit, static_argnames=('settings',))
def _jitted(images, key, positions, settings):
  return augmentation.augment(images, key, positions, settings)


def _augment(settings, images=IMAGES, key=KEY, positions=None):
  if positions is None:
    positions = np.arange(len(images), dtype=np.int32)
  return np.asarray(_jitted(images, key, positions, settings))


def _decisions(position, key=KEY):
  """Five random numbers for an example: all that chance has to say."""
  bits = jax.random.bits(jax.random.fold_in(key, position), (5,))
  return [int(b) for b in bits]


def _normalized(image):
  return (image.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / (
    np.array(STD, np.float32)
  )


def _reference(image, position, settings):
  down, right, mirror, row, column = _decisions(position)
  pad = settings.crop_padding
  if pad:
    padded = np.zeros((HEIGHT + 2 * pad, WIDTH + 2 * pad, 3), np.uint8)
    padded[pad : pad + HEIGHT, pad : pad + WIDTH] = image
    down, right = down % (2 * pad + 1), right % (2 * pad + 1)
    image = padded[down : down + HEIGHT, right : right + WIDTH]
  if settings.flip and mirror % 2:
    image = image[:, ::-1]
  x = _normalized(image)
  if settings.cutout:
    top = row % HEIGHT - settings.cutout // 2
    left = column % WIDTH - settings.cutout // 2
    for i in range(top, top + settings.cutout):
      for j in range(left, left + settings.cutout):
        if 0 <= i < HEIGHT and 0 <= j < WIDTH:
          x[i, j] = 0
  return x


@pytest.mark.parametrize(
  'settings',
  [
    _settings(),
    _settings(crop_padding=1),
    _settings(crop_padding=2),
    _settings(flip=True),
    _settings(cutout=3),
    _settings(cutout=4),
    ALL,
  ],
)
def test_equals_the_reference(settings):
  images = IMAGES[:16]
  expected = [_reference(x, p, settings) for p, x in enumerate(images)]
  actual = _augment(settings, images)
  assert actual.dtype == np.float32
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_normalisation():
  x = augmentation.normalize(jnp.asarray(IMAGES), MEAN, STD)
  assert x.dtype == jnp.float32
  np.testing.assert_allclose(x, _normalized(IMAGES), rtol=1e-5, atol=1e-6)
  # Nothing random is asked for: it is the normalisation alone.
  np.testing.assert_allclose(_augment(_settings()), x, rtol=1e-6, atol=1e-6)
  black = np.zeros((1, 2, 2, 3), np.uint8)
  x = np.asarray(augmentation.normalize(black, MEAN, STD))
  np.testing.assert_allclose(x[0, 0, 0], -np.array(MEAN) / STD)


def test_another_key_or_position_is_another_draw():
  images = np.repeat(IMAGES[:1], 64, axis=0)
  first = _augment(ALL, images)
  # Of 25 crops, 2 mirrors and 30 cutouts, 64 draws are hardly ever the same.
  assert len({x.tobytes() for x in first}) > 48
  other = _augment(ALL, images, key=jax.random.key(12))
  assert sum((a != b).any() for a, b in zip(first, other)) > 48
  np.testing.assert_array_equal(first, _augment(ALL, images))


def test_every_crop_mirror_and_centre_is_drawn():
  count = 400
  image = np.arange(1, HEIGHT * WIDTH * 3 + 1, dtype=np.uint8)
  images = np.repeat(image.reshape(1, HEIGHT, WIDTH, 3), count, axis=0)

  def share_of_commonest(settings, kinds):
    outputs = [x.tobytes() for x in _augment(settings, images)]
    found = {x: outputs.count(x) for x in set(outputs)}
    assert len(found) == kinds
    return max(found.values()) / count

  assert share_of_commonest(_settings(flip=True), 2) < 0.6
  assert share_of_commonest(_settings(crop_padding=1), 9) < 0.2
  # Squares around all pixels; those of side 1 all differ.
  assert share_of_commonest(_settings(cutout=1), HEIGHT * WIDTH) < 0.1


def test_an_example_depends_on_its_position_alone():
  whole = _augment(ALL)
  # The same examples in a batch of other examples, in another order.
  positions = np.array([40, 3, 17], np.int32)
  np.testing.assert_array_equal(
    _augment(ALL, IMAGES[positions], positions=positions), whole[positions]
  )


def test_two_devices_augment_as_one_does():
  def on_device(images):
    positions = parallel.global_positions(len(images), 'devices')
    return augmentation.augment(images, KEY, positions, ALL)

  parts = jax.pmap(
    on_device, axis_name='devices', devices=jax.local_devices()[:2]
  )(IMAGES.reshape(2, 32, HEIGHT, WIDTH, 3))
  np.testing.assert_allclose(
    parts.reshape(IMAGES.shape), _augment(ALL), rtol=1e-6, atol=1e-6
  )


@pytest.mark.parametrize(
  ('row', 'column', 'length', 'rows', 'columns'),
  [
    (3, 2, 3, (2, 5), (1, 4)),
    (3, 2, 2, (2, 4), (1, 3)),  # even: one more before the centre
    (0, 0, 3, (0, 2), (0, 2)),  # cut off at the border
    (5, 4, 4, (3, 6), (2, 5)),
    (2, 2, 20, (0, 6), (0, 5)),
    (2, 3, 1, (2, 3), (3, 4)),
  ],
)
def test_cutout_mask(row, column, length, rows, columns):
  expected = np.ones((HEIGHT, WIDTH, 1), np.float32)
  expected[slice(*rows), slice(*columns)] = 0
  mask = augmentation.cutout_mask(
    jnp.array([row]), jnp.array([column]), (HEIGHT, WIDTH), length
  )
  assert mask.dtype == jnp.float32
  np.testing.assert_array_equal(mask, expected[None])


def test_a_crop_shows_black_beyond_the_border():
  # The padding is zero before the normalisation, as in the reference code, and
  # what is cut out is zero after it.
  images = np.full((64, HEIGHT, WIDTH, 3), 255, np.uint8)
  cropped = _augment(_settings(crop_padding=2), images)
  values = {tuple(p) for p in cropped.reshape(-1, 3).round(4).tolist()}
  black, white = (
    tuple(((level - np.array(MEAN)) / STD).round(4).tolist())
    for level in (0, 1)
  )
  assert values == {black, white}
  cut = _augment(_settings(cutout=3), images)
  values = {tuple(p) for p in cut.reshape(-1, 3).round(4).tolist()}
  assert values == {(0.0, 0.0, 0.0), white}


@pytest.mark.parametrize(
  ('size', 'padding', 'cutout', 'words'),
  [
    ((8, 8), 0, 16, 'config.train.cutout = 16, but the images are 8x8'),
    ((8, 8), 0, 8, 'config.train.cutout = 8'),
    ((32, 4), 0, 4, 'give at most 3'),
    ((8, 8), 8, 0, 'config.dataset.crop_padding = 8'),
    ((4, 32), 5, 2, 'config.dataset.crop_padding = 5'),
  ],
)
def test_what_would_leave_nothing_is_refused(size, padding, cutout, words):
  config = DatasetConfig(crop_padding=padding)
  with pytest.raises(UsageError, match=words):
    augmentation.check(size, config, cutout, 'train')


def test_two_kinds_of_crops_are_refused():
  config = DatasetConfig(crop_padding=1, crop_scale=0.5)
  with pytest.raises(UsageError, match='two kinds of crops'):
    augmentation.check((8, 8), config, 0, 'train')


def test_what_leaves_something_of_every_image_is_done():
  augmentation.check((32, 32), DatasetConfig(crop_padding=4), 16, 'train')
  augmentation.check((6, 5), DatasetConfig(crop_padding=4), 4, 'train')
  # At the most that is allowed, every image still shows something.
  images = _augment(_settings(crop_padding=4))
  dark = (0 - np.array(MEAN)) / np.array(STD)
  assert (np.abs(images - dark) > 1e-6).any(axis=(1, 2, 3)).all()
  images = _augment(_settings(cutout=4))
  assert images.any(axis=(1, 2, 3)).all()


_PHOTOGRAPHS = _settings(
  flip=True,
  cutout=2,
  crop_scale=0.3,
  colour_jitter=0.4,
  random_operations=2,
  random_magnitude=12.0,
)


@pytest.mark.parametrize(
  'fields',
  [
    {'crop_scale': 0.3},
    {'colour_jitter': 0.4},
    {'random_operations': 2, 'random_magnitude': 12.0},
  ],
)
def test_each_option_for_photographs_alone(fields):
  """With the draws of its own, and those of the flip as ever."""
  settings = _settings(flip=True, **fields)
  found = _augment(settings)
  doing = {
    'crop_scale': photographs.random_resized_crop,
    'colour_jitter': photographs.colour_jitter,
    'random_operations': photographs.random_operations,
  }[next(iter(fields))]
  for position in range(8):
    image = IMAGES[position] / np.float32(255)
    if _decisions(position)[2] % 2:
      image = image[:, ::-1]
    own = jax.random.fold_in(jax.random.fold_in(KEY, position), 1)
    draws = jax.random.uniform(own, (settings.draws,))
    done = doing(jnp.asarray(image), draws, list(fields.values())[-1])
    expected = np.asarray(done)
    np.testing.assert_allclose(
      found[position], (expected - np.array(MEAN)) / np.array(STD), atol=1e-4
    )


def test_photographs_stay_within_their_range():
  found = _augment(_PHOTOGRAPHS)
  low = (0 - np.array(MEAN)) / np.array(STD)
  high = (1 - np.array(MEAN)) / np.array(STD)
  assert (found >= low - 1e-5).all() and (found <= high + 1e-5).all()
  assert np.isfinite(found).all()
  # By the example's place in the whole batch, whichever device has it.
  half = _augment(
    _PHOTOGRAPHS, IMAGES[32:], positions=np.arange(32, 64, dtype=np.int32)
  )
  np.testing.assert_allclose(half, found[32:], atol=1e-5)
