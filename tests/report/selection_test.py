"""Tests of the pictures of costs, candidates and seeds."""

import numpy as np
import pytest

from ms_ranas_jax.report import selection
from ms_ranas_jax.report import style


def _records(epochs, seeds):
  rng = np.random.default_rng(epochs)
  return [
    {
      'step': epoch,
      'epoch': epoch,
      'expected_cost': 2.1e6 + 1e5 * epoch,
      'derived_cost': 2e6 + 1e5 * epoch,
      'derived_cost_by_seed': rng.uniform(1e6, 4e6, seeds).tolist(),
      'valid_loss_by_seed': rng.uniform(1, 4, seeds).tolist(),
    }
    for epoch in range(epochs)
  ]


@pytest.mark.parametrize(('epochs', 'target'), [(1, 0.0), (5, 2.3e6), (40, 0)])
def test_cost(epochs, target, check_texts):
  figure = selection.draw_cost(_records(epochs, 3), 'macs', target)
  check_texts(figure, least=8)
  (axes,) = figure.axes
  assert axes.get_ylabel() == '10⁶ macs'
  lines = {line.get_label(): line for line in axes.lines}
  assert {n for n in lines if n[0] != '_'} == {'expected', 'exact'} | (
    {'target'} if target else set()
  )
  np.testing.assert_allclose(
    lines['exact'].get_ydata(), 2 + 0.1 * np.arange(epochs)
  )
  np.testing.assert_array_equal(
    lines['expected'].get_xdata(), 1 + np.arange(epochs)
  )
  # A thin line for each seed.
  thin = [line for line in axes.lines if line.get_color() == style.HAIR]
  assert len(thin) == 3


def test_no_cost_before_the_first_epoch_ends():
  records = [{'step': 1, 'epoch': 0, 'expected_cost': 1.0}]
  assert selection.draw_cost(records, 'macs', 0.0) is None
  # A random search has none at all.
  assert selection.draw_cost([{'step': 1, 'epoch': 0}], 'macs', 0.0) is None


def _candidates(count):
  return {
    'budget_range': [0, 1e6],
    'candidates': [
      {
        'sources': [{'seed': 0, 'epoch': 1}] if index % 2 else [{'random': 1}],
        'macs': [1, 1000 * (index + 1)],
        'score': 0.5 + 0.01 * index,
        'allowed': index != 2,
        'chosen': index == 1,
      }
      for index in range(count)
    ],
  }


@pytest.mark.parametrize('count', [1, 2, 9])
def test_candidates(count, check_texts):
  figure = selection.draw_candidates(_candidates(count))
  check_texts(figure, least=5)
  (axes,) = figure.axes
  places = {c.get_label(): c.get_offsets() for c in axes.collections}
  assert sum(len(p) for name, p in places.items() if name != 'chosen') == count
  if count > 2:
    np.testing.assert_allclose(places['chosen'], [[2, 51]])
    np.testing.assert_allclose(places['not allowed'], [[3, 52]])
    assert len(places['of an epoch']) == 4


@pytest.mark.parametrize(('seeds', 'epochs'), [(2, 1), (8, 20), (12, 3)])
def test_seeds(seeds, epochs, check_texts):
  content = {
    'chosen': 5,
    'seeds': [{'seed': 4 + index} for index in range(seeds)],
    'agreement': {'operations': np.full((seeds, seeds), 0.25).tolist()},
  }
  figure = selection.draw_seeds(_records(epochs, seeds), content)
  check_texts(figure, least=8)
  losses, table = figure.axes
  assert len(losses.lines) == seeds
  (chosen,) = (
    line for line in losses.lines if line.get_color() == style.ACCENT
  )
  np.testing.assert_allclose(
    chosen.get_ydata(),
    [r['valid_loss_by_seed'][1] for r in _records(epochs, seeds)],
  )
  assert [text.get_text() for text in losses.texts] == ['seed 5']
  numbers = [text.get_text() for text in table.texts]
  assert numbers == (['25'] * seeds * (seeds - 1) if seeds <= 10 else [])


def test_seeds_without_their_losses(check_texts):
  content = {
    'chosen': 1,
    'seeds': [{'seed': 0}, {'seed': 1}],
    'agreement': {'operations': [[1, 0.5], [0.5, 1]]},
  }
  figure = selection.draw_seeds([], content)
  check_texts(figure, least=3)
  assert not any(len(line.get_xdata()) for line in figure.axes[0].lines)
