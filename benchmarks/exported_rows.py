"""The rows of the table of exports, on a terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TORCH, WHOLE, STEPS = 'torch', 'whole', 'steps'


def rows(cases: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
  """Returns the rows of the table, its heads first.

  Args:
    cases: by name, each with `entries`; see `exported.py`.
  """
  found = [
    [
      *('network', 'threads', 'batch', "torch's export"),
      *('`all_exits.onnx`', 'ratio', 'our steps', 'ratio'),
    ]
  ]
  for name, case in cases.items():
    for entry in case['entries']:
      row = [name, f'{entry["threads"]}', f'{entry["batch_size"]}']
      for form in (TORCH, WHOLE, STEPS):
        times = entry['milliseconds'][form]
        row.append('{median:.2f} ms ({low:.2f} to {high:.2f})'.format(**times))
        if form != TORCH:
          row.append(f'{entry["ratio"][form]["medians"]:.2f}')
      found.append(row)
  return found
