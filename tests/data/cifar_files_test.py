import pathlib
import pickle
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from ms_ranas_jax.data import cifar_files
from ms_ranas_jax.errors import UsageError

_LAYOUTS = [
  (name, layouts[name])
  for layouts in (cifar_files.PYTHON_LAYOUTS, cifar_files.BINARY_LAYOUTS)
  for name in ('cifar10', 'cifar100')
]
_IDS = [layout.folder for _, layout in _LAYOUTS]
_ROWS = 3


def _write_file(path, layout, rows, labels):
  """Writes images (N, 3072) and labels (N,) in the form of the layout."""
  if layout.label_bytes:
    coarse = np.full((len(rows), layout.label_bytes - 1), 19, np.uint8)
    label = np.asarray(labels, np.uint8)[:, None]
    np.concatenate([coarse, label, rows], axis=1).tofile(path)
  else:
    batch = {b'data': rows, layout.labels_key.encode(): list(labels)}
    if layout.labels_key == 'fine_labels':
      batch[b'coarse_labels'] = [19] * len(rows)
    path.write_bytes(pickle.dumps(batch, protocol=2))


def _write_layout(folder, name, layout):
  """Writes a layout in small; returns its images and labels, file by file."""
  folder.mkdir()
  rng = np.random.default_rng(1)
  content = []
  for file in (*layout.train_files, layout.test_file):
    images = rng.integers(0, 256, (_ROWS, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, cifar_files.NUM_CLASSES[name], _ROWS).tolist()
    # Red plane, green plane, blue plane; each row by row.
    rows = np.stack([image.transpose(2, 0, 1).ravel() for image in images])
    _write_file(folder / file, layout, rows, labels)
    content.append((images, labels))
  return content


@pytest.fixture(params=_LAYOUTS, ids=_IDS)
def layout_case(request, tmp_path):
  """Name, layout, its folder and its content, for each of the four."""
  name, layout = request.param
  folder = tmp_path / layout.folder
  return name, layout, folder, _write_layout(folder, name, layout)


def test_reads_each_layout(layout_case):
  name, layout, folder, content = layout_case
  for directory in (folder, folder.parent):
    arrays = cifar_files.read(name, directory)
    *train, (test_images, test_labels) = content
    np.testing.assert_array_equal(
      arrays.train_images, np.concatenate([images for images, _ in train])
    )
    assert arrays.train_labels.tolist() == sum((y for _, y in train), [])
    np.testing.assert_array_equal(arrays.test_images, test_images)
    assert arrays.test_labels.tolist() == test_labels
    assert arrays.train_labels.dtype == arrays.test_labels.dtype == np.int32
    assert arrays.train_images.flags.c_contiguous


def test_a_renamed_folder_is_recognised(layout_case):
  name, _, folder, _ = layout_case
  renamed = folder.rename(folder.with_name('renamed'))
  assert cifar_files.read(name, renamed) is not None


def test_other_folders_hold_no_layout(layout_case, tmp_path):
  name, _, folder, _ = layout_case
  other = 'cifar100' if name == 'cifar10' else 'cifar10'
  assert cifar_files.read(other, tmp_path) is None
  assert cifar_files.read(other, folder) is None
  (tmp_path / 'empty').mkdir()
  assert cifar_files.read(name, tmp_path / 'empty') is None


def test_a_missing_file_is_named(layout_case):
  name, layout, folder, _ = layout_case
  (folder / layout.train_files[-1]).unlink()
  with pytest.raises(UsageError, match=rf'{layout.train_files[-1]} is missing'):
    cifar_files.read(name, folder)


def test_a_truncated_file_is_named(layout_case):
  name, layout, folder, _ = layout_case
  path = folder / layout.test_file
  path.write_bytes(path.read_bytes()[:-5])
  with pytest.raises(UsageError, match=rf'{layout.test_file} is.*truncated'):
    cifar_files.read(name, folder)


def test_an_empty_file_is_named(layout_case):
  name, layout, folder, _ = layout_case
  (folder / layout.test_file).write_bytes(b'')
  with pytest.raises(UsageError, match=rf'{layout.test_file} is.*truncated'):
    cifar_files.read(name, folder)


def test_a_label_out_of_range_is_named(layout_case):
  name, layout, folder, _ = layout_case
  num_classes = cifar_files.NUM_CLASSES[name]
  rows = np.zeros((2, 3072), np.uint8)
  _write_file(folder / layout.test_file, layout, rows, [0, num_classes])
  with pytest.raises(
    UsageError,
    match=rf'{layout.test_file}: image 1 has the label {num_classes}',
  ):
    cifar_files.read(name, folder)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({b'data': np.zeros((2, 3071), np.uint8)}, r'data is uint8 \(2, 3071\)'),
    ({b'data': np.zeros((2, 3072), np.int64)}, 'data is int64'),
    ({b'data': np.zeros((0, 3072), np.uint8)}, r'data is uint8 \(0, 3072\)'),
    ({b'data': [1, 2]}, 'data is a list'),
    ({b'labels': [1]}, 'not one integer for each of the 2 images'),
    ({b'labels': [0.5, 1.0]}, 'labels is float64'),
    ({b'labels': [[0], [1, 2]]}, 'labels is not a list of integers'),
    ({b'labels': [-1, 0]}, 'has the label -1'),
  ],
)
def test_a_malformed_batch_is_refused(tmp_path, change, message):
  layout = cifar_files.PYTHON_LAYOUTS['cifar10']
  folder = tmp_path / layout.folder
  _write_layout(folder, 'cifar10', layout)
  batch = {b'data': np.zeros((2, 3072), np.uint8), b'labels': [0, 1], **change}
  path = folder / 'data_batch_3'
  path.write_bytes(pickle.dumps(batch, protocol=2))
  with pytest.raises(UsageError, match=f'data_batch_3.*{message}'):
    cifar_files.read('cifar10', folder)


def test_a_batch_of_the_other_dataset_is_refused(tmp_path):
  layout = cifar_files.PYTHON_LAYOUTS['cifar100']
  folder = tmp_path / 'cifar'
  _write_layout(folder, 'cifar100', layout)
  path = folder / 'train'
  batch = {b'data': np.zeros((1, 3072), np.uint8), b'labels': [0]}
  path.write_bytes(pickle.dumps(batch, protocol=2))
  with pytest.raises(UsageError, match="train has no entry 'fine_labels'"):
    cifar_files.read('cifar100', folder)


@pytest.mark.slow
def test_the_two_layouts_of_a_real_copy_agree(shared_cifar10):
  # 370 MB, which a tmp_path would keep for several runs.
  with tempfile.TemporaryDirectory() as directory:
    command = [sys.executable, str(shared_cifar10 / 'unpack.py'), directory]
    subprocess.run(command, check=True)
    root = pathlib.Path(directory)
    python = cifar_files.read('cifar10', root / 'cifar-10-batches-py')
    binary = cifar_files.read('cifar10', root / 'cifar-10-batches-bin')
  assert python.train_images.shape == (50_000, 32, 32, 3)
  assert python.test_images.shape == (10_000, 32, 32, 3)
  assert np.bincount(python.train_labels).tolist() == [5_000] * 10
  for field in cifar_files.Arrays._fields:
    np.testing.assert_array_equal(
      getattr(python, field), getattr(binary, field)
    )
