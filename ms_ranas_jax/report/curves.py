"""Learning curves, the anytime curve and the budgeted curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import lines as mpl_lines
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from ms_ranas_jax.report import style

# With more exits than this, only some can be named beside their curves.
_MOST_LABELS = 10
_MARKED_UP_TO = 30


def by_epoch(
  records: Sequence[Mapping[str, Any]], field: str
) -> tuple[np.ndarray, np.ndarray]:
  """Returns a metric per epoch: the mean over the lines of each epoch.

  Lines count epochs from 0; here an epoch is the number of epochs done at its
  end, as in the pictures of the weights, where 0 is the start.

  Args:
    records: lines of a `metrics.jsonl`; those without the field are passed
      over.
    field: a metric that is a number, or a list with one number per exit.

  Returns:
    (epochs,) the epochs done, ascending, and (epochs,) or (epochs, exits)
    the means, float64; both are empty where no line has the field.
  """
  groups: dict[float, list[Any]] = {}
  for record in records:
    if record.get(field) is not None and 'epoch' in record:
      groups.setdefault(record['epoch'], []).append(record[field])
  epochs = sorted(groups)
  means = [np.mean(np.asarray(groups[e], np.float64), axis=0) for e in epochs]
  return np.asarray(epochs, np.float64) + 1, np.asarray(means, np.float64)


def end_labels(
  axes: Axes,
  x: float,
  values: Sequence[float] | np.ndarray,
  texts: Sequence[str],
) -> None:
  """Writes labels to the right of the axes, at their values but apart.

  Args:
    axes: their limits are settled.
    x: where the lines end.
    values: where they end.
    texts: what to write beside each.
  """
  figure_height = style.figure_of(axes).get_figheight() * style.POINTS_PER_INCH
  height = axes.get_position().height * figure_height
  low, high = axes.get_ylim()
  line = 1.2 * style.FONT_SIZE / height * (high - low)
  order = np.argsort(values, kind='stable')
  places = style.spread(
    np.asarray(values)[order], np.full(max(len(values) - 1, 0), line)
  )
  # Not beyond the axes, where they would meet the title or the axis label.
  places += min(0.0, high - places[-1])
  places += max(0.0, low - places[0])
  for index, place in zip(order, places):
    axes.annotate(
      texts[index],
      xy=(x, values[index]),
      xytext=(1.06, (place - low) / (high - low)),
      textcoords='axes fraction',
      va='center',
      ha='left',
      annotation_clip=False,
      arrowprops={
        'arrowstyle': '-',
        'color': style.FAINT,
        'linewidth': 0.6,
        'relpos': (0, 0.5),
        'shrinkA': 0,
        'shrinkB': 2,
      },
    )


def _labelled_exits(num_exits: int) -> list[int]:
  count = min(num_exits, _MOST_LABELS)
  places = np.linspace(0, num_exits - 1, count).round().astype(int)
  return [int(place) for place in dict.fromkeys(places)]


@style.styled()
def draw_learning(
  records: Sequence[Mapping[str, Any]],
  judged: str,
  judged_name: str,
) -> Figure | None:
  """Draws accuracy per exit and loss against epochs.

  Args:
    records: lines of a `metrics.jsonl`.
    judged: the prefix of the fields that are not of training: 'valid' or
      'holdout', as in `valid_accuracy` and `valid_loss`.
    judged_name: what to call them.

  Returns:
    The figure, or None where no line has a training loss yet.
  """
  loss_epochs, losses = by_epoch(records, 'train_loss')
  if not len(loss_epochs):
    return None
  figure = Figure(figsize=(style.CHART_WIDTH, 5.4))
  # By hand: the labels on the right need their room at a known place.
  top = figure.add_axes((0.15, 0.455, 0.61, 0.475))
  bottom = figure.add_axes((0.15, 0.1, 0.61, 0.3), sharex=top)
  epochs, accuracies = by_epoch(records, 'train_accuracy')
  judged_epochs, judged_accuracies = by_epoch(records, f'{judged}_accuracy')
  marker = 'o' if len(loss_epochs) <= _MARKED_UP_TO else None
  shown = None
  for x, values, solid in (
    (epochs, accuracies, False),
    (judged_epochs, judged_accuracies, True),
  ):
    if not len(x):
      continue
    values = 100 * values.reshape(len(x), -1)
    num_exits = values.shape[1]
    colors = style.exit_colors(num_exits)
    for k, color in enumerate(colors):
      # Dotted lines of many exits would hide the solid ones.
      if not solid and num_exits > 3 and 0 < k < num_exits - 1:
        continue
      top.plot(
        x,
        values[:, k],
        color=color,
        linestyle='-' if solid else (0, (1, 1.3)),
        linewidth=1.8 if solid else 1.2,
        marker=marker if solid or len(x) == 1 else None,
        markersize=3.5,
        markerfacecolor=color if solid else style.PAPER,
      )
    shown = x, values
  if shown is not None:
    x, values = shown
    chosen = _labelled_exits(values.shape[1])
    end_labels(
      top,
      x[-1],
      values[-1, chosen],
      [f'exit {k}  {values[-1, k]:.1f}' for k in chosen],
    )
  top.set_ylabel('accuracy, %')
  top.tick_params(labelbottom=False)
  names = {True: judged_name, False: 'training'}
  handles = [
    mpl_lines.Line2D(
      [],
      [],
      color=style.INK,
      linestyle='-' if solid else (0, (1, 1.3)),
      linewidth=1.8 if solid else 1.2,
      marker=marker if solid or len(loss_epochs) == 1 else None,
      markersize=3.5,
      markerfacecolor=style.INK if solid else style.PAPER,
      label=names[solid],
    )
    for solid in (True, False)
  ]
  figure.legend(
    handles=handles,
    loc='upper left',
    bbox_to_anchor=(0.14, 0.995),
    ncols=2,
    borderaxespad=0,
  )
  bottom.plot(
    loss_epochs,
    losses,
    color=style.INK,
    linestyle=(0, (1, 1.3)),
    linewidth=1.2,
    marker=marker,
    markersize=3.5,
    markerfacecolor=style.PAPER,
  )
  x, values = by_epoch(records, f'{judged}_loss')
  if len(x):
    bottom.plot(x, values, color=style.INK, marker=marker, markersize=3.5)
  bottom.set_ylabel('loss')
  bottom.set_xlabel('epoch')
  if len(loss_epochs) == 1:
    bottom.set_xlim(loss_epochs[0] - 1, loss_epochs[0] + 1)
  bottom.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
  return figure


def unit_of(largest: float, metric: str) -> tuple[float, str]:
  """Returns what to divide numbers of an axis by, and their unit then.

  Args:
    largest: the largest of them.
    metric: what they count.
  """
  for factor, power in ((1e9, '10⁹'), (1e6, '10⁶'), (1e3, '10³')):
    if largest >= factor:
      return factor, f'{power} {metric}'
  return 1.0, metric


def _megas(macs: Sequence[float]) -> tuple[np.ndarray, str]:
  """Scales macs for an axis; returns them and the unit."""
  found = np.asarray(macs, np.float64)
  factor, unit = unit_of(found.max(), 'macs')
  return found / factor, unit


def _name_exits(
  axes: Axes, x: np.ndarray, y: np.ndarray, last_x: float, above: bool
) -> None:
  """Marks exits and writes their numbers above or below the marks."""
  colors = style.exit_colors(len(x))
  axes.scatter(
    x, y, c=colors, s=42, zorder=4, edgecolors=style.INK, linewidths=0.8
  )
  width = axes.get_position().width * style.figure_of(axes).get_figwidth()
  inch = last_x / width
  placed = -np.inf
  for k in range(len(x)):
    # A number that would touch the one before is left out; the last wins.
    is_last = k == len(x) - 1
    near_last = not is_last and x[-1] - x[k] < 0.17 * inch
    if x[k] - placed < 0.17 * inch or near_last:
      continue
    placed = x[k]
    axes.annotate(
      str(k),
      xy=(x[k], y[k]),
      xytext=(0, 6 if above else -6),
      textcoords='offset points',
      ha='center',
      va='bottom' if above else 'top',
      zorder=5,
    )


@style.styled()
def draw_anytime(exits: Sequence[Mapping[str, Any]]) -> Figure:
  """Draws the accuracy that a budget buys, as a step curve.

  Args:
    exits: of `evaluate/anytime.json`: "accuracy" and "macs" of each.

  Returns:
    The figure.
  """
  macs, unit = _megas([exit_['macs'] for exit_ in exits])
  accuracies = 100 * np.asarray([exit_['accuracy'] for exit_ in exits])
  figure = Figure(figsize=(style.CHART_WIDTH, 3.8))
  axes = figure.add_axes((0.15, 0.145, 0.815, 0.83))
  right = 1.06 * macs[-1]
  axes.step(
    [*macs, right],
    [*accuracies, accuracies[-1]],
    where='post',
    color=style.INK,
    linewidth=1.4,
    zorder=3,
  )
  low, high = accuracies.min(), accuracies.max()
  room = max(0.18 * (high - low), 1.0)
  axes.set_ylim(low - room, high + 1.4 * room)
  axes.set_xlim(0, right)
  axes.axvspan(0, macs[0], color='#f0f0f0', zorder=0, linewidth=0)
  if macs[0] > 0.2 * right:
    axes.text(
      macs[0] / 2,
      0.5,
      'no answer\nyet',
      transform=axes.get_xaxis_transform(),
      ha='center',
      va='center',
    )
  _name_exits(axes, macs, accuracies, right, above=True)
  axes.set_xlabel(f'budget per image, {unit}')
  axes.set_ylabel('test accuracy, %')
  axes.yaxis.set_major_locator(ticker.MaxNLocator(6))
  return figure


@style.styled()
def draw_budgeted(
  points: Sequence[Mapping[str, Any]],
  exits: Sequence[Mapping[str, Any]] = (),
) -> Figure:
  """Draws accuracy against the average cost of an image.

  Args:
    points: of `evaluate/budgeted.json`: "accuracy" and "macs" of each.
    exits: of `evaluate/anytime.json`, to compare with; may be empty.

  Returns:
    The figure: a line for early leaving, and a mark per exit for a network in
    which all images leave at that exit.
  """
  points = sorted(points, key=lambda point: point['macs'])
  everything = [*points, *exits]
  scaled, unit = _megas([point['macs'] for point in everything])
  accuracies = 100 * np.asarray([point['accuracy'] for point in everything])
  count = len(points)
  figure = Figure(figsize=(style.CHART_WIDTH, 3.8))
  axes = figure.add_axes((0.15, 0.145, 0.815, 0.775))
  axes.plot(
    scaled[:count],
    accuracies[:count],
    color=style.ACCENT,
    marker='o',
    markersize=2.5,
    linewidth=1.8,
    zorder=3,
  )
  low, high = accuracies.min(), accuracies.max()
  room = max(0.08 * (high - low), 0.5)
  axes.set_ylim(low - 2 * room, high + room)
  right = 1.06 * scaled.max()
  axes.set_xlim(0, right)
  handles = [
    mpl_lines.Line2D(
      [],
      [],
      color=style.ACCENT,
      marker='o',
      markersize=3,
      label='sure images leave early',
    )
  ]
  if exits:
    _name_exits(axes, scaled[count:], accuracies[count:], right, above=False)
    handles.append(
      mpl_lines.Line2D(
        [],
        [],
        color='none',
        marker='o',
        markersize=6.5,
        markerfacecolor=style.exit_colors(3)[1],
        markeredgecolor=style.INK,
        label='all leave at exit k',
      )
    )
  figure.legend(
    handles=handles,
    loc='upper left',
    bbox_to_anchor=(0.14, 0.995),
    ncols=2,
    borderaxespad=0,
    columnspacing=1.4,
  )
  axes.set_xlabel(f'average cost per image, {unit}')
  axes.set_ylabel('test accuracy, %')
  axes.yaxis.set_major_locator(ticker.MaxNLocator(6))
  return figure
