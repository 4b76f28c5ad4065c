"""Pictures of prepared datasets of tensorflow-datasets, of several forms."""

import io
import pathlib
import sys

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from ms_ranas_jax.data import datasets
from ms_ranas_jax.data import image_store
from ms_ranas_jax.data import pictures
from ms_ranas_jax.data import tfds_pictures
from ms_ranas_jax.data.image_store import Storage
from ms_ranas_jax.data.picture_options import Options
from ms_ranas_jax.errors import UsageError

CLASSES = ('ash', 'beech', 'cedar')


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
  """A cache folder of the test's own."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def _png(value, size, mode='RGB', **how):
  file = io.BytesIO()
  colour = value if mode == 'L' else (value, 0, 0)
  Image.new(mode, size, colour).save(file, 'PNG', **how)
  return file.getvalue()


def _examples(count, size=(4, 3), mode='RGB'):
  """Red values number all examples; each class has as many."""
  return [
    {'image': _png(n, size, mode), 'label': n % len(CLASSES)}
    for n in range(count)
  ]


def _prepare(folder, splits, channels=3, form='array_record', **features):
  """Prepares a dataset `toy` whose examples are given."""
  builds = {
    'image': tfds.features.Image(shape=(None, None, channels)),
    'label': tfds.features.ClassLabel(names=CLASSES),
  } | features

  class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Of examples that are here already."""

    name = 'toy'
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(builds)
      )

    def _split_generators(self, dl_manager):
      return {
        name: self._generate_examples(examples)
        for name, examples in splits.items()
      }

    def _generate_examples(self, examples):
      for number, example in enumerate(examples):
        # Pictures as files: to encode arrays takes TensorFlow.
        yield (
          number,
          {
            name: io.BytesIO(value) if isinstance(value, bytes) else value
            for name, value in example.items()
          },
        )

  Toy(data_dir=str(folder), file_format=form).download_and_prepare(
    download_config=tfds.download.DownloadConfig(try_download_gcs=False)
  )
  return str(folder)


def _load(directory, options=None, storage=image_store.DEFAULT, name='toy'):
  return datasets.load_dataset(
    f'tfds:{name}',
    directory,
    options=options or Options(),
    storage=storage,
  )


def _check(images, labels, count):
  """Every picture is there once, with its class."""
  values = images[:, 0, 0, 0]
  assert sorted(values.tolist()) == list(range(count))
  np.testing.assert_array_equal(labels, values % len(CLASSES))


def test_splits_are_the_parts(tmp_path):
  directory = _prepare(
    tmp_path / 'data', {'train': _examples(7), 'test': _examples(4)}
  )
  dataset = _load(directory)
  assert dataset.name == 'tfds:toy' and dataset.class_names == CLASSES
  assert dataset.image_shape == (3, 4, 3)
  _check(dataset.train_images, dataset.train_labels, 7)
  _check(dataset.test_images, dataset.test_labels, 4)
  assert datasets.image_format('tfds:toy', directory) == ((3, 4, 3), 3)
  test = datasets.load_test_images('tfds:toy', directory, (6, 8, 3))
  assert test.images.shape == (4, 6, 8, 3) and test.class_names == CLASSES
  assert 'tensorflow' not in sys.modules
  with pytest.raises(UsageError, match='test_fraction = 0.4 does nothing'):
    _load(directory, Options(test_fraction=0.4))


def test_validation_tests_where_the_classes_of_test_are_not_told(tmp_path):
  hidden = [{**example, 'label': -1} for example in _examples(2)]
  splits = {'train': _examples(6), 'validation': _examples(5), 'test': hidden}
  dataset = _load(_prepare(tmp_path, splits))
  _check(dataset.test_images, dataset.test_labels, 5)


def test_a_part_of_train_is_set_aside_where_there_is_no_other(tmp_path):
  directory = _prepare(tmp_path, {'train': _examples(15)})
  dataset = _load(directory, Options(test_fraction=0.4))
  assert np.bincount(dataset.test_labels).tolist() == [2, 2, 2]
  both = [
    np.concatenate([getattr(dataset, f'{p}_{what}') for p in ('train', 'test')])
    for what in ('images', 'labels')
  ]
  _check(*both, 15)


