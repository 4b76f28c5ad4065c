"""Work directories in an object store, as far as that takes no network.

A folder stands in for the bucket, behind the file system layer that epath uses.
The bytes of checkpoints go through tensorstore's own client, which these tests
do not reach.
"""

from etils.epath import backend
import fsspec
from fsspec.implementations import local
import numpy as np
import pytest

from ms_ranas_jax.baselines import cells
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.report import inputs
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import lock
from ms_ranas_jax.runtime import metrics


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """Serves gs://bucket from a folder, which is returned."""

  class Bucket(local.LocalFileSystem):
    protocol = ('gs', 'gcs')
    cachable = False

    def __init__(self, **_):
      super().__init__(auto_mkdir=True)

    @classmethod
    def _strip_protocol(cls, path):
      path = str(path)
      for scheme in ('gs://', 'gcs://'):
        if path.startswith(scheme):
          return str(tmp_path / path.removeprefix(scheme))
      return path

  monkeypatch.setattr(fsspec, 'filesystem', lambda *_, **__: Bucket())
  backend.fsspec_backend._get_filesystem.cache_clear()
  yield tmp_path / 'bucket'
  backend.fsspec_backend._get_filesystem.cache_clear()


def test_files(bucket):
  path = 'gs://bucket/run/a.json'
  assert not files.is_file(path)
  files.write_json(path, {'b': np.arange(3)})
  assert files.read_json(path) == {'b': [0, 1, 2]}
  assert (bucket / 'run/a.json').exists()
  assert files.is_file(path) and files.is_directory('gs://bucket/run')
  files.write_npz('gs://bucket/run/c.npz', d=np.eye(2))
  found = files.read_npz('gs://bucket/run/c.npz')
  np.testing.assert_array_equal(found['d'], np.eye(2))
  with pytest.raises(UsageError, match='gs://bucket/run/none.json .* exist'):
    files.read_json('gs://bucket/run/none.json')


def test_metrics_are_there_once_they_are_flushed(bucket):
  folder = 'gs://bucket/run/train'
  path = f'{folder}/metrics.jsonl'
  with metrics.MetricsWriter(folder, -1) as writer:
    writer.write({'step': 1, 'loss': 0.5})
    writer.flush()
    writer.write({'step': 2, 'loss': 0.25})
    assert [r['step'] for r in metrics.read_metrics(path)] == [1]
  with metrics.MetricsWriter(folder, 1) as writer:
    writer.write({'step': 3, 'loss': 0.125})
  assert metrics.read_metrics(path) == [
    {'step': 1, 'loss': 0.5},
    {'step': 3, 'loss': 0.125},
  ]
  assert inputs.read_metrics('gs://bucket/run', 'train/metrics.jsonl')
  assert not (bucket / 'run/train/tensorboard').exists()


def test_genotypes(bucket):
  path = 'gs://bucket/run/search/genotype.json'
  files.write_text(path, cells.DARTS_V2.to_json())
  assert cells.load_genotype(path) == cells.DARTS_V2
  assert inputs.read_genotype('gs://bucket/run', 'search/genotype.json')
  assert bucket.exists()


def test_buckets_are_not_locked(bucket):
  with lock.hold('gs://bucket/run'), lock.hold('gs://bucket/run'):
    pass
  assert not bucket.exists()
