"""Means, spreads and areas against their closed forms."""

import math

import pytest

from ms_ranas_jax.studies import entries as entries_lib
from ms_ranas_jax.studies import table as table_lib


def _figure(compared=()):
  entries = tuple(entries_lib.Entry(name, name.upper()) for name in ('a', 'b'))
  return entries_lib.Figure('Title', 'anytime', entries, compared)


@pytest.fixture
def build(tiny_config):
  """Builds a table of the entries `a` and `b`; chance is 0.1."""

  def build(outcomes, compared=(), **fields):
    return table_lib.build_table(
      _figure(compared), tiny_config(**fields), outcomes, 0.1
    )

  return build


def test_mean_and_spread():
  found = table_lib.statistic([0.5, 0.7, 0.9])
  assert found['mean'] == pytest.approx(0.7)
  assert found['spread'] == pytest.approx(0.2)  # sqrt((0.04 + 0.04) / 2)
  assert found['values'] == [0.5, 0.7, 0.9]
  assert table_lib.statistic([0.5, 0.7])['spread'] == pytest.approx(
    0.2 / math.sqrt(2)
  )
  assert table_lib.statistic([0.5])['spread'] is None


@pytest.fixture
def outcomes(result):
  """Two seeds of two entries."""
  return {
    ('a', 0): result([0.4, 0.6], [100, 400]),
    ('a', 1): result([0.5, 0.6], [200, 400], params=2000),
    ('b', 0): result([0.3, 0.5], [50, 300]),
    ('b', 1): result([0.3, 0.7], [50, 300]),
  }


def test_a_table(build, outcomes):
  table = build(outcomes)
  # From the dearest first exit to the cheapest last.
  assert table['budget_range'] == [200, 300]
  a, b = table['measured']
  assert (a['label'], a['seeds']) == ('A', [0, 1])
  assert a['last_exit'] == {'mean': 0.6, 'spread': 0.0, 'values': [0.6, 0.6]}
  assert a['first_exit']['mean'] == pytest.approx(0.45)
  assert a['first_exit']['spread'] == pytest.approx(0.1 / math.sqrt(2))
  assert a['macs']['mean'] == 400
  assert a['params']['values'] == [1000, 2000]
  assert a['exits'][0]['macs']['values'] == [100, 200]
  # Over 200 to 300, A stays at its first exit.
  assert a['area']['values'] == pytest.approx([0.4, 0.5])
  # B too, until 300, where its last is reached.
  assert b['area']['values'] == pytest.approx([0.3, 0.3])
  assert (table['runs_done'], table['runs']) == (4, 4)


def test_an_area_crosses_steps_and_counts_chance(build, result):
  outcomes = {
    ('a', 0): result([0.4, 0.6], [100, 300]),
    ('b', 0): result([0.5, 0.8], [200, 250]),
  }
  # The range is that of A alone: 100 to 300.
  table = build(outcomes, compared=('a',))
  assert table['budget_range'] == [100, 300]
  a, b = (row['area']['mean'] for row in table['measured'])
  assert a == pytest.approx(0.4)
  # Chance for a half, 0.5 for a quarter, 0.8 for a quarter.
  assert b == pytest.approx(0.1 / 2 + 0.5 / 4 + 0.8 / 4)
  table = build(outcomes, compared=('b',))
  a, b = (row['area']['mean'] for row in table['measured'])
  assert (a, b) == pytest.approx((0.4, 0.5))


def test_without_a_shared_range_there_is_no_area(build, result):
  outcomes = {
    ('a', 0): result([0.4], [100]),
    ('b', 0): result([0.5], [200]),
  }
  table = build(outcomes)
  assert table['budget_range'] is None
  assert all(row['area'] is None for row in table['measured'])
  assert 'Area' not in table_lib.to_markdown(table)


def test_runs_that_are_not_done_are_left_out(build, outcomes):
  del outcomes['a', 1], outcomes['b', 0], outcomes['b', 1]
  table = build(outcomes)
  (row,) = table['measured']
  assert (row['name'], row['seeds']) == ('a', [0])
  assert row['last_exit']['spread'] is None
  assert (table['runs_done'], table['runs']) == (1, 4)
  assert '1 of 4 runs done' in table_lib.to_markdown(table)
  assert build({})['measured'] == []


def test_markdown(build, outcomes):
  lines = table_lib.to_markdown(build(outcomes)).splitlines()
  (row,) = (line for line in lines if line.startswith('| A |'))
  assert row == (
    '| A | 2 | 60.00 ± 0.00 | 45.00 ± 7.07 | 45.00 ± 7.07 | 0.00 ± 0.00 | '
    '1.5 ± 0.7 |'
  )
  columns = [line.count('|') for line in lines if line.startswith('|')]
  assert set(columns) == {8}


def test_published_numbers_are_apart_and_say_so(build, outcomes):
  assert build(outcomes, figure='figure9')['published'] == []
  table = build(outcomes, figure='figure9', published=True)
  assert [row['label'] for row in table['measured']] == ['A', 'B']
  assert {'MSDNet, 10 exits', 'DARTS, order 2', 'MS-RANAS'} <= {
    row['label'] for row in table['published']
  }
  text = table_lib.to_markdown(table)
  measured, published = text.split('Published, by others and on other terms:')
  assert '(published)' not in measured
  for line in published.splitlines():
    if line.startswith('|') and 'said' not in line and '---' not in line:
      assert '(published)' in line, line
