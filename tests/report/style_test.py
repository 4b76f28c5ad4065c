"""Tests of the style of the figures and of saving them."""

from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure
import numpy as np
from PIL import Image
import pytest

from ms_ranas_jax.report import style


@pytest.mark.parametrize(
  ('wanted', 'gaps', 'want'),
  [
    ([], [], []),
    ([3.0], [], [3]),
    ([0, 10, 20], [2, 2], [0, 10, 20]),
    # Two at one place are moved by half a gap each.
    ([5, 5], [2], [4, 6]),
    # In the wrong order they meet in the middle.
    ([6, 4], [2], [4, 6]),
    # Three pooled around their mean; the fourth is far.
    ([1, 1, 1, 9], [2, 2, 2], [-1, 1, 3, 9]),
    ([0, 0, 3], [1, 4], [-1, 0, 4]),
  ],
)
def test_spread_by_hand(wanted, gaps, want):
  np.testing.assert_allclose(style.spread(wanted, gaps), want)


def test_spread_moves_least():
  rng = np.random.default_rng(0)
  wanted = rng.uniform(0, 10, 8)
  gaps = rng.uniform(0, 2, 7)
  got = style.spread(wanted, gaps)
  assert (np.diff(got) >= gaps - 1e-9).all()
  # No feasible point nearby is closer to what was wanted.
  for _ in range(300):
    other = got + 0.05 * rng.normal(size=8)
    if (np.diff(other) >= gaps).all():
      assert ((got - wanted) ** 2).sum() <= ((other - wanted) ** 2).sum()


def test_text_colors():
  assert style.text_color('#ffff00') == '#000000'
  assert style.text_color('#440154') == '#ffffff'


def test_text_width_grows_with_text_and_size():
  width = style.text_width('sep_conv_3x3', 10)
  assert 50 < width < 90
  assert style.text_width('sep_conv_3x3', 20) == pytest.approx(
    2 * width, rel=0.02
  )
  assert style.text_width(' ') == 0


def test_operations_differ_in_more_than_colour():
  names = [f'op{i}' for i in range(16)]
  styles = style.operation_styles(names)
  assert len({str(styles[name]) for name in names}) == 16
  # A longer list does not change the styles of its beginning.
  assert style.operation_styles(names[:5]) == {
    name: styles[name] for name in names[:5]
  }


@pytest.mark.parametrize('count', [1, 2, 19])
def test_exit_colors(count):
  assert len(set(style.exit_colors(count))) == count


@style.styled()
def _picture():
  figure = Figure(figsize=(2, 1))
  axes = figure.add_subplot()
  axes.plot([0, 1], [0, 1], label='line')
  axes.fill_between([0, 1], [0, 1], hatch='/')
  axes.legend()
  return figure


def test_saved_figures_are_the_same_bytes_and_well_formed(tmp_path):
  saved = {}
  for run in ('a', 'b'):
    # The user's own settings do not matter.
    with matplotlib.rc_context({'font.size': 10 if run == 'a' else 30}):
      svg = style.save(_picture(), str(tmp_path), run)
    assert (tmp_path / f'{run}.svg').read_text('utf-8') == svg
    saved[run] = svg, (tmp_path / f'{run}.png').read_bytes()
  assert saved['a'] == saved['b']
  root = ElementTree.fromstring(saved['a'][0])
  assert root.get('width') == '144pt'
  assert 'date' not in saved['a'][0].lower()
  with Image.open(tmp_path / 'a.png') as image:
    assert image.size == (2 * style.PNG_DPI, style.PNG_DPI)
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    'a.png', 'a.svg', 'b.png', 'b.svg',
  ]  # fmt: skip


def test_settings_of_the_user_are_left_alone():
  before = dict(matplotlib.rcParams)
  _picture()
  assert dict(matplotlib.rcParams) == before
