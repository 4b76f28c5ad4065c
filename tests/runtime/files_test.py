"""Tests of atomic files."""

import json
import os
import shutil
import stat

import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import files


def test_writes_into_a_new_folder_and_replaces(tmp_path):
  path = tmp_path / 'a' / 'b.txt'
  files.write_text(path, 'first\n')
  files.write_text(str(path), 'zweite Zeile: ä\r\n')
  assert path.read_bytes() == 'zweite Zeile: ä\r\n'.encode()
  files.write_bytes(path, b'\x00\xff')
  assert path.read_bytes() == b'\x00\xff'
  assert os.listdir(path.parent) == ['b.txt']


@pytest.mark.parametrize('failing', ['fsync', 'replace'])
def test_a_failed_write_leaves_the_old_file_alone(
  tmp_path, monkeypatch, failing
):
  path = tmp_path / 'a.txt'
  files.write_text(path, 'old')

  def fail(*_):
    raise OSError('disk full')

  monkeypatch.setattr(os, failing, fail)
  with pytest.raises(OSError, match='disk full'):
    files.write_text(path, 'new')
  assert path.read_text() == 'old'
  assert os.listdir(tmp_path) == ['a.txt']


@pytest.mark.skipif(os.name != 'posix', reason='permissions are POSIX')
def test_files_get_the_permissions_of_any_other_file(tmp_path):
  files.write_text(tmp_path / 'ours', '')
  (tmp_path / 'other').write_text('')
  modes = [
    stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ('ours', 'other')
  ]
  assert modes[0] == modes[1]


def test_json_round_trip_with_arrays(tmp_path):
  path = tmp_path / 'a.json'
  value = {'ü': [1, 2.5, None, True], 'step': np.int64(3), 'x': jnp.ones(2)}
  files.write_json(path, value)
  assert files.read_json(path) == {
    'ü': [1, 2.5, None, True],
    'step': 3,
    'x': [1.0, 1.0],
  }
  assert path.read_text(encoding='utf-8').startswith('{\n  "ü": [')
  assert path.read_text(encoding='utf-8').endswith('}\n')


@pytest.mark.parametrize('bad', [float('nan'), np.float32('inf'), {1, 2}])
def test_json_refuses_what_it_cannot_hold(tmp_path, bad):
  path = tmp_path / 'a.json'
  with pytest.raises((ValueError, TypeError), match=r'a\.json was not written'):
    files.write_json(path, {'loss': bad})
  assert not path.exists()


def test_npz_round_trip(tmp_path):
  path = tmp_path / 'alphas.npz'
  normal = np.random.default_rng(0).normal(size=(3, 14, 8)).astype(np.float32)
  files.write_npz(path, normal=jnp.asarray(normal), steps=[1, 2])
  with np.load(path, allow_pickle=False) as arrays:
    assert sorted(arrays.files) == ['normal', 'steps']
    np.testing.assert_array_equal(arrays['normal'], normal)
    assert arrays['normal'].dtype == np.float32


@pytest.mark.parametrize(
  'array', [jnp.ones(2, jnp.bfloat16), np.array([None])], ids=['bf16', 'object']
)
def test_npz_refuses_dtypes_that_it_would_change(tmp_path, array):
  with pytest.raises(ValueError, match="'normal'"):
    files.write_npz(tmp_path / 'a.npz', normal=array)
  assert not os.listdir(tmp_path)


def test_read_json_names_a_missing_file(tmp_path):
  with pytest.raises(UsageError, match=r'no\.json does not exist'):
    files.read_json(tmp_path / 'no.json')


def test_read_json_names_what_it_cannot_read(tmp_path):
  with pytest.raises(UsageError, match='cannot be read'):
    files.read_json(tmp_path)


@pytest.mark.parametrize(
  'content', [b'', b'{"a": 1', b'{"a": NaN}', b'\xff\xfe', b'[1,]']
)
def test_read_json_names_a_broken_file(tmp_path, content):
  path = tmp_path / 'bad.json'
  path.write_bytes(content)
  with pytest.raises(UsageError, match=r'bad\.json is not valid JSON'):
    files.read_json(path)


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-16-be'])
def test_read_json_takes_a_byte_order_mark(tmp_path, encoding):
  path = tmp_path / 'a.json'
  path.write_bytes(json.dumps([1]).encode(encoding))
  assert files.read_json(path) == [1]


def test_an_archive_is_told_from_other_files(tmp_path):
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'a.txt').write_text('text')
  (tmp_path / 'empty').touch()
  for kind in 'tar', 'gztar', 'bztar', 'zip':
    path = shutil.make_archive(
      str(tmp_path / kind), kind, tmp_path, base_dir='a.txt'
    )
    assert files.is_archive(path), kind
  for name in 'folder', 'a.txt', 'empty', 'absent':
    assert not files.is_archive(tmp_path / name)


def test_read_npz_gives_back_what_was_written(tmp_path):
  path = tmp_path / 'a.npz'
  files.write_npz(path, x=np.arange(3), y=np.ones((2, 2), np.float32))
  arrays = files.read_npz(path)
  assert set(arrays) == {'x', 'y'}
  np.testing.assert_array_equal(arrays['x'], np.arange(3))
  assert arrays['y'].dtype == np.float32


@pytest.mark.parametrize(
  'damage', ['missing', 'empty', 'half', 'text', 'array']
)
def test_read_npz_refuses_a_damaged_file_and_names_it(tmp_path, damage):
  path = tmp_path / 'a.npz'
  files.write_npz(path, x=np.arange(1000))
  whole = path.read_bytes()
  if damage == 'missing':
    path.unlink()
  elif damage == 'array':  # A .npy file: one array, no archive.
    with open(path, 'wb') as file:
      np.save(file, np.arange(3))
  else:
    cut = {'empty': b'', 'half': whole[: len(whole) // 2], 'text': b'nonsense'}
    path.write_bytes(cut[damage])
  with pytest.raises(UsageError, match='a.npz cannot be read'):
    files.read_npz(path)
