import functools
import http.server
import io
import pathlib
import tarfile
import threading

import numpy as np
import pytest

from ms_ranas_jax.data import cifar_files
from ms_ranas_jax.data import tfds_prepare
from ms_ranas_jax.data import tfds_source
from ms_ranas_jax.errors import UsageError

cifar = pytest.importorskip('tensorflow_datasets.image_classification.cifar')


@pytest.fixture
def served_archive(cifar10_archive, monkeypatch):
  """The address of the small archive, from which the builder now downloads."""

  class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
      pass

  handler = functools.partial(Handler, directory=str(cifar10_archive.parent))
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f'http://127.0.0.1:{server.server_port}/{cifar10_archive.name}'
    _use_url(monkeypatch, url)
    yield url
    server.shutdown()
    thread.join()


def _use_url(monkeypatch, url):
  stock = cifar.Cifar10._cifar_info.fget
  info = property(lambda builder: stock(builder)._replace(url=url))
  monkeypatch.setattr(cifar.Cifar10, '_cifar_info', info)
  monkeypatch.setenv('no_proxy', '127.0.0.1')


def _write_archive(path, content):
  with tarfile.open(path, 'w') as archive:
    for name, data in content.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return path


def test_downloads_and_prepares(tmp_path, served_archive):
  folder = tfds_prepare.prepare('cifar10', tmp_path)
  assert folder.parent == tmp_path / 'cifar10'
  arrays = tfds_source.read('cifar10', tmp_path)
  assert arrays.train_images.shape == (20, 32, 32, 3)
  assert arrays.test_images.shape == (4, 32, 32, 3)


def test_another_archive_than_the_published_is_refused(
  tmp_path, served_archive, monkeypatch
):
  from tensorflow_datasets.core.download import checksums

  published = checksums.UrlInfo(size=1, checksum='0' * 64, filename='x.tar.gz')
  monkeypatch.setitem(cifar.Cifar10.url_infos, served_archive, published)
  with pytest.raises(UsageError, match='its checksum differs'):
    tfds_prepare.prepare('cifar10', tmp_path)
  assert tfds_source.find_prepared('cifar10', tmp_path) is None


def test_the_published_checksums_are_in_use(tmp_path):
  import tensorflow_datasets as tfds

  for name in cifar_files.NUM_CLASSES:
    builder = tfds_prepare._builder_class(tfds, name, None)(
      data_dir=str(tmp_path)
    )
    assert builder.cifar_info.url in builder.url_infos


def test_no_network_is_an_error_at_once(tmp_path, monkeypatch):
  _use_url(monkeypatch, 'http://127.0.0.1:9/cifar-10-binary.tar.gz')
  with pytest.raises(UsageError) as caught:
    tfds_prepare.prepare('cifar10', tmp_path)
  assert 'http://127.0.0.1:9/cifar-10-binary.tar.gz' in str(caught.value)
  assert '--archive=cifar-10-binary.tar.gz' in str(caught.value)


def test_a_missing_page_is_an_error(tmp_path, served_archive, monkeypatch):
  _use_url(monkeypatch, served_archive + '.moved')
  with pytest.raises(UsageError, match='cannot be reached'):
    tfds_prepare.prepare('cifar10', tmp_path)


def test_what_is_prepared_is_left_alone(tmp_path, cifar10_archive):
  first = tfds_prepare.prepare('cifar10', tmp_path, cifar10_archive)
  before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
  second = tfds_prepare.prepare('cifar10', tmp_path, pathlib.Path('absent'))
  assert second == first
  assert before == {path: path.stat().st_mtime_ns for path in first.iterdir()}


def test_ids_and_class_names_are_those_of_the_stock_dataset(
  tmp_path, cifar10_archive, cifar10_records
):
  import tensorflow_datasets as tfds

  tfds_prepare.prepare('cifar10', tmp_path, cifar10_archive)
  source = tfds.data_source(
    'cifar10',
    split='train',
    data_dir=tmp_path,
    builder_kwargs={'file_format': 'array_record'},
  )
  records = np.concatenate(
    [cifar10_records[f'data_batch_{i}.bin'] for i in range(1, 6)]
  )
  by_id = {item['id'].decode(): item for item in source}
  assert sorted(by_id) == [f'train_{i:05d}' for i in range(20)]
  for i, record in enumerate(records):
    item = by_id[f'train_{i:05d}']
    assert item['label'] == record[0]
    np.testing.assert_array_equal(
      item['image'], record[1:].reshape(3, 32, 32).transpose(1, 2, 0)
    )
  names = source.dataset_info.features['label'].names
  assert names == [f'class{i}' for i in range(10)]


def test_cifar100_takes_the_fine_label(tmp_path):
  rng = np.random.default_rng(0)
  content = {}
  for file in ('train.bin', 'test.bin'):
    records = rng.integers(0, 256, (2, 3074), dtype=np.uint8)
    records[:, :2] = [[19, 99], [0, 42]]
    content[f'cifar-100-binary/{file}'] = records.tobytes()
  for file, count in (('coarse', 20), ('fine', 100)):
    names = '\n'.join(f'{file}{i}' for i in range(count))
    content[f'cifar-100-binary/{file}_label_names.txt'] = names.encode()
  archive = _write_archive(tmp_path / 'cifar-100-binary.tar', content)
  tfds_prepare.prepare('cifar100', tmp_path, archive)
  arrays = tfds_source.read('cifar100', tmp_path)
  assert sorted(arrays.train_labels.tolist()) == [42, 99]


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ({'other': b''}, 'not the binary version of cifar10'),
    (
      {
        f'cifar-10-batches-bin/{file}': b'\xff' * 3073
        for file in (
          *(f'data_batch_{i}.bin' for i in range(1, 6)),
          'test_batch.bin',
          'batches.meta.txt',
        )
      },
      None,
    ),
  ],
  ids=['other_files', 'no_labels'],
)
def test_an_archive_of_something_else_is_refused(tmp_path, content, message):
  if message is None:
    message = 'data_batch_1.bin: image 0 has the label 255'
    names = '\n'.join(map(str, range(10))).encode()
    content = {**content, 'cifar-10-batches-bin/batches.meta.txt': names}
  archive = _write_archive(tmp_path / 'cifar.tar', content)
  with pytest.raises(UsageError, match=message):
    tfds_prepare.prepare('cifar10', tmp_path, archive)
  assert tfds_source.find_prepared('cifar10', tmp_path) is None


def test_a_truncated_archive_is_refused(tmp_path, cifar10_archive):
  path = tmp_path / 'cut.tar.gz'
  path.write_bytes(cifar10_archive.read_bytes()[:-5000])
  with pytest.raises(UsageError, match='cut.tar.gz is not a whole tar archive'):
    tfds_prepare.prepare('cifar10', tmp_path, path)


def test_a_missing_archive_is_named(tmp_path):
  with pytest.raises(UsageError, match='absent.tar.gz is not a file'):
    tfds_prepare.prepare('cifar10', tmp_path, tmp_path / 'absent.tar.gz')


def test_a_folder_that_cannot_be_written_is_named(tmp_path, cifar10_archive):
  (tmp_path / 'file').touch()
  with pytest.raises(UsageError, match='could not be prepared in .*file'):
    tfds_prepare.prepare('cifar10', tmp_path / 'file', cifar10_archive)


def test_an_unknown_dataset_is_refused(tmp_path):
  with pytest.raises(UsageError, match='use one of cifar10, cifar100'):
    tfds_prepare.prepare('mnist', tmp_path)
