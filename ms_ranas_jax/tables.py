"""Plain-text tables of exits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_COLUMNS: tuple[tuple[str, str, str], ...] = (
  ('exit', 'exit', '{}'),
  ('layer', 'layer', '{}'),
  ('accuracy', 'accuracy', '{:.2%}'),
  ('macs', 'macs', '{:,}'),
  ('flops_msdnet', 'flops (MSDNet)', '{:,}'),
  ('params', 'params read', '{:,}'),
  ('total_params', 'params in all', '{:,}'),
  ('peak_activation_bytes', 'peak activations (bytes)', '{:,}'),
)


def exit_table(exits: Sequence[Mapping[str, Any]]) -> str:
  """Returns the exits as a table, one line each, for a terminal.

  Args:
    exits: as in `anytime.json` or `describe/*.json`; columns without values
      are left out.
  """
  columns = [c for c in _COLUMNS if all(c[0] in row for row in exits)]
  rows = [[title for _, title, _ in columns]]
  rows += [
    [form.format(row[name]) for name, _, form in columns] for row in exits
  ]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.rjust(width) for cell, width in zip(row, widths, strict=True)
    )
    for row in rows
  )
