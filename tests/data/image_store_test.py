"""Images in memory and in files: the same, read once, and never half."""

import dataclasses
import json
import threading
import time

import numpy as np
import pytest

from ms_ranas_jax.data import image_store
from ms_ranas_jax.data.image_store import Storage
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import lock

SHAPE = (10, 2, 3, 1)
PIXELS = np.arange(60, dtype=np.uint8).reshape(SHAPE)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setattr(image_store, '_BLOCK_BYTES', 4 * 6)


class _Source:
  """Counts what is read of it; may fail."""

  def __init__(self, unreadable=(), fails_at=None, facts='a'):
    self.read = []
    self._unreadable, self._fails_at = unreadable, fails_at
    self.source = image_store.Source(SHAPE, self._fill, lambda: facts)

  def _fill(self, first, images):
    if first == self._fails_at:
      raise KeyboardInterrupt
    numbers = range(first, first + len(images))
    self.read += numbers
    images[:] = PIXELS[first : first + len(images)]
    return {n: f'{n} is broken' for n in numbers if n in self._unreadable}


def _storage(tmp_path, resident_bytes=0):
  return Storage(resident_bytes, str(tmp_path / 'cache'))


def test_what_fits_lies_in_memory(tmp_path):
  source = _Source(unreadable=[5])
  images, unreadable = image_store.read(
    source.source, _storage(tmp_path, PIXELS.nbytes)
  )
  np.testing.assert_array_equal(images, PIXELS)
  assert not isinstance(images, np.memmap)
  assert unreadable == {5: '5 is broken'}
  assert not (tmp_path / 'cache').exists()


def test_what_does_not_fit_is_read_once_into_a_file(tmp_path):
  storage = _storage(tmp_path, PIXELS.nbytes - 1)
  first, second = (_Source(unreadable=[2, 9]) for _ in range(2))
  for source in first, second:
    images, unreadable = image_store.read(source.source, storage)
    assert isinstance(images, np.memmap)
    np.testing.assert_array_equal(images, PIXELS)
    assert unreadable == {2: '2 is broken', 9: '9 is broken'}
    with pytest.raises(ValueError, match='read-only'):
      images[0] = 0
  # What could not be read is tried again, and nothing else.
  assert first.read == list(range(10)) and second.read == [2, 9]


def test_other_facts_are_other_images(tmp_path):
  for facts in 'a', 'b':
    source = _Source(facts=facts)
    image_store.read(source.source, _storage(tmp_path))
    assert source.read
  assert len(list((tmp_path / 'cache').iterdir())) == 2


def test_a_killed_process_loses_a_block(tmp_path):
  killed, after = _Source(unreadable=[1], fails_at=8), _Source()
  with pytest.raises(KeyboardInterrupt):
    image_store.read(killed.source, _storage(tmp_path))
  images, unreadable = image_store.read(after.source, _storage(tmp_path))
  np.testing.assert_array_equal(images, PIXELS)
  assert unreadable == {1: '1 is broken'}
  assert after.read == [8, 9]


@pytest.mark.parametrize('damage', ['about', 'array', 'short', 'other'])
def test_a_damaged_cache_is_filled_anew(tmp_path, damage):
  """In a file of its own: others may read the one that was there."""
  before, _ = image_store.read(_Source().source, _storage(tmp_path))
  (folder,) = (tmp_path / 'cache').iterdir()
  array = folder / 'images.npy'
  if damage == 'about':
    (folder / 'images.json').write_text('{')
  elif damage == 'array':
    array.unlink()
  else:
    content = array.read_bytes()
    array.unlink()
    if damage == 'short':
      array.write_bytes(content[:9])
    else:
      np.save(array, PIXELS[:3])
  source = _Source()
  images, _ = image_store.read(source.source, _storage(tmp_path))
  np.testing.assert_array_equal(images, PIXELS)
  assert source.read == list(range(10))
  np.testing.assert_array_equal(before, PIXELS)
  assert {p.name for p in folder.iterdir()} == {
    '.lock',
    'images.json',
    'images.npy',
  }


def test_what_can_be_read_later_is(tmp_path):
  """A failure may have been that of a disk, or of an older library."""
  storage = _storage(tmp_path)
  image_store.read(_Source(unreadable=[2, 9]).source, storage)
  still = _Source(unreadable=[2, 9])
  assert set(image_store.read(still.source, storage)[1]) == {2, 9}
  assert still.read == [2, 9]
  mended = _Source(unreadable=[9])
  assert set(image_store.read(mended.source, storage)[1]) == {9}
  assert mended.read[-10:] == list(range(10))


def test_the_second_process_waits_for_the_first(tmp_path, monkeypatch):
  monkeypatch.setattr(image_store, '_WAIT_SECONDS', 0.01)
  image_store.read(_Source().source, _storage(tmp_path))
  (folder,) = (tmp_path / 'cache').iterdir()
  found = []
  with lock.hold(str(folder)):
    # What is whole is read without a lock.
    images, _ = image_store.read(_Source().source, _storage(tmp_path))
    np.testing.assert_array_equal(images, PIXELS)
    (folder / 'images.json').unlink()
    thread = threading.Thread(
      target=lambda: found.append(
        image_store.read(_Source().source, _storage(tmp_path))
      )
    )
    thread.start()
    time.sleep(0.1)
    assert not found
  thread.join()
  np.testing.assert_array_equal(found[0][0], PIXELS)


def test_a_source_that_cannot_be_read_is_no_matter_of_room(tmp_path):
  def fails(first, images):
    raise OSError(5, 'Input/output error')

  source = dataclasses.replace(_Source().source, fill=fails)
  with pytest.raises(OSError, match='Input/output error'):
    image_store.read(source, _storage(tmp_path))


def test_a_folder_without_room_is_refused(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(image_store.os, 'posix_fallocate', full)
  with pytest.raises(UsageError, match=r'No space left.*dataset.cache_dir'):
    image_store.read(_Source().source, _storage(tmp_path))
  (tmp_path / 'file').write_text('')
  storage = Storage(0, str(tmp_path / 'file'))
  with pytest.raises(UsageError, match=r'dataset.cache_dir to another folder'):
    image_store.read(_Source().source, storage)


def test_the_default_is_the_folder_of_the_user(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  image_store.read(_Source().source, Storage(0))
  (about,) = tmp_path.glob('ms_ranas_jax/images-*/images.json')
  assert json.loads(about.read_text()) == {'done': 10, 'unreadable': {}}
  source = dataclasses.replace(_Source().source, shape=(1, 2, 3, 1))
  image_store.read(source, image_store.DEFAULT)  # which fits in memory
  assert len(list(tmp_path.glob('ms_ranas_jax/*'))) == 1
