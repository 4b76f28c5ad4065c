"""How well one-hot scores rank genotypes by what a training makes of them.

Searches once, judges the genotypes of the last epochs and random ones by the
area under their accuracy-cost curve with the search's params
(`search.select='area'`), trains each on its own for a few epochs, and prints
the rank correlation of the scores with the area and with the accuracy of the
last exit on the test images. The search runs in one process; once it has
ended, several may share the trainings.
"""

from __future__ import annotations

from collections.abc import Sequence
import os

import experiments
import numpy as np
from scipy import stats

from ms_ranas_jax import stages
from ms_ranas_jax.anytime import curves
from ms_ranas_jax.data.datasets import image_format
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import interruption
from ms_ranas_jax.search import candidates
from ms_ranas_jax.studies import entries as entries_lib

_RESAMPLES = 10_000


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
  """Returns Spearman's rank correlation, nan where all values are the same.

  Args:
    a: values.
    b: as many values.
  """
  x, y = (r - r.mean() for r in map(stats.rankdata, (a, b)))
  norm = np.sqrt((x @ x) * (y @ y))
  return float(x @ y / norm) if norm else float('nan')


def interval(
  a: Sequence[float], b: Sequence[float], seed: int = 0
) -> tuple[float, float]:
  """Returns the 95 % interval of the rank correlation, over the candidates.

  Args:
    a: values.
    b: as many values.
    seed: of the bootstrap, which draws pairs with replacement.

  Returns:
    The percentiles 2.5 and 97.5.
  """
  a, b = np.asarray(a), np.asarray(b)
  random = np.random.default_rng(seed)
  drawn = [
    spearman(a[rows], b[rows])
    for rows in random.integers(len(a), size=(_RESAMPLES, len(a)))
  ]
  low, high = np.nanpercentile(drawn, [2.5, 97.5])
  return float(low), float(high)


def main(listener: interruption.Interruption) -> None:
  """Runs what is left and prints the table.

  Args:
    listener: may ask to stop.
  """
  parser = experiments.parser(__doc__, 'runs/ranking')
  parser.set_defaults(seeds=[0])
  parser.add_argument('--random', type=int, default=12, help='candidates')
  parser.add_argument('--last-epochs', type=int, default=4)
  parser.add_argument('--layers', type=int, default=4)
  parser.add_argument('--channels', type=int, default=8)
  parser.add_argument('--scales', type=int, default=2)
  args = parser.parse_args()
  sizes = {
    name: getattr(args, name) for name in ('layers', 'channels', 'scales')
  }
  config = experiments.build_config(args, nodes=2, **sizes)
  config.stages = ('search',)
  config.search.select = candidates.AREA
  config.search.candidates.update(
    last_epochs=args.last_epochs, random=args.random
  )
  folder = os.path.join(args.workdir, 'search')
  found = os.path.join(folder, candidates.CANDIDATES_FILE)
  if not files.is_file(os.path.join(folder, 'search/genotype.json')):
    stages.run_stages(config, folder, print, listener)
  judged = files.read_json(found)
  entries = []
  for index, record in enumerate(judged['candidates']):
    path = os.path.join(args.workdir, 'genotypes', f'{index}.json')
    files.write_json(path, record['genotype'])
    source = record['sources'][0]
    label = ', '.join(f'{name} {value}' for name, value in source.items())
    entries.append(
      entries_lib.Entry(str(index), label, changes={'train.genotype': path})
    )
  config = experiments.build_config(args, nodes=2, **sizes)
  _, table = experiments.run_study(
    config,
    os.path.join(args.workdir, 'trainings'),
    entries_lib.Figure('Candidates, trained', 'settings', tuple(entries)),
    listener,
  )
  _, num_classes = image_format(args.dataset, args.dataset_dir)
  areas, accuracies = [], []
  for row in table['measured']:
    exits = row['exits']
    areas.append(
      curves.step_area(
        [exit_['macs']['mean'] for exit_ in exits],
        [exit_['accuracy']['mean'] for exit_ in exits],
        *judged['budget_range'],
        1 / num_classes,
      )
    )
    accuracies.append(row['last_exit']['mean'])
  scores = [record['score'] for record in judged['candidates']]
  print(
    '| candidate | macs | score, one-hot | area, trained | last exit, '
    'trained |\n|---' + '|---:' * 4 + '|'
  )
  order = np.argsort(scores)[::-1]
  for i in order:
    print(
      f'| {entries[i].label} | {judged["candidates"][i]["macs"][-1]:,} | '
      f'{scores[i]:.2%} | {areas[i]:.2%} | {accuracies[i]:.2%} |'
    )
  last = [record['accuracy'][-1] for record in judged['candidates']]
  for name, a, b in (
    ('score with area', scores, areas),
    ('score with last exit', scores, accuracies),
    ("last exit's one-hot accuracy with last exit", last, accuracies),
  ):
    low, high = interval(a, b)
    print(
      f'Spearman, {name}: {spearman(a, b):.2f} ({low:.2f} to {high:.2f}), '
      f'{len(a)} candidates'
    )


if __name__ == '__main__':
  experiments.run(main)
