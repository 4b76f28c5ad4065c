"""Tests of the pictures of the weights."""

import numpy as np
import pytest

from ms_ranas_jax import errors
from ms_ranas_jax.report import alphas
from ms_ranas_jax.report import style
from ms_ranas_jax.space import genotype


def _weights(nodes, epochs, num_operations=8):
  rng = np.random.default_rng(nodes)
  edges = nodes * (nodes + 3) // 2
  steps = 0.1 * rng.normal(size=(epochs + 1, edges, num_operations))
  return alphas.weights_of(np.cumsum(steps, axis=0))


def test_weights_by_hand():
  got = alphas.weights_of(np.log([[1.0, 3.0], [2.0, 2.0]]))
  np.testing.assert_allclose(got, [[0.25, 0.75], [0.5, 0.5]])
  # Large alphas do not overflow.
  np.testing.assert_allclose(alphas.weights_of([1e4, 1e4]), [0.5, 0.5])


def test_edge_list():
  assert alphas.edge_list(2) == [(0, 0), (0, 1)]
  assert alphas.edge_list(5) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
  assert alphas.edge_list(14)[-1] == (3, 4)


@pytest.mark.parametrize('num_edges', [0, 1, 3, 13])
def test_edges_of_no_cell_are_refused(num_edges):
  with pytest.raises(errors.UsageError, match='fit no cell'):
    alphas.edge_list(num_edges)


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
  best = primitives[weights[-1, 1].argmax()]
  assert (
    figure.axes[1]._left_title.get_text() == f'$c_{{k-1}}$ → node 0\n{best}'
  )


@pytest.mark.parametrize('nodes', [1, 4])
def test_final(nodes, primitives, check_texts):
  weights = _weights(nodes, 20)[-1]
  kept = genotype.DARTS_V2.normal[: 2 * nodes]
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
