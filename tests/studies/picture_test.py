"""The pictures show every entry, and published numbers as such."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
import numpy as np
import pytest

from ms_ranas_jax.report import style as style
from ms_ranas_jax.studies import entries as entries_lib
from ms_ranas_jax.studies import picture
from ms_ranas_jax.studies import table as table_lib


@pytest.fixture
def table(tiny_config, result):
  """Makes a table of four entries with two seeds."""

  def table(name, published, num_exits=3):
    entries = tuple(
      entries_lib.Entry(f'entry{i}', f'entry {i}, of {i} scales')
      for i in range(4)
    )
    rng = np.random.default_rng(0)
    outcomes = {
      (entry.name, seed): result(
        np.sort(rng.uniform(0.5, 0.9, num_exits)),
        (1e6 * np.cumsum(rng.uniform(1, 3, num_exits))).astype(int),
        params=int(rng.integers(100_000, 300_000)),
      )
      for entry in entries
      for seed in (0, 1)
    }
    return table_lib.build_table(
      entries_lib.Figure('Title', 'anytime', entries),
      tiny_config(figure=name, published=published),
      outcomes,
      0.1,
    )

  return table


def _texts(figure):
  with style.styled():
    FigureCanvasAgg(figure).draw()
  return [t for t in figure.findobj(Text) if t.get_text() and t.get_visible()]


def _words(figure):
  return ' | '.join(text.get_text() for text in _texts(figure))


_CASES = [
  ('figure4', 'settings', 1),
  ('figure5', 'settings', 3),
  ('figure6', 'exits', 3),
  ('figure9', 'anytime', 3),
]


@pytest.mark.parametrize('published', [False, True])
@pytest.mark.parametrize(('name', 'kind', 'num_exits'), _CASES)
def test_every_entry_is_named_and_inside(
  table, name, kind, num_exits, published
):
  figure = picture.draw(table(name, published, num_exits), kind)
  words = _words(figure)
  for index in range(4):
    assert f'entry {index}, of {index} scales' in words
  assert 'accuracy, %' in words
  width, height = figure.get_size_inches()
  box = figure.get_tightbbox()
  assert min(box.x0, box.y0) > -0.01
  assert box.x1 < width + 0.01 and box.y1 < height + 0.01


@pytest.mark.parametrize(
  ('name', 'kind', 'label'),
  [
    ('figure6', 'exits', 'networks of one exit (published, see the table)'),
    ('figure9', 'anytime', 'MSDNet, 10 exits (published)'),
    ('figure10', 'anytime', 'ahead of MSDNet (published)'),
  ],
)
def test_published_numbers_are_labelled(table, name, kind, label):
  assert 'published' not in _words(picture.draw(table(name, False), kind))
  assert label in _words(picture.draw(table(name, True), kind))


def test_published_costs_are_drawn_in_their_own_unit(table):
  words = _words(picture.draw(table('figure9', False), 'anytime'))
  assert '10⁶ macs' in words and 'MSDNet' not in words
  words = _words(picture.draw(table('figure9', True), 'anytime'))
  assert '10⁶ flops (MSDNet)' in words and 'macs' not in words


def _bars(figure):
  """Returns (x, y, half the bar) of each mean that is drawn, in axes 0."""
  found = []
  for container in figure.axes[0].containers:
    line, _, (bars,) = container
    for (x, y), segment in zip(line.get_xydata(), bars.get_segments()):
      found.append((x, y, float(np.ptp(segment, axis=0).max() / 2)))
  return found


def test_means_and_spreads_are_drawn(table):
  content = table('figure4', False, 1)
  drawn = _bars(picture.draw(content, 'settings'))
  expected = [
    (100 * row['last_exit']['mean'], place, 100 * row['last_exit']['spread'])
    for place, row in enumerate(content['measured'])
  ]
  np.testing.assert_allclose(drawn, expected)


def test_a_single_seed_has_no_spread_and_is_drawn(table):
  content = table('figure4', False, 1)
  for row in content['measured']:
    row['last_exit'] = table_lib.statistic(row['last_exit']['values'][:1])
  assert all(bar == 0 for *_, bar in _bars(picture.draw(content, 'settings')))
