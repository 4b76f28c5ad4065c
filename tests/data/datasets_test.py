import pathlib
import pickle
import shutil
import sys
import time
import types

import numpy as np
import pytest

from ms_ranas_jax.data import datasets as datasets_lib
from ms_ranas_jax.errors import UsageError


def _dataset(**changes):
  fields = {
    'name': 'mine',
    'train_images': np.zeros((4, 8, 8, 3), np.uint8),
    'train_labels': np.array([0, 1, 2, 0], np.int32),
    'test_images': np.zeros((2, 8, 8, 3), np.uint8),
    'test_labels': np.array([2, 1], np.int32),
    'num_classes': 3,
    'mean': (0.5, 0.5, 0.5),
    'std': (0.2, 0.2, 0.2),
    **changes,
  }
  return datasets_lib.Dataset(**fields)


def _write_cifar10(folder, label=1):
  folder.mkdir(parents=True)
  for name in (*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch'):
    batch = {b'data': np.full((1, 3072), 7, np.uint8), b'labels': [label]}
    (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def test_a_dataset_that_fits_is_taken():
  assert _dataset().num_classes == 3


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'train_images': np.zeros((4, 8, 8, 3))}, 'train_images is float64'),
    (
      {'test_images': np.zeros((2, 8, 8), np.uint8)},
      r'test_images is uint8 \(',
    ),
    ({'train_images': np.zeros((0, 8, 8, 3), np.uint8)}, 'not empty'),
    ({'test_images': np.zeros((2, 9, 8, 3), np.uint8)}, r'\(9, 8, 3\) each'),
    ({'train_labels': np.zeros(4)}, 'train_labels is float64'),
    ({'test_labels': np.zeros(3, np.int32)}, r'test_labels is int32 \(3,\)'),
    (
      {'test_labels': np.array([0, 3], np.int32)},
      'test_labels runs from 0 to 3',
    ),
    ({'train_labels': np.full(4, -1, np.int32)}, 'train_labels runs from -1'),
    ({'mean': (0.5,)}, 'mean has 1 entries'),
    ({'std': (0.5, 0.5)}, 'std has 2 entries'),
    ({'std': (0.5, 0.5, 0.0)}, 'give positive numbers'),
  ],
)
def test_a_dataset_that_does_not_fit_names_the_array(changes, message):
  with pytest.raises(UsageError, match=f'^mine: .*{message}'):
    _dataset(**changes)


