"""How near a search with a target on its cost comes to it.

Searches for cells whose network has so many macs, once per target and seed,
and trains what was found for a few epochs. The table has, for every search, the
macs of the genotype it chose, what DARTS would have derived from the same
alphas without regard to the target, and what the alphas expected.
"""

from __future__ import annotations

import os

import experiments

from ms_ranas_jax.runtime import interruption
from ms_ranas_jax.runtime import metrics
from ms_ranas_jax.studies import entries


def main(listener: interruption.Interruption) -> None:
  """Runs what is left and prints the table.

  Args:
    listener: may ask to stop.
  """
  parser = experiments.parser(__doc__, 'runs/targets')
  parser.add_argument(
    '--targets', type=float, nargs='+', default=[3e6, 5e6, 9e6], help='macs'
  )
  parser.add_argument('--layers', type=int, default=5)
  parser.add_argument('--channels', type=int, default=8)
  args = parser.parse_args()
  config = experiments.build_config(
    args, layers=args.layers, channels=args.channels, nodes=2, scales=1
  )
  figure = entries.Figure(
    'Searches with a target',
    'exits',
    tuple(
      entries.Entry(
        f'{target:.0f}',
        f'{target / 1e6:g} · 10⁶ macs',
        changes={'search.cost.target': target},
      )
      for target in args.targets
    ),
  )
  plan, table = experiments.run_study(config, args.workdir, figure, listener)
  print(
    '| target, macs | seed | found | off by | DARTS would derive | off by | '
    'expected | off by | test accuracy, last exit |\n' + '|---:' * 9 + '|'
  )
  for row, target in zip(table['measured'], args.targets, strict=True):
    for index, seed in enumerate(row['seeds']):
      search = plan.trainings[row['name'], seed].search
      record = metrics.read_metrics(
        os.path.join(search.workdir(args.workdir), 'search/metrics.jsonl')
      )[-1]
      costs = (
        row['macs']['values'][index],
        record['derived_cost'],
        record['expected_cost'],
      )
      cells = [f'{cost:,.0f} | {cost / target - 1:+.1%}' for cost in costs]
      accuracy = row['last_exit']['values'][index]
      print(
        f'| {target:,.0f} | {seed} | {" | ".join(cells)} | {accuracy:.2%} |'
      )


if __name__ == '__main__':
  experiments.run(main)
