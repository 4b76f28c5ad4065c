"""Folders of pictures as arrays, and what is refused of them."""

import shutil

import numpy as np
from PIL import Image
import pytest

from ms_ranas_jax.data import class_folders
from ms_ranas_jax.data import datasets
from ms_ranas_jax.data import image_store
from ms_ranas_jax.data import labelled_pictures
from ms_ranas_jax.data import picture_options
from ms_ranas_jax.data import pictures
from ms_ranas_jax.data.picture_options import Options
from ms_ranas_jax.errors import UsageError

_SIDEWAYS = 6  # of EXIF: to be turned by a quarter
_COLOURS = {'blue': (0, 0, 250), 'red': (250, 0, 0)}


def _save(path, size=(6, 4), colour=(1, 2, 3), mode='RGB', **how):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new(mode, size, colour).save(path, **how)
  return path


@pytest.fixture
def flat(tmp_path):
  """Ten red and five blue pictures, in folders of their classes."""
  root = tmp_path / 'flat'
  for name, count in ('red', 10), ('blue', 5):
    for n in range(count):
      _save(root / name / f'{n}.png', colour=_COLOURS[name])
  return root


@pytest.fixture
def parts(tmp_path):
  """The same as two parts, one of them with a folder in a folder."""
  root = tmp_path / 'parts'
  for name, colour in _COLOURS.items():
    _save(root / 'train' / name / 'far' / '1.png', colour=colour)
    _save(root / 'train' / name / '2.PNG', colour=colour)
    _save(root / 'test' / name / '3.png', colour=colour)
  return root


def _read(folder, options, storage=image_store.DEFAULT):
  found = class_folders.find(str(folder), options)
  return labelled_pictures.read(found, options, storage)


def test_a_part_of_every_class_is_for_testing(flat):
  dataset = datasets.load_dataset('folder', str(flat))
  assert dataset.class_names == ('blue', 'red')
  assert dataset.image_shape == (4, 6, 3) and dataset.notes == ()
  assert np.bincount(dataset.train_labels).tolist() == [4, 8]
  assert np.bincount(dataset.test_labels).tolist() == [1, 2]
  for images, labels in (
    (dataset.train_images, dataset.train_labels),
    (dataset.test_images, dataset.test_labels),
  ):
    for image, label in zip(images, labels, strict=True):
      expected = _COLOURS[dataset.class_names[label]]
      np.testing.assert_array_equal(image, np.broadcast_to(expected, (4, 6, 3)))
  assert datasets.image_format('folder', str(flat)) == ((4, 6, 3), 2)


def test_the_split_is_always_the_same_and_of_its_fraction(flat):
  for n, path in enumerate(sorted(flat.rglob('*.png'))):
    _save(path, colour=(n, 0, 0))

  def tested(fraction):
    found = _read(flat, Options(test_fraction=fraction))
    return found.images['test'][:, 0, 0, 0].tolist()

  assert tested(0.4) == tested(0.4) and len(set(tested(0.4))) == 6
  # At least one of a class is tested, and one is trained on.
  assert len(tested(0.01)) == 2 and len(tested(0.99)) == 13


@pytest.mark.parametrize('broken', [False, True])
def test_large_images_are_read_from_a_file(flat, tmp_path, broken):
  """The same ones, also where some cannot be read."""
  for n, path in enumerate(sorted(flat.rglob('*.png'))):
    _save(path, colour=(n, 0, 0))
  if broken:
    path = flat / 'red' / '3.png'
    path.write_bytes(path.read_bytes()[:45])
  options = Options(unreadable='skip')
  expected = _read(flat, options)
  storage = image_store.Storage(0, str(tmp_path / 'cache'))
  for _ in range(2):
    found = _read(flat, options, storage)
    assert found.notes == expected.notes and len(found.notes) == broken
    for part in 'train', 'test':
      assert not found.images[part].flags.writeable
      np.testing.assert_array_equal(found.images[part], expected.images[part])
      np.testing.assert_array_equal(found.labels[part], expected.labels[part])
  # Another size is other images.
  options = Options((8, 8), unreadable='skip')
  found = _read(flat, options, storage)
  assert found.images['train'].shape[1:] == (8, 8, 3)


def test_folders_of_the_parts_are_taken_as_they_are(parts):
  dataset = datasets.load_dataset('folder', str(parts))
  assert dataset.train_labels.tolist() == [0, 0, 1, 1]
  assert dataset.test_labels.tolist() == [0, 1]
  # A class that is not tested is one all the same.
  shutil.rmtree(parts / 'test' / 'blue')
  assert datasets.load_dataset('folder', str(parts)).test_labels.tolist() == [1]


