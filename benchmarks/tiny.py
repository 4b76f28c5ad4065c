"""The tiny network beside ResNet8 of MLPerf Tiny, at one recipe and data.

python benchmarks/tiny.py --dataset-dir DIR --genotype FILE --json FILE

They are the networks of configs/cifar10_tiny.py, with a cell that its search
has found (search/genotype.json of its work directory), and of
configs/resnet8.py, as published and with exits after the other stacks. They may
cost as much. Every one is trained with every seed, by the recipe of both
configs, for as many epochs, and judged on the test images. What stands in the
JSON file is not run again; an interrupted run goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
import importlib.util
import itertools
import json
import os
import pathlib
import statistics
from typing import Any

import experiments

from ms_ranas_jax import paths
from ms_ranas_jax.baselines.cells import load_genotype
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import interruption
from ms_ranas_jax.space import operations

_HERE = pathlib.Path(__file__).resolve().parent
TINY, RESNET8 = 'tiny', 'resnet8'
# Case -> its config, and what is changed there.
CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
  TINY: ('cifar10_tiny', {}),
  RESNET8: ('resnet8', {}),
  'resnet8 with exits': ('resnet8', {'train.network.exits': '0,1'}),
}


def load_config(name: str) -> Any:
  """Returns the config of a file in `configs/`.

  Args:
    name: of the file, without its ending.
  """
  path = _HERE.parent / 'configs' / f'{name}.py'
  spec = importlib.util.spec_from_file_location(name, path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def rows(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  """Returns the rows of the table, its heads first; a row is an exit.

  Args:
    records: `case`, `seed`, and `test` and `macs` of all exits.
  """
  found = [['network', 'macs', 'test accuracy', 'seeds']]
  for case in CASES:
    same = [r for r in records if r['case'] == case]
    for index, macs in enumerate(same[0]['macs'] if same else ()):
      values = [100 * record['test'][index] for record in same]
      spread = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
      mean = f'{statistics.fmean(values):.2f} %{spread}'
      found.append([case, f'{macs:,}', mean, f'{len(values)}'])
  return found


def main(listener: interruption.Interruption) -> None:
  """Runs what is left and prints the table.

  Args:
    listener: may ask to stop.
  """
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--dataset', default='cifar10', help='or digits')
  parser.add_argument('--dataset-dir', type=paths.expand, default='')
  parser.add_argument('--workdir', type=paths.expand, default='runs/tiny')
  parser.add_argument('--epochs', type=int, default=12)
  parser.add_argument('--images', type=int, default=0, help='0 is all')
  parser.add_argument('--holdout', type=int, default=2000, help='images')
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--cases', nargs='+', default=list(CASES))
  parser.add_argument(
    '--genotype', type=paths.expand, required=True, help='file, of the tiny one'
  )
  parser.add_argument('--json', type=paths.expand, required=True)
  args = parser.parse_args()
  genotype = load_genotype(args.genotype, operations.REAL)
  settings: dict[str, Any] = {
    name: getattr(args, name)
    for name in ('dataset', 'epochs', 'images', 'holdout')
  }
  settings['genotype'] = json.loads(genotype.to_json())
  records = experiments.read_result(args.json, settings).get('records', [])
  for case, seed in itertools.product(args.cases, args.seeds):
    if case not in CASES:
      raise UsageError(f'--cases {case}: give some of {", ".join(CASES)}.')
    if any((r['case'], r['seed']) == (case, seed) for r in records):
      continue
    name, changes = CASES[case]
    config = load_config(name)
    if case == TINY:
      changes = {'train.genotype': args.genotype}
    config.stages = ('search', 'train', 'evaluate')
    config.dataset.update(
      name=args.dataset,
      dir=args.dataset_dir,
      train_images=args.images,
      holdout=args.holdout,
    )
    config.train.epochs = args.epochs
    config.study.seeds = (seed,)
    folder = experiments.run_training(
      config,
      case.replace(' ', '_'),
      changes,
      os.path.join(args.workdir, f'{case.replace(" ", "_")}-{seed}'),
      listener,
    )
    records.append(
      {'case': case, 'seed': seed, **experiments.accuracies(folder)}
    )
    head = experiments.head(
      'python benchmarks/tiny.py --dataset-dir DIR --workdir DIR --json FILE '
      f'--genotype GENOTYPE --epochs={args.epochs}'
    )
    files.write_json(args.json, {**head, **settings, 'records': records})
  for row in rows(records):
    print(f'| {" | ".join(row)} |')


if __name__ == '__main__':
  experiments.run(main)
