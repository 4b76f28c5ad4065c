"""The grid of cells: what each step computes, and where the exits stand.

Layers run to the right, scales downwards, the finest on top. A square is a
cell (a round one the stem); its colour is that of the step, that is of the
first exit that needs it. Squares that no exit needs are not built: they are
dotted.
"""

from __future__ import annotations

from matplotlib import patches
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ms_ranas_jax.report import figures
from ms_ranas_jax.space import grid

# In points.
_CELL = 45.0
_PITCH_X = 66.0
_PITCH_Y = 78.0
_SMALL = figures.FONT_SIZE - 2
_LEFT = 56.0
_TOP = 46.0


def _center(layer: int, scale: int) -> tuple[float, float]:
  return (
    _LEFT + (layer - grid.STEM_LAYER + 0.5) * _PITCH_X,
    _TOP + (scale + 0.5) * _PITCH_Y,
  )


def _link(
  axes: Axes,
  start: tuple[int, int],
  end: tuple[int, int],
  long: bool,
) -> None:
  """Draws a link between (layer, scale) places; `long` ones skip a layer."""
  (x0, y0), (x1, y1) = _center(*start), _center(*end)
  half = _CELL / 2
  if start[0] == end[0]:  # vertical
    points = (x0, y0 + half), (x1, y1 - half)
  elif start[1] == end[1] and not long:
    points = (x0 + half, y0), (x1 - half, y1)
  elif start[1] == end[1]:  # over the cell between
    points = (x0 + 0.3 * _CELL, y0 - half), (x1 - 0.3 * _CELL, y1 - half)
  elif not long:
    points = (x0 + half, y0 + 0.3 * _CELL), (x1 - half, y1 - 0.3 * _CELL)
  else:
    points = (x0 + 0.3 * _CELL, y0 + half), (x1 - half, y1 - 0.12 * _CELL)
  bow = -0.17 if start[1] == end[1] and long else 0.0
  axes.add_patch(
    patches.FancyArrowPatch(
      *points,
      connectionstyle=f'arc3,rad={bow}',
      arrowstyle='-|>,head_length=4,head_width=2',
      mutation_scale=1,
      shrinkA=0.5,
      shrinkB=0.5,
      color='#bdbdbd' if long else '#6f6f6f',
      linewidth=0.9 if long else 1.3,
      zorder=1 if long else 2,
    )
  )


def _box(axes: Axes, feature: grid.Feature, color: str, rounded: bool) -> None:
  x, y = _center(feature.layer, feature.scale)
  axes.add_patch(
    patches.FancyBboxPatch(
      (x - _CELL / 2, y - _CELL / 2),
      _CELL,
      _CELL,
      boxstyle=f'round,pad=0,rounding_size={_CELL / 2.6 if rounded else 3}',
      facecolor=color,
      edgecolor=figures.INK,
      linewidth=0.9,
      zorder=3,
    )
  )
  axes.text(
    x,
    y,
    f'{feature.height}×{feature.width}\n{feature.channels}',
    ha='center',
    va='center',
    color=figures.text_color(color),
    fontsize=_SMALL,
    linespacing=1.3,
    zorder=4,
  )


@figures.styled()
def draw(plan: grid.Plan) -> Figure:
  """Draws a plan.

  Args:
    plan: the network.

  Returns:
    The figure, as large as the grid needs. Each square says height x width
    and, below, the channels of what it computes.
  """
  layers, scales = plan.spec.layers, plan.spec.scales
  right = _LEFT + (layers + 1) * _PITCH_X + 4
  exits_y = _TOP + scales * _PITCH_Y + 13
  figure, axes = figures.canvas(right, exits_y + 17)
  colors = figures.exit_colors(len(plan.exits))

  for layer in grid.reduction_layers(layers):
    x, _ = _center(layer, 0)
    axes.add_patch(
      patches.Rectangle(
        (x - _PITCH_X / 2 + 2, 2),
        _PITCH_X - 4,
        _TOP + scales * _PITCH_Y - 4,
        facecolor='#f0f0f0',
        edgecolor='none',
        zorder=0,
      )
    )
    axes.text(
      x, 30, 'reduction', ha='center', va='center_baseline', fontsize=_SMALL
    )
  for layer in range(grid.STEM_LAYER, layers):
    axes.text(
      _center(layer, 0)[0],
      14,
      'stem' if layer == grid.STEM_LAYER else f'layer {layer}',
      ha='center',
      va='center_baseline',
    )
  for scale in range(scales):
    axes.text(
      8,
      _center(0, scale)[1],
      f'scale {scale}',
      ha='left',
      va='center_baseline',
    )

  for stem in plan.stems:
    feature = stem.output
    _box(axes, feature, colors[stem.step], rounded=True)
    if feature.scale:
      _link(
        axes,
        (feature.layer, feature.scale - 1),
        (feature.layer, feature.scale),
        long=False,
      )
  built = set()
  for cell in plan.cells:
    end = (cell.output.layer, cell.output.scale)
    built.add(end)
    _box(axes, cell.output, colors[cell.step], rounded=False)
    # The first cell reads the stem twice; one link says so.
    sources = {
      (feature.layer, feature.scale)
      for cell_input in cell.inputs
      for feature in (cell_input.horizontal, cell_input.diagonal)
      if feature is not None
    }
    for start in sorted(sources):
      _link(axes, start, end, long=end[0] - start[0] > 1)
  for layer in range(layers):
    for scale in range(scales):
      if (layer, scale) not in built:
        x, y = _center(layer, scale)
        axes.add_patch(
          patches.Rectangle(
            (x - _CELL / 2, y - _CELL / 2),
            _CELL,
            _CELL,
            facecolor='none',
            edgecolor='#9a9a9a',
            linestyle=(0, (1, 2)),
            linewidth=1.1,
          )
        )
  for exit_ in plan.exits:
    x, y = _center(exit_.layer, exit_.feature.scale)
    axes.add_patch(
      patches.FancyArrowPatch(
        (x, y + _CELL / 2),
        (x, exits_y - 10),
        arrowstyle='-|>,head_length=4,head_width=2',
        mutation_scale=1,
        shrinkA=0.5,
        shrinkB=0.5,
        color='#6f6f6f',
        linewidth=1.3,
      )
    )
    color = colors[exit_.index]
    axes.add_patch(
      patches.FancyBboxPatch(
        (x - 24, exits_y - 10),
        48,
        20,
        boxstyle='round,pad=0,rounding_size=9',
        facecolor=color,
        edgecolor=figures.INK,
        linewidth=0.9,
        zorder=3,
      )
    )
    axes.text(
      x,
      exits_y,
      f'exit {exit_.index}',
      ha='center',
      va='center_baseline',
      color=figures.text_color(color),
      zorder=4,
    )
  return figure
