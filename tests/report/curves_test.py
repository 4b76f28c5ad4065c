"""Tests of the curves."""

import numpy as np
import pytest

from ms_ranas_jax.report import curves


def _records(epochs, num_exits, judged='valid'):
  rng = np.random.default_rng(epochs)
  records = []
  for epoch in range(epochs):
    for chunk in range(3):
      record = {
        'step': 3 * epoch + chunk,
        'epoch': epoch,
        'train_loss': 5 / (epoch + 1) + 0.1 * chunk,
        'train_accuracy': rng.uniform(0.5, 0.9, num_exits).tolist(),
      }
      if chunk == 2:
        record[f'{judged}_loss'] = 6 / (epoch + 1)
        record[f'{judged}_accuracy'] = rng.uniform(0.5, 0.9, num_exits).tolist()
      records.append(record)
  return records


def _exits(num_exits, first=15e6, last=126e6):
  rng = np.random.default_rng(0)
  return [
    {'macs': macs, 'accuracy': accuracy}
    for macs, accuracy in zip(
      np.linspace(first, last, num_exits).tolist(),
      np.sort(rng.uniform(0.9, 0.95, num_exits)).tolist(),
    )
  ]


def test_by_epoch_takes_means():
  records = [
    {'epoch': 2, 'loss': 5.0, 'accuracy': [0.5, 0.7]},
    {'epoch': 1, 'loss': 1.0},
    {'epoch': 1, 'loss': 3.0},
    {'epoch': 2, 'accuracy': [0.7, 0.9]},
  ]
  epochs, losses = curves.by_epoch(records, 'loss')
  np.testing.assert_array_equal(epochs, [2, 3])
  np.testing.assert_array_equal(losses, [2, 5])
  epochs, accuracies = curves.by_epoch(records, 'accuracy')
  np.testing.assert_array_equal(epochs, [3])
  np.testing.assert_allclose(accuracies, [[0.6, 0.8]])
  assert curves.by_epoch(records, 'unknown')[0].size == 0


@pytest.mark.parametrize(
  ('epochs', 'num_exits'), [(1, 3), (4, 1), (12, 6), (40, 19)]
)
def test_learning(epochs, num_exits, check_texts):
  records = _records(epochs, num_exits)
  figure = curves.draw_learning(records, 'valid', 'validation half')
  check_texts(figure, least=min(num_exits, 10))
  top, bottom = figure.axes
  solid = [line for line in top.get_lines() if line.get_linestyle() == '-']
  assert len(solid) == num_exits
  for k, line in enumerate(solid):
    np.testing.assert_allclose(
      line.get_ydata(),
      [100 * r['valid_accuracy'][k] for r in records if 'valid_accuracy' in r],
    )
  training, judged = bottom.get_lines()
  # Counted from 0 in the file; drawn where the epoch ends.
  np.testing.assert_array_equal(training.get_xdata(), np.arange(epochs) + 1)
  np.testing.assert_allclose(
    training.get_ydata(), 5 / np.arange(1, epochs + 1) + 0.1
  )
  np.testing.assert_allclose(judged.get_ydata(), 6 / np.arange(1, epochs + 1))
  last = records[-1]['valid_accuracy'][-1]
  texts = [text.get_text() for text in top.texts]
  assert f'exit {num_exits - 1}  {100 * last:.1f}' in texts


def test_learning_without_the_judged_half(check_texts):
  records = [
    {'step': 1, 'epoch': 0, 'train_loss': 2.0, 'train_accuracy': [0.3, 0.4]}
  ]
  check_texts(curves.draw_learning(records, 'holdout', 'held-out images'))
  assert curves.draw_learning([], 'holdout', 'held-out images') is None


@pytest.mark.parametrize('num_exits', [1, 3, 10, 19])
def test_anytime(num_exits, check_texts):
  exits = _exits(num_exits)
  figure = curves.draw_anytime(exits)
  check_texts(figure)
  (axes,) = figure.axes
  (line,) = axes.get_lines()
  assert line.get_drawstyle() == 'steps-post'
  np.testing.assert_allclose(
    line.get_xdata()[:-1], [exit_['macs'] / 1e6 for exit_ in exits]
  )
  np.testing.assert_allclose(
    line.get_ydata()[:-1], [100 * exit_['accuracy'] for exit_ in exits]
  )
  assert axes.get_xlabel() == 'budget per image, 10⁶ macs'
  texts = [text.get_text() for text in axes.texts]
  assert texts.count(str(num_exits - 1)) == 1


@pytest.mark.parametrize(
  ('first', 'last', 'unit'),
  [(12, 900, 'macs'), (3e3, 8e5, '10³ macs'), (2e8, 3e9, '10⁹ macs')],
)
def test_units(first, last, unit, check_texts):
  figure = curves.draw_anytime(_exits(3, first, last))
  check_texts(figure)
  assert figure.axes[0].get_xlabel() == f'budget per image, {unit}'


@pytest.mark.parametrize('num_exits', [0, 1, 6])
def test_budgeted(num_exits, check_texts):
  points = [
    {'q': 1.0, 'macs': 50e6, 'accuracy': 0.93},
    {'q': 0.5, 'macs': 20e6, 'accuracy': 0.91},
    {'q': 1.5, 'macs': 90e6, 'accuracy': 0.94},
  ]
  figure = curves.draw_budgeted(points, _exits(num_exits) if num_exits else ())
  check_texts(figure)
  (axes,) = figure.axes
  (line,) = axes.get_lines()
  np.testing.assert_allclose(line.get_xdata(), [20, 50, 90])
  np.testing.assert_allclose(line.get_ydata(), [91, 93, 94])
  texts = [text.get_text() for text in axes.texts]
  assert texts == [str(k) for k in range(num_exits)]
