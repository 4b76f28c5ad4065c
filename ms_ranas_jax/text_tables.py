"""Plain-text tables of exits, seeds, candidates and predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Field, head, format.
_Column = tuple[str, str, str]
_COLUMNS: tuple[_Column, ...] = (
  ('exit', 'exit', '{}'),
  ('layer', 'layer', '{}'),
  ('accuracy', 'accuracy', '{:.2%}'),
  ('top5_accuracy', 'top 5', '{:.2%}'),
  ('macs', 'macs', '{:,}'),
  ('flops_msdnet', 'flops (MSDNet)', '{:,}'),
  ('params', 'params read', '{:,}'),
  ('total_params', 'params in all', '{:,}'),
  ('params_deployed', 'params deployed', '{:,}'),
  ('peak_activation_bytes', 'peak activations (bytes in float32)', '{:,}'),
)
_SEED_COLUMNS: tuple[_Column, ...] = (
  ('seed', 'seed', '{}'),
  ('valid_loss', 'valid loss', '{:.4f}'),
  ('valid_accuracy', 'valid accuracy', '{:.2%}'),
  ('derived_cost', 'derived cost', '{:,.0f}'),
  ('score', 'area', '{:.4f}'),
  ('chosen', 'chosen', '{}'),
)
_CANDIDATE_COLUMNS: tuple[_Column, ...] = (
  ('source', 'candidate', '{}'),
  ('score', 'area', '{:.4f}'),
  ('accuracy', 'last accuracy', '{:.2%}'),
  ('macs', 'last macs', '{:,}'),
  ('short', 'trained shortly: area', '{}'),
  ('chosen', 'chosen', '{}'),
)
_PREDICTION_COLUMNS: tuple[_Column, ...] = (
  ('file', 'file', '{}'),
  ('name', 'class', '{}'),
  ('confidence', 'confidence', '{:.1%}'),
  ('exit', 'exit', '{}'),
  ('macs', 'macs', '{:,}'),
  ('milliseconds', 'ms', '{:.2f}'),
)
# How many candidates a terminal shows.
_MOST_CANDIDATES = 10


def exit_table(exits: Sequence[Mapping[str, Any]]) -> str:
  """Returns the exits as a table, one line each, for a terminal.

  Args:
    exits: as in `anytime.json` or `describe/*.json`; columns without values
      are left out.
  """
  return _table(exits, _COLUMNS)


def seed_table(content: Mapping[str, Any]) -> str:
  """Returns how the seeds of a search compare, for a terminal.

  Args:
    content: of `search/seeds.json`.
  """
  rows = [
    {**row, 'chosen': '*' * (row['seed'] == content['chosen'])}
    for row in content['seeds']
  ]
  shares = content['mean_agreement']
  return (
    f'{_table(rows, _SEED_COLUMNS)}\n'
    f'two seeds keep the same edges in {shares["edges"]:.0%} of all cases, '
    f'with the same operation in {shares["operations"]:.0%}'
  )


def prediction_table(records: Sequence[Mapping[str, Any]]) -> str:
  """Returns what a model says of pictures, one line each, for a terminal.

  Args:
    records: of `predict.predict_picture`.
  """
  return _table(records, _PREDICTION_COLUMNS)


def candidate_table(content: Mapping[str, Any]) -> str:
  """Returns the best candidates of a search, for a terminal.

  Args:
    content: of `search/candidates.json`.
  """
  candidates = sorted(
    content['candidates'], key=lambda c: (not c['chosen'], -c['score'])
  )
  rows = [
    {
      'chosen': '*' * candidate['chosen'],
      'source': _source(candidate['sources'][0]),
      'score': candidate['score'],
      'accuracy': candidate['accuracy'][-1],
      'macs': candidate['macs'][-1],
      **_short(candidate, content),
    }
    for candidate in candidates[:_MOST_CANDIDATES]
  ]
  low, high = content['budget_range']
  return (
    f'{_table(rows, _CANDIDATE_COLUMNS)}\n'
    f'the best of {len(candidates)} candidates; area over budgets of '
    f'{low:,.0f} to {high:,.0f} macs'
  )


def _short(
  candidate: Mapping[str, Any], content: Mapping[str, Any]
) -> dict[str, str]:
  """Returns what a short training gave, where there were any."""
  if not any('short' in other for other in content['candidates']):
    return {}
  short = candidate.get('short')
  return {'short': f'{short["score"]:.4f}' if short else ''}


def _source(source: Mapping[str, int]) -> str:
  """Returns where a candidate came from, in words."""
  return ', '.join(f'{name} {number}' for name, number in source.items())


def _table(rows: Sequence[Mapping[str, Any]], known: Sequence[_Column]) -> str:
  """Returns rows under heads; columns that a row lacks are left out."""
  columns = [c for c in known if all(c[0] in row for row in rows)]
  lines = [[title for _, title, _ in columns]]
  lines += [
    [form.format(row[name]) for name, _, form in columns] for row in rows
  ]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.rjust(width) for cell, width in zip(line, widths, strict=True)
    )
    for line in lines
  )
