"""A tiny copy of the published archive of CIFAR-10."""

import io
import pathlib
import tarfile

import numpy as np
import pytest

_FILES = (*(f'data_batch_{i}.bin' for i in range(1, 6)), 'test_batch.bin')


@pytest.fixture(scope='session')
def cifar10_records() -> dict[str, np.ndarray]:
  """Binary records, uint8 (4, 3073), of each file of CIFAR-10."""
  rng = np.random.default_rng(0)
  content = {}
  for name in _FILES:
    records = rng.integers(0, 256, (4, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    content[name] = records
  return content


@pytest.fixture(scope='session')
def cifar10_archive(tmp_path_factory, cifar10_records) -> pathlib.Path:
  """The binary archive of CIFAR-10 in small: four images in each file."""
  path = tmp_path_factory.mktemp('archive') / 'cifar-10-binary.tar.gz'
  names = '\n'.join(f'class{i}' for i in range(10))
  content = {
    **{name: records.tobytes() for name, records in cifar10_records.items()},
    'batches.meta.txt': f'{names}\n\n'.encode(),
  }
  with tarfile.open(path, 'w:gz') as archive:
    for name, data in content.items():
      member = tarfile.TarInfo(f'cifar-10-batches-bin/{name}')
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return path