def test_what_systems_leave_is_passed_over(flat):
  for name in '.DS_Store', 'Thumbs.db', 'red/.DS_Store', 'red/desktop.ini':
    (flat / name).write_text('x')
  (flat / '.cache').mkdir()
  assert len(_read(flat, Options()).labels['train']) == 12


def test_pictures_are_read_as_predict_reads_them(flat):
  """Of other sizes, sideways, grey, with a palette, transparent, 16 bits."""
  exif = Image.Exif()
  exif[0x0112] = _SIDEWAYS
  rng = np.random.default_rng(0)
  noise = Image.fromarray(rng.integers(256, size=(9, 20, 3), dtype=np.uint8))
  noise.save(flat / 'red' / 'a.jpg', exif=exif)
  noise.convert('P').save(flat / 'red' / 'b.png')
  noise.convert('RGBA').save(flat / 'red' / 'c.webp')
  noise.convert('L').save(flat / 'red' / 'd.bmp')
  deep = rng.integers(65536, size=(9, 20), dtype=np.uint16)
  Image.fromarray(deep).save(flat / 'red' / 'e.png')
  found = _read(flat, Options(image_size=(5, 7)))
  read = np.concatenate([found.images['train'], found.images['test']])
  for path in sorted(flat.rglob('*.*')):
    expected = pictures.read(path, (5, 7, 3)).pixels
    assert any((image == expected).all() for image in read), path
  assert pictures.read_head(flat / 'red' / 'a.jpg').size == (20, 9)
  assert found.notes == (
    'pictures of 4x6 to 20x9 pixels (height x width) are scaled to 5x7, cut to '
    'the middle where their aspect ratio is another',
    '2 of 20 pictures are grey',
  )


def test_grey_pictures_have_one_channel(tmp_path):
  for name, mode in ('a', 'L'), ('b', 'LA'):
    colour = 9 if mode == 'L' else (9, 255)
    for n in range(2):
      _save(tmp_path / name / f'{n}.png', colour=colour, mode=mode)
  dataset = datasets.load_dataset('folder', str(tmp_path))
  assert dataset.image_shape == (4, 6, 1) and dataset.train_images.max() == 9


def _broken(flat):
  (flat / 'red' / 'bad.jpg').write_bytes(b'\xff\xd8\xff nothing')


def _cut_off(flat):
  noise = np.random.default_rng(0).integers(256, size=(64, 64, 3))
  path = flat / 'red' / 'bad.jpg'
  Image.fromarray(noise.astype(np.uint8)).resize((6, 4)).save(path, quality=95)
  path.write_bytes(path.read_bytes()[:-80])


def _text(flat):
  (flat / 'red' / 'bad.txt').write_text('notes')


def _beside(flat):
  _save(flat / 'bad.png')


def _linked(flat):
  outside = _save(flat.parent / 'outside.png')
  (flat / 'red' / 'bad.png').symlink_to(outside)


def _linked_folder(flat):
  (flat / 'red' / 'bad').symlink_to(flat / 'blue')


def _linked_class(flat):
  (flat / 'bad').symlink_to(flat / 'blue')


def _linked_to_itself(flat):
  (flat / 'red' / 'bad.png').symlink_to(flat / 'red' / 'bad.png')


def _bomb(flat):
  _save(flat / 'red' / 'bad.png', (30_000, 30_000), 0, '1')


_UNREADABLE = [
  (_broken, 'is no picture that can be read'),
  (_cut_off, 'is no picture that can be read'),
  (_text, r'is no picture \(\.png'),
  (_beside, 'is a file beside the folders of the classes'),
  (_linked, 'is a link to a folder, or out of'),
  (_linked_folder, 'is a link to a folder'),
  (_linked_class, 'is a link, and no folder of pictures'),
  (_linked_to_itself, 'is a link to a folder, or out of|is no picture that'),
  (_bomb, 'is no picture that can be read'),
]


@pytest.mark.parametrize(('spoil', 'why'), _UNREADABLE)
def test_what_is_no_picture_is_named_or_left_out(flat, spoil, why):
  spoil(flat)
  with pytest.raises(
    UsageError, match=rf'bad\S* ({why}).*unreadable'
  ) as caught:
    _read(flat, Options())
  assert '\n' not in str(caught.value)
  found = _read(flat, Options(unreadable='skip'))
  assert sum(map(len, found.labels.values())) == 15
  (note,) = found.notes
  assert note.startswith('1 files were left out: ') and 'bad' in note
  assert all(image.any() for image in found.images['train'])


def test_how_many_are_unreadable_is_said(flat):
  _broken(flat)
  _text(flat)
  with pytest.raises(UsageError, match=r'\(and 1 more like it\); mend or'):
    _read(flat, Options())


def _two_sizes(flat):
  _save(flat / 'red' / 'x.png', (8, 8))


