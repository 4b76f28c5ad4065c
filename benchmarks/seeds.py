"""What several seeds at once cost: vectorised, one by one, against one seed.

For each batch size three processes take turns: one with one seed, one that
takes the step of all seeds vectorised, and one that takes them in a loop. What
they cost in multiples of one seed is the median over the turns, so that work
beside them on the machine falls on all alike.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
import statistics
from typing import Any

import comparison

from ms_ranas_jax import paths
from ms_ranas_jax.runtime import files


def _measure(
  args: argparse.Namespace, case: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns what each way's process measured."""
  ways = {'one': 1, 'loop': 1, 'vectorised': args.seeds}
  workers = {}
  for way, at_once in ways.items():
    seeds = 1 if way == 'one' else args.seeds
    workers[way] = comparison.start_ours(
      'search_step', {**case, 'seeds': seeds, 'seeds_at_once': at_once}
    )
    comparison.wait_ready(workers[way])
  for _ in range(args.repeats):
    for worker in workers.values():
      worker.run(args.steps)
  return {way: worker.stop() for way, worker in workers.items()}


def main() -> None:
  """Measures and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--seeds', type=int, default=8)
  parser.add_argument('--batch', type=int, nargs='+', default=[4, 8, 16, 32])
  parser.add_argument('--image', type=int, default=8, help='side, pixels')
  parser.add_argument('--channels', type=int, default=4)
  parser.add_argument('--layers', type=int, default=3)
  parser.add_argument('--nodes', type=int, default=1)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--steps', type=int, default=5, help='in a turn')
  parser.add_argument(
    '--cache-dir', type=paths.expand, help='keep compiled programs there'
  )
  parser.add_argument(
    '--json', type=paths.expand, help='write the result there'
  )
  args = parser.parse_args()
  rows = []
  for batch in args.batch:
    case = {
      'image': args.image,
      'batch': batch,
      'channels': args.channels,
      'layers': args.layers,
      'nodes': args.nodes,
      'scales': 1,
      'exits': 'all_but_first',
      'order': 1,
      'mixed_derivative': 'exact',
      'lowering': 'auto',
      'remat': False,
      'devices': 1,
      'cache_dir': args.cache_dir,
    }
    ways = _measure(args, case)
    one = ways['one']
    ratios = {
      way: statistics.median(
        a / b for a, b in zip(ways[way]['turns_s'], one['turns_s'], strict=True)
      )
      for way in ('vectorised', 'loop')
    }
    rows.append({'case': case, 'seeds': args.seeds, 'ratios': ratios, **ways})
    print(
      f'batch {batch:3}: one seed {one["median_s"] * 1e3:.1f} ms; '
      f'{args.seeds} seeds '
      + ', '.join(
        f'{way} {ratio:.1f} times ({ways[way]["peak_bytes"] / 1e9:.2f} GB)'
        for way, ratio in ratios.items()
      ),
      flush=True,
    )
    if args.json:
      files.write_json(args.json, rows)


if __name__ == '__main__':
  main()
