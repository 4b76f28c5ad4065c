"""The figures of a study, in the manner of the paper's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import types
from typing import Any

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from ms_ranas_jax.report import style as style_lib

Table = Mapping[str, Any]
_MARKS = 'osD^vPX*'
# Of the palette; its grey is left to published numbers.
_COLORS = (5, 6, 4, 7, 1, 3, 2)
# Costs further apart than this are drawn on a logarithmic axis.
_WIDE = 5.0
_ROW = 0.34  # inches, of a line of a chart of settings or of a legend


def draw(table: Table, kind: str) -> Figure:
  """Draws a study.

  Args:
    table: the content of `study/table.json`.
    kind: of the figure, see `studies.entries.Figure`.
  """
  return _KINDS[kind](table)


def _numbers(
  exits: Sequence[Mapping[str, Any]], field: str, scale: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns means and spreads of the exits, (exits,); no spread is zero."""
  means = [scale * exit_[field]['mean'] for exit_ in exits]
  spreads = [scale * (exit_[field]['spread'] or 0.0) for exit_ in exits]
  return np.asarray(means), np.asarray(spreads)


@style_lib.styled()
def _draw_settings(table: Table) -> Figure:
  """A line per entry: its seeds, their mean and spread."""
  rows = table['measured']
  labels = [row['label'] for row in rows]
  left = (
    max(map(style_lib.text_width, labels)) / style_lib.POINTS_PER_INCH + 0.25
  )
  width, height = left + 3.4, _ROW * len(rows) + 1.05
  figure = Figure(figsize=(width, height))
  axes = figure.add_axes(
    (left / width, 0.6 / height, 3.25 / width, _ROW * len(rows) / height)
  )
  several = any(len(row['exits']) > 1 for row in rows)
  marks = [('last_exit', 'last exit', style_lib.PALETTE[5], 'o')]
  if several:
    marks.append(('first_exit', 'first exit', style_lib.PALETTE[1], 's'))
  for field, name, color, mark in marks:
    shown = [
      (place, row[field])
      for place, row in enumerate(rows)
      if field == 'last_exit' or len(row['exits']) > 1
    ]
    for place, value in shown:
      seeds = 100 * np.asarray(value['values'])
      axes.plot(
        seeds,
        np.full(len(seeds), place),
        linestyle='none',
        marker='|',
        markersize=9,
        color=color,
        alpha=0.7,
      )
    axes.errorbar(
      [100 * value['mean'] for _, value in shown],
      [place for place, _ in shown],
      xerr=[100 * (value['spread'] or 0.0) for _, value in shown],
      linestyle='none',
      marker=mark,
      markersize=6,
      color=color,
      ecolor=color,
      capsize=3,
      label=name,
    )
  axes.set_yticks(range(len(rows)), labels)
  axes.set_ylim(len(rows) - 0.5, -0.5)
  axes.tick_params(axis='y', length=0)
  axes.grid(axis='x', color=style_lib.HAIR, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.set_xlabel('test accuracy, %')
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
  figure.legend(
    loc='upper left',
    bbox_to_anchor=(left / width - 0.02, 1.0),
    ncols=2,
    borderaxespad=0.2,
    columnspacing=1.4,
  )
  return figure


def _styles(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
  """Returns colour, dashes and mark of each line."""
  return {
    label: {
      'color': style_lib.PALETTE[_COLORS[place % len(_COLORS)]],
      'linestyle': style_lib.DASHES[place % len(style_lib.DASHES)],
      'marker': _MARKS[place % len(_MARKS)],
    }
    for place, label in enumerate(labels)
  }


def _legend(figure: Figure, axes: Axes) -> None:
  """Puts a legend of one column below the axes."""
  handles, labels = axes.get_legend_handles_labels()
  figure.legend(
    handles, labels, loc='lower left', borderaxespad=0.4, handlelength=3.2
  )


def _cost_axis(axes: Axes, largest: Sequence[float], name: str) -> None:
  """Names an axis of costs, logarithmic where networks differ a lot."""
  if max(largest) > _WIDE * min(largest):
    axes.set_xscale('log')
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter('{x:g}'))
    axes.xaxis.set_minor_formatter(
      ticker.LogFormatter(minor_thresholds=(1.5, 0.6))
    )
    name += ' (log)'
  else:
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
  axes.set_xlabel(name)


@style_lib.styled()
def _draw_exits(table: Table) -> Figure:
  """Two panels: every exit against its macs, and against params read."""
  rows = table['measured']
  networks = [
    row for row in table['published'] if row['params'] and row['accuracies']
  ]
  lines = len(rows) + bool(networks)
  chart, below = 3.1, 0.55 + 0.25 * lines
  height, width = chart + below + 0.15, 2 * style_lib.CHART_WIDTH - 1.4
  figure = Figure(figsize=(width, height))
  panels = figure.subplots(1, 2, sharey=True)
  figure.subplots_adjust(
    left=0.085,
    right=0.985,
    top=1 - 0.15 / height,
    bottom=(below + 0.1) / height,
    wspace=0.07,
  )
  styles = _styles([row['label'] for row in rows])
  for axes, field, scale, name in (
    (panels[0], 'macs', 1e-6, 'cost up to the exit, 10⁶ macs'),
    (panels[1], 'params', 1e-3, 'params read up to the exit, 10³'),
  ):
    largest = []
    for row in rows:
      x, x_spread = _numbers(row['exits'], field, scale)
      y, y_spread = _numbers(row['exits'], 'accuracy', 100)
      largest.append(x[-1])
      axes.errorbar(
        x,
        y,
        xerr=x_spread,
        yerr=y_spread,
        elinewidth=0.8,
        markersize=5,
        label=row['label'],
        **styles[row['label']],
      )
    if field == 'params' and networks:
      axes.plot(
        [scale * row['params'] for row in networks],
        [100 * row['accuracies'][-1] for row in networks],
        linestyle='none',
        marker='*',
        color=style_lib.FAINT,
        label='networks of one exit (published, see the table)',
      )
      largest += [scale * row['params'] for row in networks]
    axes.grid(color=style_lib.HAIR, linewidth=0.8)
    axes.set_axisbelow(True)
    _cost_axis(axes, largest, name)
  panels[0].set_ylabel('test accuracy, %')
  panels[0].yaxis.set_major_locator(ticker.MaxNLocator(6))
  _legend(figure, panels[1])
  return figure


@style_lib.styled()
def _draw_anytime(table: Table) -> Figure:
  """The step curves of the anytime setting, with the exits on them."""
  rows = table['measured']
  curves = [row for row in table['published'] if row['flops_msdnet']]
  ahead = [row for row in table['published'] if row['ahead_from']]
  field, unit = 'macs', '10⁶ macs'
  if table['published']:
    # The unit of the published costs.
    field, unit = 'flops_msdnet', '10⁶ flops (MSDNet)'
  lines = len(rows) + len(curves) + len(ahead)
  chart, below = 3.6, 0.55 + 0.25 * lines
  height, width = chart + below + 0.1, 1.25 * style_lib.CHART_WIDTH
  figure = Figure(figsize=(width, height))
  axes = figure.add_axes(
    (0.12, (below + 0.15) / height, 0.85, (chart - 0.1) / height)
  )
  styles = _styles([row['label'] for row in rows])
  drawn = []
  for row in rows:
    x, x_spread = _numbers(row['exits'], field, 1e-6)
    y, y_spread = _numbers(row['exits'], 'accuracy', 100)
    drawn.append((x, y, x_spread, y_spread, row['label'], styles[row['label']]))
  for row in curves:
    x = 1e-6 * np.asarray(row['flops_msdnet'])
    y = 100 * np.asarray(row['accuracies'])
    drawn.append(
      (
        *(x, y, np.zeros_like(x), np.zeros_like(x)),
        f'{row["label"]} (published)',
        {'color': style_lib.FAINT, 'linestyle': ':', 'marker': '.'},
      )
    )
  right = 1.08 * max(x[-1] for x, *_ in drawn)
  for x, y, x_spread, y_spread, label, style in drawn:
    axes.step(
      [*x, right],
      [*y, y[-1]],
      where='post',
      color=style['color'],
      linestyle=style['linestyle'],
    )
    axes.errorbar(
      x,
      y,
      xerr=x_spread,
      yerr=y_spread,
      elinewidth=0.8,
      capsize=2,
      color=style['color'],
      linestyle='none',
      marker=style['marker'],
      markersize=5,
    )
    axes.plot([], [], label=label, **style)
  for row in ahead:
    axes.axvline(
      1e-6 * row['ahead_from'],
      color=style_lib.FAINT,
      linestyle=(0, (4, 3)),
      linewidth=1.0,
      label='from here MS-RANAS is ahead of MSDNet (published)',
    )
  if table['budget_range'] and field == 'macs':
    low, high = (1e-6 * value for value in table['budget_range'])
    axes.axvspan(
      low, high, color='#f0f0f0', zorder=0, label='range of the area'
    )
  axes.grid(axis='y', color=style_lib.HAIR, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.yaxis.set_major_locator(ticker.MaxNLocator(6))
  axes.set_ylabel('test accuracy, %')
  _cost_axis(axes, [x[-1] for x, *_ in drawn], f'budget per image, {unit}')
  axes.set_xlim(right=right)
  _legend(figure, axes)
  return figure


_KINDS: Mapping[str, Callable[[Table], Figure]] = types.MappingProxyType(
  {
    'settings': _draw_settings,
    'exits': _draw_exits,
    'anytime': _draw_anytime,
  }
)
