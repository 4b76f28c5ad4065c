"""How a step of the search grows with layers, nodes, scales, channels, batch.

One size at a time is changed from a small search; every point is a process of
its own. The exponent is that of the power law through a size's points: 1 is
linear.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
import math
import statistics
from typing import Any

import comparison
from matplotlib.figure import Figure

from ms_ranas_jax import paths
from ms_ranas_jax.report import style
from ms_ranas_jax.runtime import files

_BASE: Mapping[str, Any] = {
  'layers': 3,
  'nodes': 2,
  'scales': 1,
  'channels': 8,
  'batch': 32,
  'order': 1,
  'mixed_derivative': 'exact',
  'partial_channels': 1,
  'exits': 'all_but_first',
  'image': 32,
  'lowering': 'auto',
  'remat': False,
  'devices': 1,
}
_SIZES: Mapping[str, Sequence[int]] = {
  'layers': (3, 4, 5, 7),
  'nodes': (1, 2, 3, 4),
  'scales': (1, 2, 3),
  'channels': (4, 8, 16, 32),
  'batch': (16, 32, 64, 128),
}


def _measure(args: argparse.Namespace, case: Mapping[str, Any]) -> float:
  """Returns the median seconds of a step."""
  case = {**case, 'cache_dir': args.cache_dir}
  worker = comparison.start_ours('search_step', case)
  comparison.wait_ready(worker)
  for _ in range(args.repeats):
    worker.run(args.steps)
  return worker.stop()['median_s']


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
  """Returns the slope of a line through the logarithms."""
  return statistics.linear_regression(
    [math.log(s) for s in sizes], [math.log(s) for s in seconds]
  ).slope


@style.styled()
def draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
  """Draws a panel for every size that was changed."""
  figure = Figure(figsize=(1.7 * style.CHART_WIDTH, 4.6), layout='tight')
  for row, axes in zip(rows, figure.subplots(2, 3).flat):
    axes.plot(row['sizes'], row['seconds'], marker='o', color=style.ACCENT)
    axes.set_xlabel(row['size'])
    axes.set_ylabel('seconds')
    axes.set_ylim(bottom=0)
    axes.set_xticks(row['sizes'])
    axes.set_title(f'~ {row["size"]}^{row["exponent"]:.2f}')
  figure.axes[-1].set_axis_off()
  return figure


def main() -> None:
  """Measures, prints a table, and draws."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    '--sizes', nargs='+', default=list(_SIZES), choices=_SIZES
  )
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--steps', type=int, default=2, help='in a turn')
  parser.add_argument(
    '--cache-dir', type=paths.expand, help='keep compiled programs there'
  )
  parser.add_argument(
    '--json', type=paths.expand, help='write the result there'
  )
  parser.add_argument(
    '--figures', type=paths.expand, help='write the picture into this folder'
  )
  args = parser.parse_args()
  rows = []
  for size in args.sizes:
    seconds = [_measure(args, {**_BASE, size: value}) for value in _SIZES[size]]
    rows.append(
      {
        'size': size,
        'sizes': _SIZES[size],
        'seconds': seconds,
        'exponent': exponent(_SIZES[size], seconds),
      }
    )
    points = ', '.join(
      f'{value}: {s * 1e3:.0f} ms'
      for value, s in zip(_SIZES[size], seconds, strict=True)
    )
    print(f'{size:9} {points}; exponent {rows[-1]["exponent"]:.2f}', flush=True)
    if args.json:
      files.write_json(args.json, {'base': dict(_BASE), 'rows': rows})
  if args.figures:
    style.save(draw(rows), args.figures, 'growth')


if __name__ == '__main__':
  main()