def _no_pictures(flat):
  (flat / 'green').mkdir()


def _one_picture(flat):
  _save(flat / 'green' / '1.png')


def _capitals(flat):
  _save(flat / 'Red' / '1.png')


def _unprintable(flat):
  _save(flat / 'gr\neen' / '1.png')


def _one_class(flat):
  shutil.rmtree(flat / 'blue')


def _nothing(flat):
  shutil.rmtree(flat)
  flat.mkdir()


def _gone(flat):
  shutil.rmtree(flat)


def _train_alone(flat):
  _save(flat / 'train' / 'red' / '1.png')


def _test_alone(flat):
  shutil.rmtree(flat)
  _save(flat / 'test' / 'red' / '1.png')


@pytest.mark.parametrize(
  ('spoil', 'why'),
  [
    (_two_sizes, r'2 sizes \(4x6, 8x8, height x width\); set dataset\.image_'),
    (_no_pictures, 'pictures of the class green there is none; add'),
    (_one_picture, 'of the class green there is one picture, and one more'),
    (_capitals, 'the folders Red and red, which differ in capital letters'),
    (_unprintable, r"a folder 'gr\\neen'; rename it"),
    (_one_class, 'has one folder, red; give'),
    (_nothing, 'has no folder; give'),
    (_gone, 'is no folder; give'),
    (_train_alone, 'has the folder train, blue, red; give one with train and'),
    (_test_alone, 'has the folder test; give one with train and test'),
  ],
)
def test_folders_that_are_no_classes_are_refused(flat, spoil, why):
  spoil(flat)
  with pytest.raises(UsageError, match=why) as caught:
    datasets.load_dataset('folder', str(flat))
  assert '\n' not in str(caught.value)
  with pytest.raises(UsageError, match=why):
    datasets.image_format('folder', str(flat))


def test_parts_that_do_not_fit_are_refused(parts):
  with pytest.raises(UsageError, match='test_fraction = 0.3 does nothing'):
    _read(parts, Options(test_fraction=0.3))
  _save(parts / 'test' / 'green' / '1.png')
  with pytest.raises(UsageError, match='the classes green, of which .*train'):
    _read(parts, Options())
  shutil.rmtree(parts / 'test' / 'green')
  for path in (parts / 'test').rglob('*.png'):
    path.unlink()
  with pytest.raises(UsageError, match='no picture for testing'):
    _read(parts, Options())


def test_test_images_are_brought_to_the_size_of_the_training(flat, parts):
  shape = (3, 3, 1)
  found = datasets.load_test_images('folder', str(parts), shape)
  assert found.images.shape == (2, *shape) and found.labels.tolist() == [0, 1]
  found = datasets.load_test_images('folder', str(flat), shape)
  assert found.images.shape == (15, *shape)
  assert found.class_names == ('blue', 'red')
  _broken(flat)
  with pytest.raises(UsageError, match='bad.jpg is no picture'):
    datasets.load_test_images('folder', str(flat), shape)
  with pytest.raises(UsageError, match='is no folder'):
    datasets.load_test_images('folder', str(flat / 'none'), shape)


def test_options_of_other_datasets_are_refused(flat):
  options = Options(image_size=(8, 8))
  for call in datasets.load_dataset, datasets.image_format:
    with pytest.raises(UsageError, match="of 'digits' there are none"):
      call('digits', options=options)


def test_a_folder_that_may_not_be_entered_is_named(flat, monkeypatch):
  def denied(_):
    raise PermissionError(13, 'Permission denied', str(flat / 'red'))

  monkeypatch.setattr(class_folders, '_entries', denied)
  for call in datasets.load_dataset, datasets.image_format:
    with pytest.raises(UsageError, match='dataset.dir: .*Permission denied'):
      call('folder', str(flat))


@pytest.mark.parametrize(
  ('text', 'size'), [('', None), ('96', (96, 96)), ('96x128', (96, 128))]
)
def test_sizes(text, size):
  assert picture_options.parse_size(text) == size


@pytest.mark.parametrize(
  'text', ['0', '96x', 'x96', '-4', '9.5', '96x0', '96 x 96', '5000', '1x2x3']
)
def test_what_is_no_size_is_refused(text):
  with pytest.raises(UsageError, match=r"image_size is .*; give ''"):
    picture_options.parse_size(text)


def test_a_folder_has_to_be_named():
  """What is not set is not the current directory."""
  for load in (
    lambda: datasets.load_dataset('folder'),
    lambda: datasets.image_format('folder', ''),
    lambda: datasets.load_test_images('folder', '', (8, 8, 3)),
  ):
    with pytest.raises(UsageError, match='dataset.dir is not set; give a'):
      load()
