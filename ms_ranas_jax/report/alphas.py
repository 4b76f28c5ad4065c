"""The weights (softmax of alphas) over the search, and at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib import layout_engine
from matplotlib import lines as mpl_lines
from matplotlib import patches
from matplotlib import ticker
from matplotlib.figure import Figure
import numpy as np

from ms_ranas_jax.report import cells
from ms_ranas_jax.report import style
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space.genotype import Edge

_PANEL = (1.72, 1.62)  # inches, with title
_LEGEND_COLUMNS = 3


def state_name(state: int) -> str:
  """Returns the name of a state in a picture."""
  if state < edges_lib.NUM_INPUTS:
    return cells.INPUT_NAMES[state]
  return f'node {state - edges_lib.NUM_INPUTS}'


@style.styled()
def draw_history(
  weights: np.ndarray,
  primitives: Sequence[str],
  operation_styles: Mapping[str, tuple[str, style.Dashes]],
) -> Figure:
  """Draws the weights over the epochs, one panel per edge.

  The panels stand in a triangle: a row per node, a column per state that it
  reads. Each names the operation that is strongest at the end. The legend
  stands on the left of the top, where a phone shows it with the first panels.

  Args:
    weights: (epochs + 1, edges, operations).
    primitives: the operations, in the order of the last axis.
    operation_styles: from `style.operation_styles`.

  Returns:
    The figure.
  """
  edges = edges_lib.edge_list(edges_lib.num_nodes(weights.shape[1]))
  rows = edges[-1][0] + 1
  legend_height = 0.22 * -(-len(primitives) // _LEGEND_COLUMNS) + 0.1
  figure = Figure(
    figsize=(
      max(0.5 + (rows + 1) * _PANEL[0], style.CHART_WIDTH),
      0.35 + rows * _PANEL[1] + legend_height,
    ),
    layout=layout_engine.ConstrainedLayoutEngine(w_pad=0.09),
  )
  grid = figure.add_gridspec(rows, rows + 1)
  epochs = np.arange(len(weights))
  low, high = float(weights.min()), float(weights.max())
  margin = max(0.06 * (high - low), 1e-3)
  # Where all weigh the same: rows sum to one, or those of a node together do.
  even = [
    weights[-1, rows].mean() for rows in edges_lib.node_rows(weights.shape[1])
  ]
  for e, (node, state) in enumerate(edges):
    axes = figure.add_subplot(grid[node, state])
    for o, name in enumerate(primitives):
      color, dashes = operation_styles[name]
      axes.plot(
        epochs,
        weights[:, e, o],
        color=color,
        linestyle=dashes,
        marker='o' if len(epochs) == 1 else None,
        markersize=3,
      )
    axes.axhline(even[node], color=style.HAIR, linewidth=1.0, zorder=0)
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlim(0, max(len(epochs) - 1, 1))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(3, integer=True))
    axes.yaxis.set_major_locator(ticker.MaxNLocator(4))
    axes.set_title(
      f'{state_name(state)} → node {node}\n'
      f'{primitives[int(weights[-1, e].argmax())]}',
      linespacing=1.25,
      fontsize=style.FONT_SIZE - 1,
    )
    if node == rows - 1:
      axes.set_xlabel('epoch')
    else:
      axes.tick_params(labelbottom=False)
    if state == 0:
      axes.set_ylabel('weight')
    else:
      axes.tick_params(labelleft=False)
  handles = [
    mpl_lines.Line2D(
      [],
      [],
      color=operation_styles[name][0],
      linestyle=operation_styles[name][1],
      linewidth=2.2,
      label=name,
    )
    for name in primitives
  ]
  figure.legend(
    handles=handles,
    loc='outside upper left',
    ncols=_LEGEND_COLUMNS,
    handlelength=2.4,
    columnspacing=1.4,
  )
  return figure


@style.styled()
def draw_final(
  weights: np.ndarray,
  primitives: Sequence[str],
  kept: Sequence[Edge] = (),
) -> Figure:
  """Draws the weights of one epoch as a table shaded by weight.

  Args:
    weights: (edges, operations).
    primitives: the operations, in the order of the last axis.
    kept: the edges of the genotype, which get a frame.

  Returns:
    The figure.
  """
  edges = edges_lib.edge_list(edges_lib.num_nodes(len(weights)))
  num_operations = len(primitives)
  row, column, head = 20.0, 38.0, 10.0
  names = [f'{state_name(state)} → node {node}' for node, state in edges]
  left = 14 + max(style.text_width(name) for name in names)
  slant = max(style.text_width(name) for name in primitives)
  top = 14 + slant * np.sin(np.deg2rad(45)) + head
  # The nodes are set apart by a little room.
  starts = [top + e * row + 6 * node for e, (node, _) in enumerate(edges)]
  overhang = slant * np.cos(np.deg2rad(45)) - column / 2
  figure, axes = style.canvas(
    left + num_operations * column + max(overhang, 0) + 6,
    starts[-1] + row + 6,
  )
  largest = float(weights.max())
  framed = {
    (row, operation)
    for row, (operation, _) in zip(
      edges_lib.genotype_rows(kept), kept, strict=True
    )
  }
  for o, name in enumerate(primitives):
    axes.text(
      left + (o + 0.5) * column,
      top - 5,
      name,
      rotation=45,
      rotation_mode='anchor',
      ha='left',
      va='center',
    )
  for e in range(len(edges)):
    axes.text(
      left - 7, starts[e] + row / 2, names[e], ha='right', va='center_baseline'
    )
    for o, name in enumerate(primitives):
      share = weights[e, o] / largest
      color = style.shade(share)
      axes.add_artist(
        patches.Rectangle(
          (left + o * column + 0.5, starts[e] + 0.5),
          column - 1,
          row - 1,
          facecolor=color,
          edgecolor='none',
        )
      )
      axes.text(
        left + (o + 0.5) * column,
        starts[e] + row / 2,
        f'{100 * weights[e, o]:.1f}',
        ha='center',
        va='center_baseline',
        color=style.text_color(color),
        fontsize=style.FONT_SIZE - 1,
      )
      if (e, name) in framed:
        axes.add_artist(
          patches.Rectangle(
            (left + o * column + 1, starts[e] + 1),
            column - 2,
            row - 2,
            facecolor='none',
            edgecolor=style.ACCENT,
            linewidth=2.4,
            zorder=3,
          )
        )
  return figure
