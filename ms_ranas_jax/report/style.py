"""The common style of the figures, and how they are saved.

Figures are made with matplotlib's object interface only: no pyplot, no global
figure list, no display. Every function that draws is wrapped in `styled`, so a
user's own matplotlib settings neither change a picture nor are changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import functools
import io
import os
from typing import Literal

from matplotlib import colormaps
from matplotlib import colors as mpl_colors
from matplotlib import font_manager
from matplotlib import style as mpl_style
from matplotlib import textpath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from ms_ranas_jax.runtime import files

INK = '#222222'
FAINT = '#8a8a8a'
HAIR = '#d9d9d9'
PAPER = '#ffffff'
ACCENT = '#d55e00'
FONT = 'DejaVu Sans'
FONT_SIZE = 11.0
# In inches. A phone shows a chart of this width at 0.7 of its size, where
# FONT_SIZE is still 10 pixels.
CHART_WIDTH = 5.2
POINTS_PER_INCH = 72.0
PNG_DPI = 160

# Okabe and Ito's colour-blind-safe palette, without its yellow, which is too
# light for lines on white; the grey stands in for it.
PALETTE = (
  '#7f7f7f',
  '#e69f00',
  '#56b4e9',
  '#000000',
  '#009e73',
  '#0072b2',
  '#d55e00',
  '#cc79a7',
)
# Lines also differ in dashes: colour is never the only mark.
Dashes = Literal['-'] | tuple[float, tuple[float, ...]]
DASHES: tuple[Dashes, ...] = ('-', (0, (4, 1.5)), (0, (1, 1.2)))

_STYLE = {
  'axes.edgecolor': INK,
  'axes.labelcolor': INK,
  'axes.labelsize': FONT_SIZE,
  'axes.linewidth': 0.8,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.titlelocation': 'left',
  'axes.titlesize': FONT_SIZE,
  'figure.facecolor': PAPER,
  'font.family': 'sans-serif',
  'font.sans-serif': [FONT],
  'font.size': FONT_SIZE,
  'legend.fontsize': FONT_SIZE,
  'legend.frameon': False,
  'lines.linewidth': 1.6,
  'savefig.dpi': PNG_DPI,
  'svg.fonttype': 'path',
  'svg.hashsalt': 'ms_ranas_jax',
  'text.color': INK,
  'xtick.color': INK,
  'xtick.labelsize': FONT_SIZE,
  'ytick.color': INK,
  'ytick.labelsize': FONT_SIZE,
}


@contextlib.contextmanager
def styled() -> Iterator[None]:
  """Applies the style; also a decorator: `@figures.styled()`."""
  with mpl_style.context(['default', _STYLE]):
    yield


def operation_styles(
  operations: Sequence[str],
) -> dict[str, tuple[str, Dashes]]:
  """Returns (colour, dashes) of each operation, by its place in the list.

  Args:
    operations: names; pass the same list to every figure of a report.
  """
  return {
    name: (
      PALETTE[index % len(PALETTE)],
      DASHES[(index % len(PALETTE) + index // len(PALETTE)) % len(DASHES)],
    )
    for index, name in enumerate(operations)
  }


def exit_colors(num_exits: int) -> list[str]:
  """Returns one colour per exit (step of computation), from dark to light.

  The scale is the same in every figure, and its lightness rises evenly, so
  that the order is seen without colour vision too.

  Args:
    num_exits: how many.
  """
  # The light end of the map is too pale for lines on white.
  places = np.linspace(0.0, 0.86, max(num_exits, 2))[:num_exits]
  return [mpl_colors.to_hex(colormaps['viridis'](place)) for place in places]


def shade(share: float) -> str:
  """Returns a colour between near white and a blue that ink is legible on.

  Args:
    share: in [0, 1].
  """
  return mpl_colors.to_hex(colormaps['Blues'](0.02 + 0.58 * share))


def text_color(background: str) -> str:
  """Returns black or white, whichever is easier to read on a background."""
  channels = np.array(mpl_colors.to_rgb(background))
  linear = np.where(
    channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
  )
  luminance = float(linear @ [0.2126, 0.7152, 0.0722])
  # Where the WCAG contrasts with black and with white are equal.
  return '#000000' if luminance > 0.179 else '#ffffff'


@functools.cache
def text_width(text: str, size: float = FONT_SIZE) -> float:
  """Returns the width of a line of text in points.

  Args:
    text: one line, without mathematics.
    size: font size in points.
  """
  if not text.strip():
    return 0.0
  font = font_manager.FontProperties(family=FONT, size=size)
  path = textpath.TextPath((0, 0), text, prop=font)
  return float(path.get_extents().width)


def spread(
  wanted: Sequence[float] | np.ndarray, gaps: Sequence[float] | np.ndarray
) -> np.ndarray:
  """Moves positions apart, and as little as possible.

  Solves `min sum (y_i - wanted_i)**2` under `y_{i+1} - y_i >= gaps_i`, by
  pooling adjacent violators.

  Args:
    wanted: (n,) positions, in the order that the result must keep.
    gaps: (n - 1,) least distances between neighbours.

  Returns:
    (n,) float64 positions.
  """
  offsets = np.concatenate([[0.0], np.cumsum(np.asarray(gaps, np.float64))])
  blocks: list[list[float]] = []  # [sum of the targets, how many]
  for target in np.asarray(wanted, np.float64) - offsets[: len(wanted)]:
    blocks.append([target, 1])
    while len(blocks) > 1 and (
      blocks[-2][0] * blocks[-1][1] > blocks[-1][0] * blocks[-2][1]
    ):
      total, count = blocks.pop()
      blocks[-1][0] += total
      blocks[-1][1] += count
  means = [total / count for total, count in blocks for _ in range(int(count))]
  return np.asarray(means) + offsets[: len(wanted)]


def figure_of(axes: Axes) -> Figure:
  """Returns the figure that axes stand in, none of its parts."""
  figure = axes.figure
  assert isinstance(figure, Figure)
  return figure


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
  """Returns a figure with one invisible axes whose unit is the point.

  The origin is the upper left corner, and y points down.

  Args:
    width: in points.
    height: in points.

  Returns:
    The figure and its axes.
  """
  figure = Figure(figsize=(width / POINTS_PER_INCH, height / POINTS_PER_INCH))
  axes = figure.add_axes((0, 0, 1, 1))
  axes.set_xlim(0, width)
  axes.set_ylim(height, 0)
  axes.set_axis_off()
  return figure, axes


@styled()
def save(figure: Figure, directory: str, name: str) -> str:
  """Writes a figure as `name.svg` and `name.png`.

  The same figure gives the same bytes: no dates, and ids from a fixed salt.

  Args:
    figure: the figure.
    directory: an existing folder.
    name: the file name without its ending.

  Returns:
    The SVG's text.
  """
  data = {}
  for kind, metadata in (
    ('svg', {'Date': None, 'Creator': None}),
    ('png', {'Software': None}),
  ):
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata)
    data[kind] = buffer.getvalue()
    files.write_bytes(os.path.join(directory, f'{name}.{kind}'), data[kind])
  return data['svg'].decode('utf-8')
