"""The table of a study: means and spreads over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ms_ranas_jax.anytime import curves
from ms_ranas_jax.studies import entries
from ms_ranas_jax.studies import published as published_lib

_NOTHING = '–'

# The heads of the columns, and the rows.
Cells = tuple[Sequence[str], Sequence[Sequence[str]]]


def statistic(values: Sequence[float]) -> dict[str, Any]:
  """Returns the mean, the spread and the values themselves.

  Args:
    values: one per seed.

  Returns:
    'mean'; 'spread', the sample standard deviation (of n - 1), None for one
    value; 'values'.
  """
  array = np.asarray(values, np.float64)
  return {
    'mean': float(array.mean()),
    'spread': float(array.std(ddof=1)) if array.size > 1 else None,
    'values': [float(value) for value in array],
  }


def shared_range(
  runs: Sequence[Sequence[Mapping[str, Any]]],
) -> tuple[float, float] | None:
  """Returns the costs at which all networks answer and none has ended.

  Args:
    runs: the exits of each network, with their 'macs'.

  Returns:
    (largest cost of a first exit, smallest cost of a last exit), or None
    where that is no range.
  """
  low = max(exits[0]['macs'] for exits in runs)
  high = min(exits[-1]['macs'] for exits in runs)
  return (low, high) if low < high else None


def build_table(
  figure: entries.Figure,
  config: Any,
  outcomes: Mapping[tuple[str, int], Mapping[str, Any]],
  chance: float,
) -> dict[str, Any]:
  """Returns the content of `study/table.json`.

  Args:
    figure: what the study is for.
    config: the study's whole config.
    outcomes: (entry's name, seed) -> content of its `evaluate/anytime.json`;
      those that are not there yet are left out.
    chance: what a budget below the first exit earns.
  """
  by_entry = {
    entry.name: {
      seed: outcomes[entry.name, seed]
      for seed in config.study.seeds
      if (entry.name, seed) in outcomes
    }
    for entry in figure.entries
  }
  setting_range = [
    outcome['exits']
    for name, found in by_entry.items()
    if name in (figure.compared or by_entry)
    for outcome in found.values()
  ]
  budgets = shared_range(setting_range) if setting_range else None
  rows = [
    _row(entry, by_entry[entry.name], budgets, chance)
    for entry in figure.entries
    if by_entry[entry.name]
  ]
  count = len(figure.entries) * len(config.study.seeds)
  return {
    'figure': config.study.figure,
    'title': figure.title,
    'size': config.study.size,
    'dataset': config.dataset.name,
    'runs_done': len(outcomes),
    'runs': count,
    'num_test_images': next(
      (outcome['num_examples'] for outcome in outcomes.values()), None
    ),
    'budget_range': None if budgets is None else list(budgets),
    'measured': rows,
    'published': [
      result.to_dict()
      for result in published_lib.of_figure(config.study.figure)
    ]
    if config.study.published
    else [],
  }


def _row(
  entry: entries.Entry,
  found: Mapping[int, Mapping[str, Any]],
  budgets: tuple[float, float] | None,
  chance: float,
) -> dict[str, Any]:
  """Returns the line of an entry; `found` has a run per seed."""
  runs = [outcome['exits'] for outcome in found.values()]
  areas = None
  if budgets is not None:
    areas = statistic(
      [
        curves.step_area(
          [exit_['macs'] for exit_ in exits],
          [exit_['accuracy'] for exit_ in exits],
          *budgets,
          chance,
        )
        for exits in runs
      ]
    )
  exits = [
    {
      'exit': index,
      'layer': same[0]['layer'],
      **{
        field: statistic([exit_[field] for exit_ in same])
        for field in ('accuracy', 'macs', 'flops_msdnet', 'params')
      },
    }
    for index, same in enumerate(zip(*runs, strict=True))
  ]
  return {
    'name': entry.name,
    'label': entry.label,
    'seeds': list(found),
    'last_exit': exits[-1]['accuracy'],
    'first_exit': exits[0]['accuracy'],
    'area': areas,
    'macs': exits[-1]['macs'],
    'params': statistic([exits_[-1]['total_params'] for exits_ in runs]),
    'exits': exits,
  }


def to_markdown(table: Mapping[str, Any]) -> str:
  """Returns the table as Markdown, with a table of published numbers.

  Args:
    table: see `build_table`.
  """
  lines = [f'# {table["title"]}', '']
  images = table['num_test_images']
  lines += [
    f'{table["figure"]}, {table["size"]} size, {table["dataset"]}'
    + (f', {images:,} test images' if images else '')
    + f'; {table["runs_done"]} of {table["runs"]} runs done. Mean ± sample '
    'standard deviation over seeds; accuracies in %, params in thousands.',
    '',
  ]
  if table['budget_range']:
    lines += [area_sentence(table), '']
  lines += _lines(*measured_cells(table))
  if table['published']:
    lines += ['', 'Published, by others and on other terms:', '']
    lines += _lines(*published_cells(table))
  return '\n'.join(lines) + '\n'


def area_sentence(table: Mapping[str, Any]) -> str:
  """Returns what the column "area" is.

  Args:
    table: see `build_table`; with a range of budgets.
  """
  low, high = (value / 1e6 for value in table['budget_range'])
  return (
    'Area: the mean height of the anytime step curve over budgets of '
    f'{low:,.4g} to {high:,.4g} · 10⁶ macs, in %; a budget below the first '
    'exit earns chance.'
  )


def measured_cells(table: Mapping[str, Any]) -> Cells:
  """Returns the heads and the rows of what was measured, as texts.

  Args:
    table: see `build_table`.
  """
  heads = (
    *('', 'seeds', 'last exit', 'first exit'),
    *('area', 'macs, 10⁶', 'params, 10³'),
  )
  rows = []
  for row in table['measured']:
    first = row['first_exit'] if len(row['exits']) > 1 else None
    rows.append(
      (
        row['label'],
        str(len(row['seeds'])),
        _format(row['last_exit'], 100, 2),
        _format(first, 100, 2),
        _format(row['area'], 100, 2),
        _format(row['macs'], 1e-6, 2),
        _format(row['params'], 1e-3, 1),
      )
    )
  return heads, rows


def published_cells(table: Mapping[str, Any]) -> Cells:
  """Returns the heads and the rows of published numbers, as texts.

  Args:
    table: see `build_table`.
  """
  heads = ('', 'said', 'params, 10³', 'source')
  rows = [
    (
      f'{row["label"]} (published)',
      row['said'],
      _NOTHING if row['params'] is None else f'{row["params"] / 1e3:,.0f}',
      row['source'],
    )
    for row in table['published']
  ]
  return heads, rows


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  rules = ['---'] + ['---:'] * (len(heads) - 1)
  return [f'| {" | ".join(cells)} |' for cells in (heads, rules, *rows)]


def _format(
  value: Mapping[str, Any] | None, scale: float, decimals: int
) -> str:
  if value is None:
    return _NOTHING
  text = f'{scale * value["mean"]:,.{decimals}f}'
  if value['spread'] is not None:
    text += f' ± {scale * value["spread"]:,.{decimals}f}'
  return text
