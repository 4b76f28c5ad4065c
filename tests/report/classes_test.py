"""Tests of the pictures of the classes."""

import warnings

from matplotlib import colors as mpl_colors
import numpy as np
import pytest

from ms_ranas_jax.data import cifar_files
from ms_ranas_jax.report import classes
from ms_ranas_jax.report import style

CIFAR10 = cifar_files.CLASS_NAMES['cifar10']
CIFAR100 = cifar_files.CLASS_NAMES['cifar100']


def _matrix(names, images=40):
  rng = np.random.default_rng(len(names))
  share = rng.uniform(0.3, 0.9, len(names))
  chances = np.full((len(names),) * 2, 1 / len(names))
  chances = (1 - share[:, None]) * chances + np.diag(share)
  return np.stack([rng.multinomial(images, chance) for chance in chances])


def _accuracies(names, exits=3):
  last = np.diag(_matrix(names)) / 40
  return np.stack([last * (k + 1) / exits for k in range(exits)])


def _texts(axes):
  return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize('exits', [1, 3])
def test_accuracies_of_few_classes(exits, check_texts):
  accuracies = _accuracies(CIFAR10, exits)
  figure = classes.draw_accuracies(accuracies, CIFAR10, 0.625)
  check_texts(figure, least=10 + min(exits, 2))
  (axes,) = figure.axes
  order = np.argsort(accuracies[-1], kind='stable')
  assert [t.get_text() for t in axes.get_yticklabels()] == [
    CIFAR10[i] for i in order
  ]
  assert axes.get_lines()[0].get_xdata() == [62.5, 62.5]
  _, *marks = axes.collections
  shown = [accuracies[0], accuracies[-1]][-exits:]
  assert len(marks) == len(shown)
  for mark, values in zip(marks, shown, strict=True):
    np.testing.assert_allclose(
      mark.get_offsets(), np.stack([100 * values[order], np.arange(10)], 1)
    )


def test_of_many_classes_the_extremes_are_shown(check_texts):
  accuracies = _accuracies(CIFAR100)
  figure = classes.draw_accuracies(accuracies, CIFAR100, 0.5)
  check_texts(figure, least=20)
  (axes,) = figure.axes
  order = np.argsort(accuracies[-1], kind='stable')
  assert [t.get_text() for t in axes.get_yticklabels()] == [
    CIFAR100[i] for i in (*order[:10], *order[-10:])
  ]


def test_a_class_without_test_images_has_no_accuracy():
  accuracies = _accuracies(CIFAR10)
  accuracies[:, 3] = np.nan
  (axes,) = classes.draw_accuracies(accuracies, CIFAR10, 0.5).axes
  shown = [t.get_text() for t in axes.get_yticklabels()]
  assert len(shown) == 9 and CIFAR10[3] not in shown
  low, high = axes.get_xlim()
  assert 0 <= low < high == 100


@pytest.mark.parametrize('names', [CIFAR10, tuple(map(str, range(20)))])
def test_the_confusion_of_few_classes_is_a_table(names, check_texts):
  matrix = _matrix(names)
  matrix[2] = 0  # a class without test images
  figure = classes.draw_confusion(matrix, names)
  check_texts(figure, least=len(names))
  (axes,) = figure.axes
  counts = matrix[matrix > 0]
  rows = np.nonzero(matrix)[0]
  shares = [f'{100 * n / 40:.0f}' for n in counts]
  # A row: its name twice, above and on the left, and what is not zero.
  expected = []
  for row, name in enumerate(names):
    expected += [name, name]
    expected += [share for at, share in zip(rows, shares) if at == row]
  assert _texts(axes) == expected
  faces = [mpl_colors.to_hex(p.get_facecolor()) for p in axes.patches]
  assert faces[: len(names)] == [
    style.shade(np.sqrt(share)) for share in matrix[0] / 40
  ]
  assert set(faces[2 * len(names) : 3 * len(names)]) == {style.shade(0.0)}


def test_the_confusion_of_many_classes_is_shades(check_texts, tmp_path):
  matrix = _matrix(CIFAR100)
  figure = classes.draw_confusion(matrix, CIFAR100)
  check_texts(figure)
  (axes,) = figure.axes
  (image,) = axes.get_images()
  shades = image.get_array()
  assert shades.shape == (100, 100, 4)
  # The more the darker.
  brightness = np.asarray(shades)[..., :3].sum(-1)
  order = np.argsort(matrix, axis=None)
  assert (np.diff(brightness.ravel()[order]) <= 1e-6).all()
  # Rows are classes, the first of them above.
  assert axes.yaxis_inverted() and not axes.xaxis_inverted()
  # The same matrix gives the same bytes.
  again = classes.draw_confusion(matrix, CIFAR100)
  assert style.save(figure, str(tmp_path), 'one') == style.save(
    again, str(tmp_path), 'two'
  )
  one, two = (tmp_path / f'{name}.png' for name in ('one', 'two'))
  assert one.read_bytes() == two.read_bytes()


def test_common_mistakes():
  matrix = np.array([[9, 1, 0], [5, 2, 0], [1, 7, 0]])
  assert classes.common_mistakes(matrix) == [(2, 1), (1, 0), (0, 1), (2, 0)]
  assert classes.common_mistakes(np.diag([3, 4])) == []
  assert len(classes.common_mistakes(_matrix(CIFAR100))) == 10


def test_names_that_pictures_cannot_show(check_texts, tmp_path):
  names = (
    'cost: $1',
    '$\\frac$',
    '日本',
    '',
    ' two\nlines ',
    'the same long beginning, and an end',
    'the same long beginning, and another',
    'alone with a long name, longer than there is room for',
    'ok',
  )
  assert classes.shown_names(names) == [
    'cost: $1',
    '$\\frac$',
    'class 2',
    'class 3',
    'two lines',
    'class 5',
    'class 6',
    'alone with a long…',
    'ok',
  ]
  with warnings.catch_warnings():
    warnings.simplefilter('error')  # such as of a missing glyph
    for figure in (
      classes.draw_accuracies(_accuracies(names), names, 0.5),
      classes.draw_confusion(_matrix(names), names),
    ):
      check_texts(figure, least=len(names))
      style.save(figure, str(tmp_path), 'picture')


def test_one_class():
  names, matrix = ('all',), np.array([[3]])
  (axes,) = classes.draw_confusion(matrix, names).axes
  assert _texts(axes) == ['all', 'all', '100']
  classes.draw_accuracies(np.ones((2, 1)), names, 1.0)