def test_pictures_are_read_as_those_of_folders(tmp_path, monkeypatch):
  """Of several sizes, turned, grey ones among them; from a file as well."""
  monkeypatch.setattr(tfds_pictures, '_RECORDS_PER_READ', 2)
  exif = Image.Exif()
  exif[0x0112] = 6
  some = [
    {'image': _png(50 * n, (5 + n, 8), mode, exif=exif), 'label': n}
    for n, mode in enumerate(['RGB', 'L', 'RGB'])
  ]
  directory = _prepare(tmp_path / 'data', {'train': some, 'test': some})
  with pytest.raises(UsageError, match='of 3 sizes'):
    _load(directory)
  options = Options((6, 4))
  expected = []
  for example in some:
    path = tmp_path / 'picture.png'
    path.write_bytes(example['image'])
    expected.append(pictures.read(path, (6, 4, 3)).pixels)
  for storage in image_store.DEFAULT, Storage(0, str(tmp_path / 'mine')):
    dataset = _load(directory, options, storage)
    order = np.argsort(dataset.train_labels)
    np.testing.assert_array_equal(dataset.train_images[order], expected)
    assert '1 of 6' not in dataset.notes[1] and '2 of 6' in dataset.notes[1]
  assert list((tmp_path / 'mine').glob('images-*/images.npy'))


def test_grey_sets_have_one_channel(tmp_path):
  grey = _examples(3, mode='L')
  directory = _prepare(tmp_path, {'train': grey, 'test': grey}, channels=1)
  assert _load(directory).image_shape == (3, 4, 1)


def test_records_are_read_once_for_their_classes(tmp_path, monkeypatch):
  directory = _prepare(
    tmp_path / 'data', {'train': _examples(6), 'test': _examples(3)}
  )
  first = datasets.image_format('tfds:toy', directory)
  monkeypatch.setattr(pictures, 'read_head', None)
  assert datasets.image_format('tfds:toy', directory) == first


def test_broken_records_are_named_or_left_out(tmp_path):
  examples = _examples(7)
  examples[3]['image'] = b'no picture'
  examples[4]['image'] = examples[4]['image'][:45]
  directory = _prepare(tmp_path, {'train': examples, 'test': _examples(3)})
  with pytest.raises(UsageError, match=r'record \d of train in .* is no pict'):
    _load(directory)
  dataset = _load(directory, Options(unreadable='skip'))
  assert sorted(dataset.train_images[:, 0, 0, 0].tolist()) == [0, 1, 2, 5, 6]
  assert '2 files were left out' in dataset.notes[0]


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('', 'give .tfds:NAME'),
    ('../toy', 'give .tfds:NAME'),
    ('/toy', 'give .tfds:NAME'),
    ('mnist', 'has no prepared mnist; .* tfds build mnist --file_format=array'),
  ],
)
def test_what_is_not_there_is_named(tmp_path, name, message):
  with pytest.raises(UsageError, match=message):
    _load(str(tmp_path), name=name)


def test_a_config_has_to_be_chosen(tmp_path):
  directory = _prepare(tmp_path / 'a', {'train': _examples(6)})
  (tmp_path / 'b' / 'set').mkdir(parents=True)
  inner = pathlib.Path(directory, 'toy')
  inner.rename(tmp_path / 'b' / 'set' / 'small')
  with pytest.raises(UsageError, match='as tfds:set/small; give one of these'):
    _load(str(tmp_path / 'b'), name='set')


@pytest.mark.parametrize(
  ('features', 'example', 'message'),
  [
    ({'mask': tfds.features.Image()}, {'mask': b''}, '2 images and 1 classes'),
    ({'kind': tfds.features.ClassLabel(num_classes=2)}, {'kind': 1}, '2 class'),
  ],
)
def test_what_is_no_classification_is_refused(
  tmp_path, features, example, message
):
  examples = [{**one, **example} for one in _examples(3)]
  directory = _prepare(tmp_path, {'train': examples}, **features)
  with pytest.raises(UsageError, match=message):
    _load(directory)


def test_without_training_images_it_is_refused(tmp_path):
  directory = _prepare(tmp_path, {'test': _examples(3)})
  with pytest.raises(UsageError, match='has the splits test, and none is tr'):
    _load(directory)
  directory = _prepare(tmp_path / 'b', {'train': _examples(3)})
  with pytest.raises(UsageError, match='no split test or validation'):
    datasets.load_test_images('tfds:toy', directory, (3, 4, 3))


def test_another_format_is_refused(tmp_path):
  directory = _prepare(tmp_path, {'train': _examples(3)})
  info = pathlib.Path(directory, 'toy', '1.0.0', 'dataset_info.json')
  text = info.read_text(encoding='utf-8')
  info.write_text(text.replace('array_record', 'tfrecord'), encoding='utf-8')
  with pytest.raises(UsageError, match='prepared as tfrecord'):
    _load(directory)
