import pathlib
import zipfile

import numpy as np
import pytest

from ms_ranas_jax.data import image_store
from ms_ranas_jax.data import npz_file
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import files


def _arrays(**changes):
  rng = np.random.default_rng(0)
  return {
    'x_train': rng.integers(0, 256, (5, 4, 6, 3), dtype=np.uint8),
    'y_train': np.array([0, 1, 2, 0, 1]),
    'x_test': rng.integers(0, 256, (2, 4, 6, 3), dtype=np.uint8),
    'y_test': np.array([2, 0]),
    **changes,
  }


def _save(tmp_path, **changes):
  path = tmp_path / 'mine.npz'
  np.savez(path, **_arrays(**changes))
  return str(path)


def test_reads_images_as_they_are(tmp_path):
  arrays, names = npz_file.read(_save(tmp_path))
  assert names == ('0', '1', '2')
  for name, expected in _arrays().items():
    np.testing.assert_array_equal(getattr(arrays, name), expected)
  assert arrays.y_train.dtype == arrays.y_test.dtype == np.int32


def test_adds_a_channel_and_drops_the_axis_of_labels(tmp_path):
  path = _save(
    tmp_path,
    x_train=np.zeros((5, 4, 6), np.uint8),
    x_test=np.zeros((2, 4, 6), np.uint8),
    y_train=np.array([[0], [1], [2], [0], [1]], np.uint8),
  )
  arrays, _ = npz_file.read(path)
  assert arrays.x_train.shape == (5, 4, 6, 1)
  assert arrays.x_test.shape == (2, 4, 6, 1)
  assert arrays.y_train.tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize('write', [np.savez, np.savez_compressed])
@pytest.mark.parametrize('order', ['C', 'F'])
def test_large_images_are_read_from_a_file(tmp_path, write, order, monkeypatch):
  """Which is unpacked once, in blocks, and is read alone."""
  monkeypatch.setattr(image_store, '_BLOCK_BYTES', 2 * 4 * 6 * 3)
  monkeypatch.setattr(npz_file, '_BYTES_PER_READ', 50)
  path = tmp_path / 'mine.npz'
  grey = np.random.default_rng(1).integers(0, 256, (2, 4, 6), dtype=np.uint8)
  colours = np.asarray(_arrays()['x_train'], order=order)
  write(path, **_arrays(x_train=colours))
  storage = image_store.Storage(0, str(tmp_path / 'cache'))
  for _ in range(2):
    arrays, names = npz_file.read(str(path), storage)
    assert names == ('0', '1', '2')
    for name, expected in _arrays().items():
      np.testing.assert_array_equal(getattr(arrays, name), expected)
    assert not arrays.x_test.flags.writeable
    # Columns first, it would have to be turned around: that is in memory.
    assert arrays.x_train.flags.writeable == (order == 'F')
  write(path, **_arrays(x_test=grey, x_train=colours[..., 0]))
  arrays, _ = npz_file.read(str(path), storage)
  np.testing.assert_array_equal(arrays.x_test, grey[..., None])
  np.testing.assert_array_equal(arrays.x_train, colours[..., :1])


def test_a_damaged_file_is_refused_each_time(tmp_path, monkeypatch):
  """Also where a block before the damage is unpacked already."""
  monkeypatch.setattr(image_store, '_BLOCK_BYTES', 4 * 6 * 3)
  path = tmp_path / 'mine.npz'
  np.savez(path, **_arrays())
  content = bytearray(path.read_bytes())
  with zipfile.ZipFile(path) as archive:
    place = archive.getinfo('x_train.npy').header_offset
  content[place + 400] ^= 255
  path.write_bytes(content)
  storage = image_store.Storage(0, str(tmp_path / 'cache'))
  for _ in range(2):
    with pytest.raises(UsageError, match='cannot be read .*CRC'):
      npz_file.read(str(path), storage)


def test_members_of_other_names_are_found(tmp_path):
  path = tmp_path / 'mine.npz'
  with zipfile.ZipFile(path, 'w') as archive:
    for name, array in _arrays().items():
      with archive.open(name, 'w') as member:
        np.lib.format.write_array(member, array)
  arrays, _ = npz_file.read(str(path))
  np.testing.assert_array_equal(arrays.x_train, _arrays()['x_train'])


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'x_train': np.zeros((5, 4, 6, 3))}, 'x_train is float64'),
    ({'x_test': np.zeros((2, 4), np.uint8)}, r'x_test is uint8 \(2, 4\)'),
    ({'x_test': np.zeros((0, 4, 6, 3), np.uint8)}, r'x_test is uint8 \(0, '),
    ({'x_test': np.zeros((2, 0, 6), np.uint8)}, r'x_test is uint8 \(2, 0'),
    ({'y_train': np.int64(3)}, r'y_train is int64 \(\)'),
    ({'x_test': np.uint8(1)}, r'x_test is uint8 \(\)'),
    *(
      ({'x_train': np.zeros((5, *shape), np.uint8)}, rf'transpose\({order}\)')
      for shape, order in (
        ((3, 32, 32), '0, 2, 3, 1'),
        ((3, 20, 30), '0, 2, 3, 1'),
        ((1, 28, 28), '0, 2, 3, 1'),
        ((4, 20, 30), '0, 2, 3, 1'),
        ((20, 3, 30), '0, 1, 3, 2'),
      )
    ),
    (
      {'x_train': np.zeros((6, 4, 3, 5), np.uint8)},
      r'the images stood last; .* x_train.transpose\(3, 0, 1, 2\)',
    ),
    (
      {'x_test': np.zeros((6, 4, 2), np.uint8)},
      r'the images stood last; .* x_test.transpose\(2, 0, 1\)',
    ),
    ({'x_test': np.zeros((2, 4, 6, 1), np.uint8)}, r'x_test are \(4, 6, 1\)'),
    ({'y_train': np.arange(4)}, r'y_train is int64 \(4,\)'),
    ({'y_train': np.zeros(5)}, 'y_train is float64'),
    ({'y_train': np.array([-1, 0, 0, 0, 0])}, 'y_train has the label -1'),
    ({'y_test': np.array([0, 3])}, 'y_test has the labels 3, of which'),
    (
      {
        'y_train': np.array([2, 4, 2, 4, 8]),
        'y_test': np.array([3, 8]),
      },
      'y_test has the labels 3, of which y_train has no image',
    ),
    ({'y_test': np.array([{}, {}], object)}, 'cannot be read'),
  ],
)
def test_an_array_that_does_not_fit_is_named(tmp_path, changes, message):
  with pytest.raises(UsageError, match=f'mine.npz.*{message}'):
    npz_file.read(_save(tmp_path, **changes))


