"""What each training option brings to a small network, and several together.

python benchmarks/options.py --dataset-dir DIR --workdir DIR --json FILE
python benchmarks/options.py ... --cases plain boosting+equilibrium
python benchmarks/options.py ... --genotype FILE

The network is an MSDNet, or that of a genotype that a search has found. Every
case is trained with every seed, which draws the held-out images too, and
compared with the plain training of the same seed: by the mean of the accuracies
of all exits on held-out images, which is what to choose by, and on the test
images. What stands in the JSON file is not run again; an interrupted run goes
on. Names with a + between them are cases of several options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import itertools
import json
import os
import statistics
from typing import Any

import experiments

from ms_ranas_jax import paths
from ms_ranas_jax.baselines.cells import load_genotype
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import interruption
from ms_ranas_jax.space import operations

PLAIN = 'plain'
# Fields of config.train. Numbers are those of the publications, or usual.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
  PLAIN: {},
  'nesterov': {'nesterov': True},
  'adamw': {'optimizer': 'adamw', 'learning_rate': 2e-3, 'weight_decay': 0.05},
  'one_cycle': {'schedule': 'one_cycle'},
  'warmup': {'warmup_epochs': 1.0},
  'smoothing': {'label_smoothing': 0.1},
  'mixup': {'mixup': 0.2},
  'distillation': {'distillation': 0.5},
  'equilibrium': {'gradient_equilibrium': True},
  'boosting': {'network.boosting': 0.5},
  'trunk': {'trunk_epochs': 3.0},
  'ema': {'ema_decay': 0.995},
}
# Of 7.7 M multiply-adds at the last of four exits.
_MSDNET = {
  'network.family': 'msdnet',
  'network.channels': 6,
  'network.scales': 3,
  'network.blocks': 4,
  'network.base': 2,
  'network.step': 1,
  'network.growth': 3,
  'learning_rate': 0.1,
  'weight_decay': 1e-4,
  'clip': 0.0,
}
_GRID = {
  'network.channels': 8,
  'network.layers': 4,
  'network.scales': 2,
  'learning_rate': 0.05,
}


def changes(case: str) -> dict[str, Any]:
  """Returns the fields of a config that a case sets.

  Args:
    case: names of `OPTIONS` with a + between them.

  Raises:
    UsageError: there is no such option, or two set one field.
  """
  found: dict[str, Any] = {}
  for name in case.split('+'):
    if name not in OPTIONS:
      raise UsageError(
        f'--cases {case}: there is no {name!r}, but {", ".join(OPTIONS)}.'
      )
    for field, value in OPTIONS[name].items():
      if f'train.{field}' in found:
        raise UsageError(f'--cases {case}: two of them set train.{field}.')
      found[f'train.{field}'] = value
  return found


def run_case(
  config: Any, case: str, workdir: str, listener: interruption.Interruption
) -> dict[str, Any]:
  """Trains a case with the one seed of a config.

  Args:
    config: of a study of the plain training.
    case: see `changes`.
    workdir: of all cases.
    listener: may ask to stop.

  Returns:
    `case`, `seed`, `held_out` and `test`, accuracies of all exits, and `macs`
    of all exits.
  """
  (seed,) = config.study.seeds
  folder = experiments.run_training(
    config,
    case,
    changes(case),
    os.path.join(workdir, f'{case}-{seed}'),
    listener,
  )
  return {'case': case, 'seed': seed, **experiments.accuracies(folder)}


def gains(
  records: Sequence[Mapping[str, Any]], case: str, images: str
) -> list[float]:
  """Returns by how much a case is better than the plain training.

  Args:
    records: see `run_case`.
    case: which.
    images: 'held_out' or 'test'.

  Returns:
    Differences of the means over exits, one for each seed that both have.
  """
  means = {
    (record['case'], record['seed']): statistics.fmean(record[images])
    for record in records
  }
  return [
    value - means[PLAIN, seed]
    for (name, seed), value in means.items()
    if name == case and (PLAIN, seed) in means
  ]


def rows(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  """Returns the rows of the table, its heads first, then the best held out.

  Args:
    records: see `run_case`.
  """
  cases = {record['case'] for record in records} - {PLAIN}

  def by_held_out(case: str) -> float:
    return statistics.fmean(gains(records, case, 'held_out') or [-1.0])

  found = [['options', 'seeds', 'gain, held out', 'gain, test', 'last exit']]
  last = {
    case: [r['test'][-1] for r in records if r['case'] == case]
    for case in {PLAIN, *cases}
  }
  for case in [PLAIN, *sorted(cases, key=by_held_out, reverse=True)]:
    row = [case, f'{len(last[case])}']
    for images in 'held_out', 'test':
      row.append(
        '–' if case == PLAIN else _spread(gains(records, case, images))
      )
    found.append([*row, f'{statistics.fmean(last[case] or [0.0]):.2%}'])
  return found


def _spread(values: Sequence[float]) -> str:
  """Returns a mean and a deviation over seeds, in points."""
  if not values:
    return '–'
  points = [100 * value for value in values]
  spread = f' ± {statistics.stdev(points):.2f}' if len(points) > 1 else ''
  return f'{statistics.fmean(points):+.2f}{spread}'


def main(listener: interruption.Interruption) -> None:
  """Runs what is left, and prints the table.

  Args:
    listener: may ask to stop.
  """
  parser = experiments.parser(__doc__, 'runs/options')
  parser.set_defaults(train_epochs=10)
  parser.add_argument('--cases', nargs='+', default=list(OPTIONS))
  parser.add_argument('--holdout', type=int, default=2000, help='images')
  parser.add_argument(
    '--genotype', type=paths.expand, default='', help='file; else an MSDNet'
  )
  parser.add_argument('--json', type=paths.expand, required=True)
  args = parser.parse_args()
  fields, network = _MSDNET, 'msdnet'
  if args.genotype:
    genotype = load_genotype(args.genotype, operations.REAL)
    fields = {**_GRID, 'network.nodes': genotype.nodes}
    fields['genotype'] = args.genotype
    network = json.loads(genotype.to_json())
  for case in args.cases:
    changes(case)
  settings = {
    'dataset': args.dataset,
    'images': args.images,
    'holdout': args.holdout,
    'epochs': args.train_epochs,
    'network': network,
    'train': {name: fields[name] for name in fields if name != 'genotype'},
    'options': OPTIONS,
  }
  records = experiments.read_result(args.json, settings).get('records', [])
  for case, seed in itertools.product(args.cases, args.seeds):
    if any((r['case'], r['seed']) == (case, seed) for r in records):
      continue
    config = experiments.build_config(args)
    config.study.seeds = (seed,)
    config.dataset.train_images = args.images + args.holdout
    config.dataset.holdout = args.holdout
    config.update_from_flattened_dict(
      {f'train.{field}': value for field, value in fields.items()}
    )
    records.append(run_case(config, case, args.workdir, listener))
    command = (
      'python benchmarks/options.py --dataset-dir DIR --workdir DIR '
      f'--json FILE --images={args.images} --holdout={args.holdout} '
      f'--train-epochs={args.train_epochs}'
      + ' --genotype=FILE'
      * bool(args.genotype)
    )
    head = experiments.head(command)
    files.write_json(args.json, {**head, **settings, 'records': records})
  for row in rows(records):
    print(f'| {" | ".join(row)} |')


if __name__ == '__main__':
  experiments.run(main)
