"""How well each class is known, and which are taken for each other."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib import font_manager
from matplotlib import patches
from matplotlib.figure import Figure
import numpy as np

from ms_ranas_jax.report import html_page
from ms_ranas_jax.report import style

# With more classes than this not all of them have room for a name.
_MOST_NAMED = 20
# Of so many classes the extremes are shown then, on either side.
_EXTREMES = 10
_MOST_MISTAKES = 10
_LONGEST_NAME = 18
_ROW = 20.0  # points


def add(page: html_page.Page, content: Mapping[str, Any]) -> None:
  """Adds pictures and tables of the classes.

  Args:
    page: the page, within its section about them.
    content: of `evaluate/classes.json`.
  """
  names = content['class_names']
  matrix = np.asarray(content['confusion'])
  accuracies = np.array(content['accuracies'], np.float64)  # None is nan
  few = len(names) <= _MOST_NAMED
  judged = np.isfinite(accuracies[-1]).sum()
  which = f'of {judged} classes'
  if judged > _MOST_NAMED:
    which = (
      f'of {2 * _EXTREMES} of {judged} classes, those that the last exit knows '
      'least and best'
    )
  page.figure(
    draw_accuracies(accuracies, names, matrix.trace() / matrix.sum()),
    'class_accuracy',
    'Test accuracy of the classes at the first and at the last exit.',
    f'Test accuracy {which}, at the first and at the last exit. The dotted '
    'line is the accuracy of the last exit over all images.',
  )
  page.figure(
    draw_confusion(matrix, names),
    'confusion',
    'Table of the classes that the last exit takes for each other.',
    'What the last exit takes the images of a class for: a row is a class, a '
    'column an answer, and a row adds up to 100 %. '
    + (
      'Empty is none; 0 is less than half a percent.'
      if few
      else 'The darker the more; numbers are those of the table of classes.'
    ),
  )
  mistakes = common_mistakes(matrix)
  if mistakes:
    page.text('The most common mistakes of the last exit:')
    images = matrix.sum(axis=1)
    page.table(
      ('class', 'taken for', 'images', 'of the class, %'),
      (
        (
          names[true],
          names[answer],
          f'{matrix[true, answer]:,}',
          f'{100 * matrix[true, answer] / images[true]:.1f}',
        )
        for true, answer in mistakes
      ),
    )
  page.table(
    (
      'number',
      'class',
      'images',
      *(f'exit {k}, %' for k in range(len(accuracies))),
    ),
    (
      (
        str(number),
        name,
        f'{images:,}',
        *(_percent(value) for value in accuracies[:, number]),
      )
      for number, (name, images) in enumerate(
        zip(names, matrix.sum(axis=1).tolist(), strict=True)
      )
    ),
    folded='Accuracy of every class at every exit',
  )


def _percent(share: float) -> str:
  return '–' if np.isnan(share) else f'{100 * share:.1f}'


def common_mistakes(matrix: np.ndarray) -> list[tuple[int, int]]:
  """Returns the pairs (class, answer) of most images, most first.

  Args:
    matrix: (classes, classes), a row per class, a column per answer.
  """
  mistakes = matrix - np.diag(np.diag(matrix))
  order = np.argsort(-mistakes, axis=None, kind='stable')[:_MOST_MISTAKES]
  pairs = zip(*np.unravel_index(order, matrix.shape), strict=True)
  return [(int(i), int(j)) for i, j in pairs if mistakes[i, j]]


def shown_names(names: Sequence[str]) -> list[str]:
  """Returns names as pictures can show them: short, of glyphs that there are.

  What would be of no use is the number, as in the table of classes.

  Args:
    names: of the classes.
  """
  path = font_manager.findfont(style.FONT)
  glyphs = font_manager.get_font(path).get_charmap()
  texts = [' '.join(name.split()) for name in names]
  texts = [
    text
    if len(text) <= _LONGEST_NAME
    else f'{text[: _LONGEST_NAME - 1].rstrip()}…'
    for text in texts
  ]
  times = collections.Counter(texts)
  return [
    text
    if text and times[text] == 1 and all(ord(c) in glyphs for c in text)
    else f'class {number}'
    for number, text in enumerate(texts)
  ]


def _room(names: Sequence[str]) -> float:
  """Returns the width of the longest name in points."""
  # A dollar sign begins no formula.
  return max(style.text_width(name.replace('$', '0')) for name in names)


@style.styled()
def draw_accuracies(
  accuracies: np.ndarray, names: Sequence[str], overall: float
) -> Figure:
  """Draws the accuracy of classes, by that of the last exit.

  Args:
    accuracies: (exits, classes), nan where a class has no image.
    names: of the classes.
    overall: accuracy of the last exit over all images.

  Returns:
    The figure: a mark for the first and for the last exit in a row per class;
    where there are many classes, of the lowest and the highest alone.
  """
  last = accuracies[-1]
  order = np.argsort(last, kind='stable')[: np.isfinite(last).sum()]
  gap = 0
  if len(order) > _MOST_NAMED:
    order = np.concatenate([order[:_EXTREMES], order[-_EXTREMES:]])
    gap = _EXTREMES
  shown = shown_names(names)
  rows = np.arange(len(order), dtype=np.float64)
  rows[gap:] += 0.8 * bool(gap)
  height = _ROW * (rows[-1] + 1)
  left = 14 + _room([shown[i] for i in order])
  top, bottom = 26.0, 44.0
  width = style.CHART_WIDTH * style.POINTS_PER_INCH
  whole = top + height + bottom
  figure = Figure(
    figsize=(style.CHART_WIDTH, whole / style.POINTS_PER_INCH),
  )
  axes = figure.add_axes(
    (left / width, bottom / whole, (width - left - 14) / width, height / whole)
  )
  axes.axvline(
    100 * overall, color=style.FAINT, linestyle=(0, (1, 1.3)), linewidth=1.2
  )
  first = accuracies[0, order]
  colors = style.exit_colors(len(accuracies))
  axes.hlines(
    rows, 100 * first, 100 * last[order], color=style.HAIR, linewidth=2.0
  )
  exits = {0: first, len(accuracies) - 1: last[order]}
  for k, values in exits.items():
    axes.scatter(
      100 * values,
      rows,
      s=42,
      c=colors[k],
      edgecolors=style.INK,
      linewidths=0.8,
      zorder=3 + k,
      label=f'exit {k}',
      clip_on=False,
    )
  axes.set_ylim(-0.5, rows[-1] + 0.5)
  low = min(100 * first.min(), 100 * last[order].min())
  axes.set_xlim(max(0.0, low - 3), 100.0)
  axes.set_yticks(rows, [shown[i] for i in order], parse_math=False)
  axes.tick_params(axis='y', length=0)
  axes.set_xlabel('test accuracy, %')
  figure.legend(
    loc='upper right',
    bbox_to_anchor=(0.99, 1 - 2 / whole),
    ncols=2,
    borderaxespad=0,
    handletextpad=0.1,
    columnspacing=0.9,
  )
  return figure


@style.styled()
def draw_confusion(matrix: np.ndarray, names: Sequence[str]) -> Figure:
  """Draws which classes are taken for which.

  Args:
    matrix: (classes, classes) images, a row per class, a column per answer.
    names: of the classes.

  Returns:
    The figure: a table of percents of a row where the classes are few, shades
    alone where they are many.
  """
  images = matrix.sum(axis=1, keepdims=True)
  shares = matrix / np.maximum(images, 1)
  if len(names) <= _MOST_NAMED:
    return _draw_table(matrix, shares, shown_names(names))
  figure = Figure(figsize=(style.CHART_WIDTH, style.CHART_WIDTH))
  axes = figure.add_axes((0.13, 0.12, 0.85, 0.85))
  # Of the root, so that what is rare is seen at all.
  axes.imshow(
    colormaps['Blues'](np.sqrt(shares)),
    interpolation='none',
    aspect='auto',
  )
  axes.set_xlabel('answer, by the number of the class')
  axes.set_ylabel('class')
  for spine in axes.spines.values():
    spine.set_visible(True)
  return figure


def _draw_table(
  matrix: np.ndarray, shares: np.ndarray, names: Sequence[str]
) -> Figure:
  """Draws a table with names on both sides and a percentage in each cell."""
  column = 27.0
  slant = _room(names)
  left, top = 14 + slant, 24 + slant * np.sin(np.deg2rad(45))
  overhang = slant * np.cos(np.deg2rad(45)) - column / 2
  figure, axes = style.canvas(
    left + len(names) * column + max(overhang, 0) + 6,
    top + len(names) * _ROW + 6,
  )
  for i, name in enumerate(names):
    axes.text(
      left + (i + 0.5) * column,
      top - 5,
      name,
      rotation=45,
      rotation_mode='anchor',
      ha='left',
      va='center',
      parse_math=False,
    )
    axes.text(
      left - 7,
      top + (i + 0.5) * _ROW,
      name,
      ha='right',
      va='center_baseline',
      parse_math=False,
    )
    for j, share in enumerate(shares[i]):
      color = style.shade(np.sqrt(share))
      axes.add_artist(
        patches.Rectangle(
          (left + j * column + 0.5, top + i * _ROW + 0.5),
          column - 1,
          _ROW - 1,
          facecolor=color,
          edgecolor='none',
        )
      )
      if matrix[i, j]:
        axes.text(
          left + (j + 0.5) * column,
          top + (i + 0.5) * _ROW,
          f'{100 * share:.0f}',
          ha='center',
          va='center_baseline',
          color=style.text_color(color),
          fontsize=style.FONT_SIZE - 1,
        )
  return figure
