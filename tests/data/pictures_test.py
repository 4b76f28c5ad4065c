"""Picture files: found, read, and brought to what a network takes."""

import shutil

import numpy as np
from PIL import Image
import pytest

from ms_ranas_jax.data import pictures
from ms_ranas_jax.errors import UsageError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (8, 8, 3), np.uint8)
GREY = RNG.integers(0, 256, (8, 8), np.uint8)


def _save(path, pixels, **fields):
  Image.fromarray(pixels).save(path, **fields)
  return path


def test_a_picture_that_fits_is_taken_as_it_is(tmp_path):
  for name, pixels, shape in (
    ('a.png', RGB, RGB.shape),
    (
      'b.png',
      GREY,
      (8, 8, 1),
    ),
  ):
    found = pictures.read(_save(tmp_path / name, pixels), shape)
    np.testing.assert_array_equal(found.pixels, pixels.reshape(shape))
    assert found.changes == ''


def test_colours_are_brought_to_the_network_s(tmp_path):
  to_grey = pictures.read(_save(tmp_path / 'a.png', RGB), (8, 8, 1))
  luma = RGB @ np.array([0.299, 0.587, 0.114])
  np.testing.assert_allclose(to_grey.pixels[..., 0], luma, atol=1)
  assert to_grey.changes == 'RGB to grey'
  to_rgb = pictures.read(_save(tmp_path / 'b.png', GREY), (8, 8, 3))
  np.testing.assert_array_equal(to_rgb.pixels, np.stack([GREY] * 3, -1))
  assert to_rgb.changes == 'grey to RGB'


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path):
  deep = GREY.astype(np.uint16) * 257
  found = pictures.read(_save(tmp_path / 'a.png', deep), (8, 8, 1))
  np.testing.assert_array_equal(found.pixels[..., 0], GREY)
  assert found.changes == '16 to 8 bits'


def test_numbers_that_are_not_of_sixteen_bits_are_refused(tmp_path):
  """Scaled as if they were, they would be black."""
  for dtype in np.uint16, np.int32:
    path = _save(tmp_path / 'a.tif', GREY.astype(dtype))
    with pytest.raises(UsageError, match='not the range of 16 bits'):
      pictures.read(path, (8, 8, 1))


def test_what_is_transparent_is_laid_on_white(tmp_path):
  pixels = np.concatenate([RGB, np.zeros((8, 8, 1), np.uint8)], axis=-1)
  pixels[:4, ..., 3] = 255
  found = pictures.read(_save(tmp_path / 'a.png', pixels), (8, 8, 3))
  np.testing.assert_array_equal(found.pixels[:4], RGB[:4])
  assert (found.pixels[4:] == 255).all()
  assert 'laid on white' in found.changes


def test_the_middle_is_scaled(tmp_path):
  wide = np.zeros((20, 60, 3), np.uint8)
  wide[:, 20:40] = 200  # the middle alone is bright
  found = pictures.read(_save(tmp_path / 'a.png', wide), (10, 10, 3))
  assert found.pixels.shape == (10, 10, 3)
  assert (found.pixels[:, 1:-1] > 190).all()
  assert found.changes == ('cut to the middle, 60x20 scaled to 10x10 (bicubic)')
  large = np.repeat(np.repeat(GREY, 5, axis=0), 5, axis=1)
  found = pictures.read(_save(tmp_path / 'b.png', large), (8, 8, 1))
  assert found.changes == '40x40 scaled to 8x8 (bicubic)'
  assert np.abs(found.pixels[..., 0] - GREY.astype(int)).mean() < 25


def test_a_photograph_is_turned_upright(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 3  # upside down
  path = _save(tmp_path / 'a.png', RGB, exif=exif)
  found = pictures.read(path, (8, 8, 3))
  np.testing.assert_array_equal(found.pixels, RGB[::-1, ::-1])
  assert found.changes == 'turned upright'


def test_folders_are_searched_in_order(tmp_path):
  (tmp_path / 'in/deep').mkdir(parents=True)
  (tmp_path / 'in/folder.png').mkdir()
  for name in ('in/b.JPG', 'in/a.png', 'in/deep/c.bmp'):
    _save(tmp_path / name, RGB)
  (tmp_path / 'in/notes.txt').write_text('no picture')
  odd = tmp_path / 'named'
  odd.write_bytes((tmp_path / 'in/a.png').read_bytes())
  found = pictures.find_files([str(odd), str(tmp_path / 'in')])
  assert [p.name for p in found] == ['named', 'a.png', 'b.JPG', 'c.bmp']


@pytest.mark.parametrize(
  ('name', 'words'), [('no', 'is not there'), ('empty', 'holds no picture')]
)
def test_what_is_not_there_is_refused(tmp_path, name, words):
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UsageError, match=words):
    pictures.find_files([str(tmp_path / name)])


def test_an_archive_is_to_be_unpacked(tmp_path):
  (tmp_path / 'a.png').touch()
  path = shutil.make_archive(str(tmp_path / 'all'), 'zip', tmp_path, 'a.png')
  with pytest.raises(UsageError, match='is an archive; unpack it'):
    pictures.find_files([path])


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'in').mkdir()
  _save(tmp_path / 'in/a.png', RGB)
  for name in '~/in', '~/in/a.png', '~':
    assert pictures.find_files([name]) == [tmp_path / 'in/a.png']


def test_what_is_no_picture_is_refused(tmp_path):
  path = tmp_path / 'a.png'
  path.write_text('no picture')
  with pytest.raises(UsageError, match='a.png is no picture'):
    pictures.read(path, (8, 8, 3))
  _save(path, np.zeros((200, 200, 3), np.uint8) + RNG.integers(0, 9, 3, 'u1'))
  path.write_bytes(path.read_bytes()[:120])
  with pytest.raises(UsageError, match='a.png is no picture'):
    pictures.read(path, (8, 8, 3))
  Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / 'a.tif')
  with pytest.raises(UsageError, match='no known range'):
    pictures.read(tmp_path / 'a.tif', (8, 8, 1))
  with pytest.raises(UsageError, match='2 channels'):
    pictures.read(path, (8, 8, 2))


def test_a_picture_that_may_be_a_bomb_is_refused(tmp_path, monkeypatch):
  path = _save(tmp_path / 'a.png', RGB)
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 40)
  with pytest.raises(UsageError, match='no picture that can be read'):
    pictures.read(path, (8, 8, 3))