@pytest.mark.parametrize(
  ('labels', 'expected', 'names'),
  [
    # From 1, as MATLAB counts.
    ([1, 2, 3, 1, 2], [0, 1, 2, 0, 1], ('1', '2', '3')),
    # Numbers of something else.
    ([7, 999, 7, 30, 999], [0, 2, 0, 1, 2], ('7', '30', '999')),
    ([5, 2**31 - 1, 5, 5, 5], [0, 1, 0, 0, 0], ('5', '2147483647')),
    ([0, 2**40, 0, 0, 0], [0, 1, 0, 0, 0], ('0', str(2**40))),
  ],
)
def test_classes_are_the_labels_that_there_are(
  tmp_path, labels, expected, names
):
  path = _save(
    tmp_path, y_train=np.array(labels), y_test=np.array(labels[:2][::-1])
  )
  arrays, found = npz_file.read(path)
  assert found == names
  assert arrays.y_train.tolist() == expected
  assert arrays.y_test.tolist() == expected[:2][::-1]
  assert arrays.y_train.dtype == arrays.y_test.dtype == np.int32


def test_a_test_set_may_lack_a_class(tmp_path):
  path = _save(tmp_path, y_test=np.array([2, 2]))
  arrays, names = npz_file.read(path)
  assert arrays.y_test.tolist() == [2, 2] and len(names) == 3


def test_images_of_many_channels_are_read(tmp_path):
  path = _save(
    tmp_path,
    x_train=np.zeros((5, 8, 6, 13), np.uint8),
    x_test=np.zeros((2, 8, 6, 13), np.uint8),
  )
  arrays, _ = npz_file.read(path)
  assert arrays.x_train.shape == (5, 8, 6, 13)


def test_a_missing_array_is_named(tmp_path):
  arrays = _arrays()
  del arrays['y_test']
  np.savez(tmp_path / 'mine.npz', **arrays)
  with pytest.raises(UsageError, match=r"no array 'y_test' \(it has x_train, "):
    npz_file.read(str(tmp_path / 'mine.npz'))


def test_a_file_of_another_kind_is_refused(tmp_path):
  path = tmp_path / 'mine.npz'
  for content in (b'', b'text'):
    path.write_bytes(content)
    with pytest.raises(UsageError, match='not a whole .npz file'):
      npz_file.read(str(path))
  np.save(tmp_path / 'mine.npy', np.arange(3))
  with pytest.raises(UsageError, match='not a whole .npz file'):
    npz_file.read(str(tmp_path / 'mine.npy'))


def test_a_damaged_file_is_refused(tmp_path):
  path = tmp_path / 'mine.npz'
  np.savez_compressed(path, **_arrays())
  raw = bytearray(path.read_bytes())
  raw[200:260] = bytes(60)
  path.write_bytes(raw)
  with pytest.raises(UsageError, match='mine.npz cannot be read'):
    npz_file.read(str(path))
  path.write_bytes(raw[:-10])
  with pytest.raises(UsageError, match='not a whole .npz file'):
    npz_file.read(str(path))


@pytest.mark.parametrize('path', ['', '.', 'absent.npz'])
def test_a_missing_file_is_named(path):
  with pytest.raises(UsageError, match='dataset.dir is .*not a file'):
    npz_file.read(path)


@pytest.mark.parametrize('flag', [1, 1 << 5, 1 << 6])
@pytest.mark.parametrize('read', [npz_file.read, files.read_npz])
def test_a_file_that_claims_to_be_encrypted_is_refused(tmp_path, flag, read):
  path = tmp_path / 'mine.npz'
  path.write_bytes(pathlib.Path(_save(tmp_path)).read_bytes())
  data = bytearray(path.read_bytes())
  with zipfile.ZipFile(path) as archive:
    at = archive.start_dir + 8  # the flags of the first entry
  data[at] |= flag
  data[6] |= flag
  path.write_bytes(data)
  with pytest.raises(UsageError, match='mine.npz cannot be read'):
    read(str(path))
