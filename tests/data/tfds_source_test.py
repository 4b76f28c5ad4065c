import os
import subprocess
import sys

import numpy as np
import pytest

from ms_ranas_jax.data import datasets
from ms_ranas_jax.data import tfds_prepare
from ms_ranas_jax.data import tfds_source
from ms_ranas_jax.errors import UsageError

# Runs alone, to see which modules it brings in.
_PROGRAM = """
import sys
import numpy as np
from ms_ranas_jax.data import datasets

dataset = datasets.load_dataset('cifar10')
np.savez(
  sys.argv[1],
  train_images=dataset.train_images,
  train_labels=dataset.train_labels,
)
assert 'tensorflow_datasets' in sys.modules
assert 'tensorflow' not in sys.modules
"""


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory, cifar10_archive):
  """A data directory with a prepared CIFAR-10 in small."""
  path = tmp_path_factory.mktemp('tfds')
  tfds_prepare.prepare('cifar10', path, cifar10_archive)
  return path


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
  """A cache folder of the test's own."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


def _rows(images, labels):
  """Images with their labels, in an order that depends on nothing else."""
  return sorted(
    (image.tobytes(), int(label)) for image, label in zip(images, labels)
  )


def _expected(records, files):
  records = np.concatenate([records[file] for file in files])
  images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  return _rows(images, records[:, 0])


def test_a_prepared_dataset_is_read_without_tensorflow(
  tmp_path, repo_root, data_dir, cifar10_records
):
  output = tmp_path / 'read.npz'
  environment = {
    **os.environ,
    'TFDS_DATA_DIR': str(data_dir),
    'PYTHONPATH': str(repo_root),
  }
  subprocess.run(
    [sys.executable, '-c', _PROGRAM, str(output)], check=True, env=environment
  )
  with np.load(output) as read:
    rows = _rows(read['train_images'], read['train_labels'])
  files = [f'data_batch_{i}.bin' for i in range(1, 6)]
  assert rows == _expected(cifar10_records, files)


def test_a_data_directory_can_be_named(data_dir, cifar10_records):
  dataset = datasets.load_dataset('cifar10', str(data_dir))
  rows = _rows(dataset.test_images, dataset.test_labels)
  assert rows == _expected(cifar10_records, ['test_batch.bin'])


def test_the_other_cifar_is_pointed_out(data_dir):
  with pytest.raises(UsageError, match='holds cifar10, not cifar100'):
    datasets.load_dataset('cifar100', str(data_dir))


def test_nothing_prepared_is_none(tmp_path, data_dir):
  assert tfds_source.read('cifar10', tmp_path) is None
  assert tfds_source.read('cifar100', data_dir) is None


def test_the_newest_version_is_found(tmp_path):
  for version in ('3.0.2', '3.0.10', 'incomplete.9.0.0'):
    folder = tmp_path / 'cifar10' / version
    folder.mkdir(parents=True)
    (folder / 'dataset_info.json').touch()
  (tmp_path / 'cifar10/4.0.0').mkdir()  # Nothing in it.
  found = tfds_source.find_prepared('cifar10', tmp_path)
  assert found == tmp_path / 'cifar10/3.0.10'


@pytest.mark.parametrize(
  ('info', 'message'),
  [
    ('{"fileFormat": "tfrecord"}', 'was prepared as tfrecord'),
    ('{}', 'was prepared as tfrecord'),  # The default of old versions.
    ('[]', 'cannot be read'),
    ('{', 'cannot be read'),
    ('{"fileFormat": "array_record"}', 'cannot be read'),
  ],
)
def test_a_build_that_cannot_be_read_is_refused(tmp_path, info, message):
  folder = tmp_path / 'cifar10/3.0.2'
  folder.mkdir(parents=True)
  (folder / 'dataset_info.json').write_text(info)
  with pytest.raises(UsageError, match=f'3.0.2.*{message}.*prepare_data'):
    tfds_source.read('cifar10', tmp_path)


def test_a_slow_read_is_cached(data_dir, cache_home, monkeypatch):
  monkeypatch.setattr(tfds_source, '_CACHE_AFTER_S', -1.0)
  first = tfds_source.read('cifar10', data_dir)
  (cache,) = (cache_home / 'ms_ranas_jax').iterdir()

  def refuse(name, folder):
    raise AssertionError('the records were read again')

  monkeypatch.setattr(tfds_source, '_read_records', refuse)
  second = tfds_source.read('cifar10', data_dir)
  for one, other in zip(first, second):
    np.testing.assert_array_equal(one, other)
    assert one.dtype == other.dtype


@pytest.mark.parametrize('damage', ['truncated', 'stale'])
def test_a_cache_that_does_not_fit_is_read_anew(
  data_dir, cache_home, monkeypatch, damage
):
  monkeypatch.setattr(tfds_source, '_CACHE_AFTER_S', -1.0)
  first = tfds_source.read('cifar10', data_dir)
  (cache,) = (cache_home / 'ms_ranas_jax').iterdir()
  if damage == 'truncated':
    cache.write_bytes(cache.read_bytes()[:-100])
  else:
    zeros = {
      key: np.zeros_like(array) for key, array in first._asdict().items()
    }
    np.savez(cache, fingerprint='of other files', **zeros)
  second = tfds_source.read('cifar10', data_dir)
  for one, other in zip(first, second):
    np.testing.assert_array_equal(one, other)


def test_a_quick_read_or_no_cache_folder_leaves_nothing(
  tmp_path, data_dir, cache_home, monkeypatch
):
  monkeypatch.setattr(tfds_source, '_CACHE_AFTER_S', 600.0)
  assert tfds_source.read('cifar10', data_dir) is not None
  assert not cache_home.exists()
  monkeypatch.setattr(tfds_source, '_CACHE_AFTER_S', -1.0)
  (tmp_path / 'file').touch()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  assert tfds_source.read('cifar10', data_dir) is not None


def test_the_default_directory_follows_the_environment(monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', '/somewhere')
  assert str(tfds_source.default_data_dir()) == '/somewhere'
  monkeypatch.delenv('TFDS_DATA_DIR')
  assert tfds_source.default_data_dir().name == 'tensorflow_datasets'
