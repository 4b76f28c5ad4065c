"""Tests of the pictures of the weights."""

import numpy as np
import pytest
from scipy import special

from ms_ranas_jax.baselines import cells
from ms_ranas_jax.report import alphas
from ms_ranas_jax.report import style


def _weights(nodes, epochs, num_operations=8):
  rng = np.random.default_rng(nodes)
  edges = nodes * (nodes + 3) // 2
  steps = 0.1 * rng.normal(size=(epochs + 1, edges, num_operations))
  return special.softmax(np.cumsum(steps, axis=0), axis=-1)


@pytest.mark.parametrize(('nodes', 'epochs'), [(1, 0), (2, 3), (4, 50), (5, 1)])
def test_history(nodes, epochs, primitives, check_texts):
  weights = _weights(nodes, epochs)
  figure = alphas.draw_history(
    weights, primitives, style.operation_styles(primitives)
  )
  check_texts(figure, least=weights.shape[1] + len(primitives))
  assert len(figure.axes) == weights.shape[1]
  for edge, axes in enumerate(figure.axes):
    lines = axes.get_lines()[:-1]  # the last is where all weigh the same
    assert len(lines) == len(primitives)
    for operation, line in enumerate(lines):
      np.testing.assert_array_equal(
        line.get_ydata(), weights[:, edge, operation]
      )
    low, high = axes.get_ylim()
    assert low < weights.min() and high > weights.max()
    np.testing.assert_allclose(axes.get_lines()[-1].get_ydata(), 1 / 8)
  best = primitives[weights[-1, 1].argmax()]
  assert (
    figure.axes[1]._left_title.get_text() == f'$c_{{k-1}}$ → node 0\n{best}'
  )


def test_where_all_weigh_the_same_with_logits_of_edges(primitives):
  weights = _weights(2, 3)
  weights[:, :2] /= 2
  weights[:, 2:] /= 3
  figure = alphas.draw_history(
    weights, primitives, style.operation_styles(primitives)
  )
  levels = [axes.get_lines()[-1].get_ydata()[0] for axes in figure.axes]
  np.testing.assert_allclose(levels, [1 / 16] * 2 + [1 / 24] * 3)


@pytest.mark.parametrize('nodes', [1, 4])
def test_final(nodes, primitives, check_texts):
  weights = _weights(nodes, 20)[-1]
  kept = cells.DARTS_V2.normal[: 2 * nodes]
  figure = alphas.draw_final(weights, primitives, kept)
  check_texts(figure, least=len(weights) * 9)
  (axes,) = figure.axes
  numbers = [t.get_text() for t in axes.texts if t.get_text()[0].isdigit()]
  assert numbers == [f'{100 * weight:.1f}' for weight in weights.ravel()]
  frames = [
    patch
    for patch in axes.patches
    if patch.get_edgecolor()[3] and patch.get_linewidth() > 2
  ]
  assert len(frames) == 2 * nodes
  # The first kept edge is sep_conv_3x3 (the fifth operation) of edge 0: its
  # frame lies on the shaded cell with that weight.
  cell = axes.patches[4]
  assert frames[0].get_x() == pytest.approx(cell.get_x() + 0.5)
  assert frames[0].get_y() == pytest.approx(cell.get_y() + 0.5)
