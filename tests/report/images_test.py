"""The sheet of examples, and what the page says of the images."""

import pathlib

import numpy as np
import pytest

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.report import html_page
from ms_ranas_jax.report import images
from ms_ranas_jax.report import inputs
from ms_ranas_jax.runtime import files

_SUMMARY = {
  'name': 'folder',
  'image_shape': [4, 8, 3],
  'mean': [0.5] * 3,
  'std': [0.2] * 3,
  'notes': ['3 of 9 pictures are grey'],
  'classes': [
    {'name': 'a <b>', 'train': 5, 'test': 1},
    {'name': 'c', 'train': 2, 'test': 1},
  ],
}
_EXAMPLES = {
  'images': np.full((3, 4, 8, 3), 7, np.uint8),
  'labels': np.array([0, 0, 1], np.int32),
}


def _write(folder, summary=None, **arrays):
  files.write_json(folder / 'images/summary.json', _SUMMARY | (summary or {}))
  files.write_npz(folder / 'images/examples.npz', **_EXAMPLES | arrays)


def test_every_example_is_drawn_in_the_row_of_its_class():
  values = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
  figure = images.draw_examples(
    np.broadcast_to(10 + values, (3, 20, 40, 1)),
    _EXAMPLES['labels'],
    ['first', 'second'],
  )
  (axes,) = figure.axes
  sheet = np.asarray(axes.images[0].get_array())
  assert sheet.shape == (42, 82, 3)
  assert sheet[:20, :40].min() == sheet[:20, :40].max() == 10
  assert sheet[0, 41, 0] == 11 and sheet[21, 0, 0] == 12
  assert sheet[21:, 41:].min() == 255  # the second class has one alone
  assert [text.get_text() for text in figure.texts] == ['first', 'second']


def test_the_page_says_what_there_is(tmp_path):
  _write(tmp_path)
  summary = inputs.read_summary(str(tmp_path))
  page = html_page.Page(str(tmp_path))
  images.add(page, summary, inputs.read_examples(str(tmp_path), summary))
  markup = page.markup('t', ())
  assert (
    'folder: 7 training and 2 test images of 4x8 pixels (height x width) with '
    '3 channels, of 2 classes with 2 to 5 training images each.'
  ) in markup
  assert '3 of 9 pictures are grey.' in markup
  assert 'a &lt;b&gt;' in markup and '<b>' not in markup
  assert (pathlib.Path(tmp_path) / 'figures/images.svg').is_file()


def test_without_a_summary_there_is_none(tmp_path):
  assert inputs.read_summary(str(tmp_path)) is None


@pytest.mark.parametrize(
  'change',
  [
    {'classes': []},
    {'classes': [{'name': 'a', 'train': 'b', 'test': 1}]},
    {'classes': [{'name': 3, 'train': 1, 'test': 1}]},
    {'name': None},
    {'image_shape': [4, 8]},
    {'image_shape': 'large'},
    {'notes': ['']},
    {'notes': 3},
  ],
)
def test_a_broken_summary_is_refused(tmp_path, change):
  _write(tmp_path, change)
  with pytest.raises(UsageError, match='summary.json'):
    inputs.read_summary(str(tmp_path))


@pytest.mark.parametrize(
  'change',
  [
    {'images': np.zeros((3, 4, 8, 1), np.uint8)},
    {'images': np.zeros((3, 4, 8, 3), np.float32)},
    {'images': np.zeros((2, 4, 8, 3), np.uint8)},
    {'labels': np.array([0, 1, 0], np.int32)},
    {'labels': np.array([0, 0, 2], np.int32)},
    {'labels': np.array([0, 0, 1])},
    {'labels': np.zeros(0, np.int32), 'images': np.zeros((0, 4, 8, 3))},
  ],
)
def test_examples_of_other_images_are_refused(tmp_path, change):
  _write(tmp_path, **change)
  with pytest.raises(UsageError, match='examples.npz holds no images'):
    inputs.read_examples(str(tmp_path), _SUMMARY)
  (tmp_path / 'images/examples.npz').unlink()
  with pytest.raises(UsageError, match='run any stage that reads images'):
    inputs.read_examples(str(tmp_path), _SUMMARY)
