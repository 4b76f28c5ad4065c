"""Costs over a search, its candidates, and its seeds side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import collections
from matplotlib import patches
from matplotlib import ticker
from matplotlib.figure import Figure
import numpy as np

from ms_ranas_jax.report import curves
from ms_ranas_jax.report import html_page
from ms_ranas_jax.report import style

Records = Sequence[Mapping[str, Any]]
_BY_SEED = '_by_seed'


def add(
  page: html_page.Page,
  records: Records,
  candidates: Mapping[str, Any] | None,
  seeds: Mapping[str, Any] | None,
  config: Any,
) -> None:
  """Adds the figures that the files of a search allow.

  Args:
    page: the page, within its section about the search.
    records: lines of `search/metrics.jsonl`.
    candidates: content of `search/candidates.json`, or None.
    seeds: content of `search/seeds.json`, or None.
    config: content of `config.json`, of which nothing is sure.
  """
  metric, target = _of_cost(config)
  figure = draw_cost(records, metric, target)
  if figure is not None:
    page.figure(
      figure,
      'search_cost',
      f'Expected and derived {metric} against epochs of the search.',
      f'The {metric} of the network to be derived: expected, the mean over '
      'each epoch, and exact, of the cells that DARTS would derive after it.'
      + ('' if seeds is None else ' Thin lines are the seeds, of exact cost.'),
    )
  if candidates is not None:
    low, high = candidates['budget_range']
    page.figure(
      draw_candidates(candidates),
      'search_candidates',
      'Area under the accuracy-cost curve against cost, of each candidate.',
      'The candidates, judged with the params of the search on the validation '
      'half: mean accuracy under a budget drawn evenly from '
      f'{low / 1e6:,.4g} to {high / 1e6:,.4g} · 10⁶ macs, against the macs of '
      'the last exit.',
    )
  if seeds is not None:
    page.figure(
      draw_seeds(records, seeds),
      'search_seeds',
      'Validation loss of each seed, and how far their genotypes agree.',
      'The seeds: validation loss, means over each epoch, and how many of the '
      'operations that two genotypes keep, on the same edges, are the same '
      f'(in %). The search goes with seed {seeds["chosen"]}.',
    )


def _of_cost(config: Any) -> tuple[str, float]:
  """Returns the metric and the target that a config names, if it does."""
  for name in ('search', 'cost'):
    config = config.get(name) if isinstance(config, Mapping) else None
  if not isinstance(config, Mapping):
    return 'macs', 0.0
  target = config.get('target')
  is_number = isinstance(target, (int, float)) and not isinstance(target, bool)
  return str(config.get('metric', 'macs')), float(target) if is_number else 0.0


@style.styled()
def draw_cost(records: Records, metric: str, target: float) -> Figure | None:
  """Draws the expected and the exact cost against epochs.

  Args:
    records: lines of `search/metrics.jsonl`.
    metric: what is counted, for the axis.
    target: of the search; 0 is none.

  Returns:
    The figure, or None where no epoch has ended yet.
  """
  epochs, derived = curves.by_epoch(records, 'derived_cost')
  expected_epochs, expected = curves.by_epoch(records, 'expected_cost')
  if not len(epochs) or not len(expected_epochs):
    return None
  _, by_seed = curves.by_epoch(records, 'derived_cost' + _BY_SEED)
  factor, unit = curves.unit_of(max(derived.max(), expected.max()), metric)
  figure = Figure(figsize=(style.CHART_WIDTH, 3.8))
  axes = figure.add_axes((0.15, 0.145, 0.815, 0.75))
  for each in by_seed.T:
    axes.plot(epochs, each / factor, color=style.HAIR, linewidth=1.0)
  marker = 'o' if len(epochs) <= 30 else None
  for x, values, dashes, color, label in (
    (expected_epochs, expected, (0, (4, 1.5)), style.INK, 'expected'),
    (epochs, derived, '-', style.ACCENT, 'exact'),
  ):
    axes.plot(
      x,
      values / factor,
      color=color,
      linestyle=dashes,
      marker=marker,
      markersize=3.5,
      label=label,
    )
  if target:
    axes.axhline(
      target / factor,
      color=style.FAINT,
      linestyle=(0, (1, 1.3)),
      linewidth=1.2,
      label='target',
    )
  if len(epochs) == 1:
    axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
  figure.legend(
    loc='upper left',
    bbox_to_anchor=(0.14, 0.995),
    ncols=3,
    borderaxespad=0,
    columnspacing=1.4,
  )
  axes.set_xlabel('epoch')
  axes.set_ylabel(unit)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
  axes.yaxis.set_major_locator(ticker.MaxNLocator(6))
  return figure


@style.styled()
def draw_candidates(content: Mapping[str, Any]) -> Figure:
  """Draws the score of every candidate against its cost.

  Args:
    content: of `search/candidates.json`.

  Returns:
    The figure: filled marks for genotypes of epochs, open ones for random
    genotypes, crosses for those that cost what they may not, a ring around the
    chosen one.
  """
  candidates = content['candidates']
  macs = np.asarray([c['macs'][-1] for c in candidates], np.float64)
  factor, unit = curves.unit_of(macs.max(), 'macs')
  areas = 100 * np.asarray([c['score'] for c in candidates], np.float64)
  kinds = [_kind_of(candidate) for candidate in candidates]
  figure = Figure(figsize=(style.CHART_WIDTH, 3.8))
  axes = figure.add_axes((0.15, 0.145, 0.815, 0.75))
  looks: dict[str, dict[str, Any]] = {
    'of an epoch': {'marker': 'o', 'c': style.PALETTE[5]},
    'random': {
      'marker': 'o',
      'facecolors': 'none',
      'edgecolors': style.PALETTE[5],
    },
    'not allowed': {'marker': 'x', 'c': style.FAINT},
  }
  for kind, look in looks.items():
    chosen = [k == kind for k in kinds]
    if any(chosen):
      axes.scatter(
        macs[chosen] / factor, areas[chosen], s=34, zorder=3, label=kind, **look
      )
  best = [bool(candidate.get('chosen')) for candidate in candidates]
  if any(best):
    axes.scatter(
      macs[best] / factor,
      areas[best],
      s=150,
      facecolors='none',
      edgecolors=style.ACCENT,
      linewidths=2.0,
      zorder=4,
      label='chosen',
    )
  legend = figure.legend(
    loc='upper left',
    bbox_to_anchor=(0.09, 0.995),
    ncols=4,
    borderaxespad=0,
    columnspacing=0.9,
    handletextpad=0.1,
  )
  for handle in legend.legend_handles:
    if isinstance(handle, collections.PathCollection):
      handle.set_sizes([34])
  axes.margins(0.08)
  axes.set_xlabel(f'cost of the last exit, {unit}')
  axes.set_ylabel('area, %')
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_locator(ticker.MaxNLocator(6))
  return figure


def _kind_of(candidate: Mapping[str, Any]) -> str:
  if not candidate.get('allowed', True):
    return 'not allowed'
  is_of_epoch = any('epoch' in source for source in candidate['sources'])
  return 'of an epoch' if is_of_epoch else 'random'


@style.styled()
def draw_seeds(records: Records, content: Mapping[str, Any]) -> Figure:
  """Draws the validation loss of every seed, and how far they agree.

  Args:
    records: lines of `search/metrics.jsonl`.
    content: of `search/seeds.json`.

  Returns:
    The figure.
  """
  names = [str(record['seed']) for record in content['seeds']]
  chosen = str(content['chosen'])
  figure = Figure(figsize=(1.5 * style.CHART_WIDTH, 3.8))
  axes = figure.add_axes((0.11, 0.145, 0.33, 0.815))
  epochs, losses = curves.by_epoch(records, 'valid_loss' + _BY_SEED)
  if losses.shape[1:] != (len(names),):  # of another run, or not there
    epochs, losses = np.zeros(0), np.zeros((0, len(names)))
  for index, values in enumerate(losses.T):
    axes.plot(
      epochs,
      values,
      color=style.ACCENT if names[index] == chosen else style.FAINT,
      linewidth=2.0 if names[index] == chosen else 1.2,
      zorder=3 if names[index] == chosen else 2,
      marker='o' if len(epochs) <= 30 else None,
      markersize=3.5,
    )
  if len(epochs):
    if len(epochs) == 1:
      axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
    curves.end_labels(
      axes,
      epochs[-1],
      [losses[-1, names.index(chosen)]],
      [f'seed {chosen}'],
    )
  axes.set_xlabel('epoch')
  axes.set_ylabel('validation loss')
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
  _draw_agreement(figure, names, content['agreement']['operations'])
  return figure


def _draw_agreement(
  figure: Figure, names: Sequence[str], shares: Sequence[Sequence[float]]
) -> None:
  """Draws the table of equal operations, without its diagonal."""
  count = len(names)
  width = 0.37
  height = width * figure.get_figwidth() / figure.get_figheight()
  axes = figure.add_axes((0.62, 0.145, width, min(height, 0.74)))
  axes.set_xlim(0, count)
  axes.set_ylim(count, 0)
  for row in range(count):
    for column in range(count):
      if row == column:
        continue
      share = shares[row][column]
      color = style.shade(share)
      axes.add_artist(
        patches.Rectangle(
          (column + 0.03, row + 0.03), 0.94, 0.94, facecolor=color
        )
      )
      if count <= 10:
        axes.text(
          column + 0.5,
          row + 0.5,
          f'{100 * share:.0f}',
          ha='center',
          va='center_baseline',
          color=style.text_color(color),
        )
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_ticks(np.arange(count) + 0.5, names)
    axis.set_tick_params(length=0)
  for spine in axes.spines.values():
    spine.set_visible(False)
  axes.set_xlabel('seed')
  axes.set_ylabel('seed')
  axes.set_title('equal operations, %')
