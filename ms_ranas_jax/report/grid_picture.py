"""A network's layers and scales: what each step computes, where exits stand.

Layers run to the right, scales downwards, the finest on top. A square is a
cell of the grid, the features of a layer of MSDNet, or a stack of ResNet8 (a
round one the stem); its colour is that of the step, that is of the first exit
that needs it. Squares that are not built are dotted.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses

from matplotlib import patches
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.baselines import resnet8
from ms_ranas_jax.report import style
from ms_ranas_jax.space import grid

# In points.
_CELL = 45.0
_PITCH_X = 66.0
_PITCH_Y = 78.0
_SMALL = style.FONT_SIZE - 2
_LEFT = 56.0
_TOP = 46.0

Place = tuple[int, int]
AnyPlan = grid.Plan | msdnet_plan.Plan | resnet8.Plan


@dataclasses.dataclass(frozen=True)
class _Square:
  """A square: the feature that it makes, from the squares at some places."""

  feature: grid.Feature | msdnet_plan.Feature | resnet8.Feature
  step: int
  sources: tuple[Place, ...]

  @property
  def place(self) -> Place:
    return self.feature.layer, self.feature.scale


@dataclasses.dataclass(frozen=True)
class _Picture:
  """What is drawn of a plan.

  Attributes:
    layers: how many.
    scales: how many.
    squares: those of the stem first.
    marks: layer -> the word above it.
  """

  layers: int
  scales: int
  squares: tuple[_Square, ...]
  marks: Mapping[int, str]


def _stems(plan: grid.Plan | msdnet_plan.Plan) -> list[_Square]:
  """Returns those before the first layer; earlier ones are one with them."""
  return [
    _Square(
      stem.output,
      stem.step,
      ((grid.STEM_LAYER, stem.output.scale - 1),) if stem.output.scale else (),
    )
    for stem in plan.stems
    if stem.output.layer == grid.STEM_LAYER
  ]


def _places(
  features: set[grid.Feature | msdnet_plan.Feature | None],
) -> tuple[Place, ...]:
  places = {
    (max(feature.layer, grid.STEM_LAYER), feature.scale)
    for feature in features
    if feature is not None
  }
  return tuple(sorted(places))


def _picture(plan: AnyPlan) -> _Picture:
  spec = plan.spec
  if isinstance(plan, resnet8.Plan):
    sources = [(), *(((f.layer, f.scale),) for f in plan.features)]
    row = [
      _Square(feature, feature.step, source)
      for feature, source in zip(plan.features, sources)
    ]
    return _Picture(spec.layers, spec.scales, tuple(row), {})
  if isinstance(plan, grid.Plan):
    layers = grid.reduction_layers(plan.spec.layers)
    marks = dict.fromkeys(layers, 'reduction')
    # The first cell reads the stem twice; one link says so.
    rest = [
      _Square(
        cell.output,
        cell.step,
        _places({f for i in cell.inputs for f in (i.horizontal, i.diagonal)}),
      )
      for cell in plan.cells
    ]
  else:
    layers = msdnet_plan.transition_layers(plan.spec)
    marks = dict.fromkeys(layers, 'transition')
    rest = [
      _Square(
        node.output,
        node.step,
        _places({conv.source for conv in node.convolutions}),
      )
      for node in plan.nodes
    ]
  return _Picture(spec.layers, spec.scales, (*_stems(plan), *rest), marks)


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
  axes.add_artist(
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


def _box(axes: Axes, square: _Square, color: str) -> None:
  feature = square.feature
  rounded = feature.layer == grid.STEM_LAYER
  x, y = _center(feature.layer, feature.scale)
  axes.add_artist(
    patches.FancyBboxPatch(
      (x - _CELL / 2, y - _CELL / 2),
      _CELL,
      _CELL,
      boxstyle=f'round,pad=0,rounding_size={_CELL / 2.6 if rounded else 3}',
      facecolor=color,
      edgecolor=style.INK,
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
    color=style.text_color(color),
    fontsize=_SMALL,
    linespacing=1.3,
    zorder=4,
  )


@style.styled()
def draw(plan: AnyPlan) -> Figure:
  """Draws a plan.

  Args:
    plan: the network, of any family of the package.

  Returns:
    The figure, as large as the network needs. Each square says height x width
    and, below, the channels of what it computes.
  """
  picture = _picture(plan)
  layers, scales = picture.layers, picture.scales
  right = _LEFT + (layers + 1) * _PITCH_X + 4
  exits_y = _TOP + scales * _PITCH_Y + 13
  figure, axes = style.canvas(right, exits_y + 17)
  colors = style.exit_colors(len(plan.exits))

  for layer, word in picture.marks.items():
    x, _ = _center(layer, 0)
    axes.add_artist(
      patches.Rectangle(
        (x - _PITCH_X / 2 + 2, 2),
        _PITCH_X - 4,
        _TOP + scales * _PITCH_Y - 4,
        facecolor='#f0f0f0',
        edgecolor='none',
        zorder=0,
      )
    )
    axes.text(x, 30, word, ha='center', va='center_baseline', fontsize=_SMALL)
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

  for square in picture.squares:
    _box(axes, square, colors[square.step])
    for start in square.sources:
      _link(axes, start, square.place, long=square.place[0] - start[0] > 1)
  built = {square.place for square in picture.squares}
  for layer in range(layers):
    for scale in range(scales):
      if (layer, scale) not in built:
        x, y = _center(layer, scale)
        axes.add_artist(
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
    axes.add_artist(
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
    axes.add_artist(
      patches.FancyBboxPatch(
        (x - 24, exits_y - 10),
        48,
        20,
        boxstyle='round,pad=0,rounding_size=9',
        facecolor=color,
        edgecolor=style.INK,
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
      color=style.text_color(color),
      zorder=4,
    )
  return figure