def test_digits_are_the_real_ones():
  from sklearn import datasets

  digits = datasets_lib.load_dataset('digits')
  assert digits.train_images.shape == (1437, 8, 8, 1)
  assert digits.test_images.shape == (360, 8, 8, 1)
  assert digits.num_classes == 10
  # Every image once, with its label, in the training or the test part.
  published = datasets.load_digits()
  ours = sorted(
    (image.tobytes(), int(label))
    for image, label in zip(
      np.concatenate([digits.train_images, digits.test_images]),
      np.concatenate([digits.train_labels, digits.test_labels]),
    )
  )
  theirs = sorted(
    (np.rint(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
    for image, label in zip(published.images, published.target)
  )
  assert ours == theirs
  assert digits.train_images.max() == 255
  # Each class is in the test part often enough to be measured.
  assert np.bincount(digits.test_labels, minlength=10).min() >= 20


def test_digits_are_split_once_and_for_all():
  first, second = (
    datasets_lib.load_dataset('digits'),
    datasets_lib.load_dataset('digits'),
  )
  np.testing.assert_array_equal(first.train_images, second.train_images)
  # The first ten, so that a change of the split does not go unnoticed.
  assert first.test_labels[:10].tolist() == [0, 8, 8, 9, 8, 3, 7, 5, 0, 6]


def test_digits_normalise_to_mean_0_and_deviation_1():
  digits = datasets_lib.load_dataset('digits')
  normal = (digits.train_images / 255 - digits.mean) / digits.std
  assert normal.mean() == pytest.approx(0, abs=1e-9)
  assert normal.std() == pytest.approx(1, abs=1e-9)


def test_digits_take_no_directory():
  with pytest.raises(UsageError, match="dataset.dir is '/somewhere'"):
    datasets_lib.load_dataset('digits', '/somewhere')


def test_an_unknown_name_lists_the_known_ones():
  with pytest.raises(
    UsageError, match="'mnist': give one of cifar10, cifar100, digits, npz"
  ):
    datasets_lib.load_dataset('mnist')


def test_npz_statistics_are_per_channel(tmp_path):
  rng = np.random.default_rng(0)
  x_train = rng.integers(0, 256, (5_000, 4, 4, 2), dtype=np.uint8)
  x_train[..., 1] = 7
  path = tmp_path / 'mine.npz'
  np.savez(
    path,
    x_train=x_train,
    y_train=np.arange(5_000) % 4,
    x_test=x_train[:9],
    y_test=np.arange(9) % 3,
  )
  dataset = datasets_lib.load_dataset('npz', str(path))
  assert dataset.num_classes == 4
  np.testing.assert_allclose(dataset.mean, x_train.mean((0, 1, 2)) / 255)
  assert dataset.std[0] == pytest.approx((x_train[..., 0] / 255).std())
  assert dataset.std[1] == 1.0
  assert dataset.test_labels.dtype == np.int32


@pytest.mark.parametrize('inside', ['', 'cifar-10-batches-py'])
def test_cifar10_from_a_directory(tmp_path, inside):
  _write_cifar10(tmp_path / 'cifar-10-batches-py')
  dataset = datasets_lib.load_dataset('cifar10', str(tmp_path / inside))
  assert dataset.name == 'cifar10'
  assert dataset.train_images.shape == (5, 32, 32, 3)
  assert dataset.test_images.shape == (1, 32, 32, 3)
  assert dataset.num_classes == 10
  assert dataset.mean == (0.4914, 0.4822, 0.4465)
  assert dataset.std == (0.2471, 0.2435, 0.2616)


def test_the_other_cifar_is_pointed_out(tmp_path):
  _write_cifar10(tmp_path / 'cifar-10-batches-py')
  with pytest.raises(
    UsageError,
    match="holds cifar10, not cifar100; set dataset.name to 'cifar10'",
  ):
    datasets_lib.load_dataset('cifar100', str(tmp_path))


def test_a_directory_without_cifar_names_both_mends(tmp_path):
  with pytest.raises(UsageError) as caught:
    datasets_lib.load_dataset('cifar10', str(tmp_path))
  for part in (
    f'dataset.dir: {tmp_path} has neither cifar-10-batches-py',
    'python -m ms_ranas_jax.data.prepare_data --dataset=cifar10',
    f'--dir={tmp_path}',
  ):
    assert part in str(caught.value)


def test_a_missing_directory_is_named(tmp_path):
  with pytest.raises(UsageError, match='dataset.dir: .*absent does not exist'):
    datasets_lib.load_dataset('cifar10', str(tmp_path / 'absent'))


def _archive(folder, kind='gztar', name='cifar-10-python'):
  (folder / 'content').mkdir()
  (folder / 'content/x_train.npy').touch()
  return shutil.make_archive(
    str(folder / name), kind, folder, base_dir='content'
  )


@pytest.mark.parametrize('kind', ['gztar', 'tar', 'zip'])
def test_an_archive_is_to_be_unpacked(tmp_path, kind):
  path = _archive(tmp_path, kind)
  with pytest.raises(UsageError, match='is an archive; unpack it') as caught:
    datasets_lib.load_dataset('cifar10', path)
  # A command would take the archive for a folder.
  assert 'prepare_data' not in str(caught.value)
  # So does the folder that it lies in.
  with pytest.raises(UsageError, match='holds cifar-10-python.*; unpack it'):
    datasets_lib.load_dataset('cifar10', str(tmp_path))


def test_an_archive_of_arrays_is_to_be_unpacked(tmp_path):
  path = _archive(tmp_path)
  with pytest.raises(UsageError, match='is an archive; unpack it'):
    datasets_lib.load_dataset('npz', path)


def test_arrays_are_another_kind_of_dataset(tmp_path):
  np.savez(tmp_path / 'mine.npz', x=[1])
  with pytest.raises(UsageError, match="set dataset.name to 'npz'"):
    datasets_lib.load_dataset('cifar10', str(tmp_path / 'mine.npz'))


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  images, labels = np.zeros((2, 4, 4, 1), np.uint8), np.arange(2)
  np.savez(
    tmp_path / 'mine.npz',
    **{
      'x_train': images,
      'x_test': images,
      'y_train': labels,
      'y_test': labels,
    },
  )
  for path in '~/mine.npz', pathlib.Path('~/mine.npz'):
    assert datasets_lib.load_dataset('npz', path).num_classes == 2
    assert datasets_lib.image_format('npz', path) == ((4, 4, 1), 2)
  for name in 'cifar10', 'cifar100':
    with pytest.raises(
      UsageError, match=f'dataset.dir: {tmp_path}/absent does'
    ):
      datasets_lib.load_dataset(name, '~/absent')


def test_an_empty_archive_is_no_directory(tmp_path):
  path = tmp_path / 'cifar-10-python.tar.gz'
  path.write_bytes(b'')
  with pytest.raises(UsageError, match='is a file; give the folder'):
    datasets_lib.load_dataset('cifar10', str(path))


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_unprepared_data_is_an_error_at_once(tmp_path, monkeypatch, name):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  start = time.monotonic()
  with pytest.raises(
    UsageError,
    match=rf'{name} is not prepared in {tmp_path}; run python -m '
    rf'ms_ranas_jax.data.prepare_data --dataset={name}, or set dataset.dir',
  ):
    datasets_lib.load_dataset(name)
  assert time.monotonic() - start < 1


def test_split_parts_are_disjoint_and_complete():
  parts = datasets_lib.split_indices(101, (0.5, 7, None), seed=3)
  assert [len(part) for part in parts] == [50, 7, 44]
  assert all(part.dtype == np.int32 for part in parts)
  assert sorted(np.concatenate(parts).tolist()) == list(range(101))


def test_split_depends_on_the_seed_alone():
  first = datasets_lib.split_indices(50, (None, 0.2), seed=1)
  again = datasets_lib.split_indices(50, (None, 0.2), seed=1)
  other = datasets_lib.split_indices(50, (None, 0.2), seed=2)
  for part, same, different in zip(first, again, other):
    np.testing.assert_array_equal(part, same)
    assert part.tolist() != different.tolist()
  assert first[0].tolist() != sorted(first[0].tolist())


def test_split_may_leave_examples_out():
  (part,) = datasets_lib.split_indices(10, (np.int64(3),), seed=0)
  assert len(set(part.tolist())) == 3
  train, held_out = datasets_lib.split_indices(10, (None, 0), seed=0)
  assert len(train) == 10 and not len(held_out)


@pytest.mark.parametrize(
  'sizes', [(11,), (6, 0.5), (None, None), (-1,), (1.5,), (True,), ('3',)]
)
def test_impossible_splits_are_refused(sizes):
  with pytest.raises(UsageError):
    datasets_lib.split_indices(10, sizes, seed=0)


def test_digits_and_files_need_no_tensorflow_datasets():
  # It takes half a second to import; other tests may have done it already.
  if 'tensorflow_datasets' not in sys.modules:
    datasets_lib.load_dataset('digits')
    assert 'tensorflow_datasets' not in sys.modules


def test_a_part_of_the_training_images():
  """Always the same part, with the labels and the constants of the whole."""
  whole = datasets_lib.load_dataset('digits')
  part, again, larger = (
    datasets_lib.load_dataset('digits', train_images=count)
    for count in (50, 50, 80)
  )
  assert part.train_images.shape == (50, 8, 8, 1)
  np.testing.assert_array_equal(part.train_images, again.train_images)
  np.testing.assert_array_equal(part.train_images, larger.train_images[:50])
  np.testing.assert_array_equal(part.test_images, whole.test_images)
  assert (part.mean, part.std) == (whole.mean, whole.std)
  for image, label in zip(part.train_images, part.train_labels, strict=True):
    places = np.flatnonzero((whole.train_images == image).all(axis=(1, 2, 3)))
    assert len(places) and (whole.train_labels[places] == label).all()
  # At random: not one after the other, and not sorted by label.
  assert len(set(part.train_labels[:10].tolist())) > 3


def test_more_training_images_than_there_are():
  with pytest.raises(
    UsageError, match='dataset.train_images = 1438, but digits has 1437'
  ):
    datasets_lib.load_dataset('digits', train_images=1438)


def _mine(**changes):
  rng = np.random.default_rng(0)
  labels = np.arange(12, dtype=np.int32) % 3
  fields = {
    'train_images': rng.integers(0, 256, (12, 8, 6, 3), np.uint8),
    'train_labels': labels,
    'test_images': rng.integers(0, 256, (12, 8, 6, 3), np.uint8),
    'test_labels': labels,
    'num_classes': 3,
    'mean': (0.5,) * 3,
    'std': (0.2,) * 3,
  }
  return datasets_lib.Dataset('mine', **fields | changes)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'num_classes': 4}, r'1 of 4 classes have no training image \(3\)'),
    (
      {'num_classes': 1000},
      r'997 of 1000 classes have no training image \(3, 4, .* and 991 more\)',
    ),
    ({'num_classes': 2**31}, 'num_classes is 2147483648; number the labels'),
    (
      {'train_labels': np.arange(12, dtype=np.int32) % 2},
      r'1 of 3 classes have no training image \(2\)',
    ),
    (
      {
        'train_images': np.zeros((12, 3, 8, 30), np.uint8),
        'test_images': np.zeros((12, 3, 8, 30), np.uint8),
      },
      r'mine: train_images is .* transpose\(0, 2, 3, 1\)',
    ),
  ],
)
def test_images_of_ones_own_that_cannot_be_meant(monkeypatch, changes, words):
  module = types.ModuleType('mine_images')
  module.load = lambda directory: _mine(**changes)
  monkeypatch.setitem(sys.modules, 'mine_images', module)
  with pytest.raises(UsageError, match=words):
    datasets_lib.load_dataset('mine_images:load')
  changes.clear()
  assert datasets_lib.load_dataset('mine_images:load').num_classes == 3


def test_the_names_of_the_classes_of_a_file_are_their_labels(tmp_path):
  mine = _mine()
  np.savez(
    tmp_path / 'mine.npz',
    x_train=mine.train_images,
    y_train=mine.train_labels * 10 + 1,
    x_test=mine.test_images,
    y_test=mine.test_labels * 10 + 1,
  )
  found = datasets_lib.load_dataset('npz', str(tmp_path / 'mine.npz'))
  assert found.class_names == ('1', '11', '21') and found.num_classes == 3
  np.testing.assert_array_equal(found.train_labels, mine.train_labels)
  np.testing.assert_array_equal(found.test_labels, mine.test_labels)
