"""How well four scores rank genotypes by what a training makes of each.

python benchmarks/ranking.py --dataset-dir DIR --workdir DIR --results DIR
python benchmarks/ranking.py ... --parts trained sgd

Genotypes are drawn at random, and each is trained on its own: the part
`trained`, judged by the area under its accuracy-cost curve on test images. The
other parts guess that area. `bilevel`, `random` and `ghn` are searches, which
judge each genotype with the params that all share, or that are made for it;
`sgd` trains each on its own for few steps. Each of the four may spend the same
seconds in steps, all genotypes together, and judges on images that no params
were trained on. What is compiled, and what judging takes, is told apart. Beside
them stands what few macs up to the first exit say alone: areas hold costs.

A part is a JSON file, which is read where it is there, and not run again; an
interrupted part goes on. Several processes may run parts of their own; `sgd`
waits for nothing, but takes its number of steps from what those of `trained`
took.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
import json
import os
import statistics
import time
from typing import Any

import experiments
import numpy as np
from scipy import stats

from ms_ranas_jax import paths
from ms_ranas_jax import stages
from ms_ranas_jax.anytime import curves
from ms_ranas_jax.costs import linear_cost
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import interruption
from ms_ranas_jax.runtime import metrics
from ms_ranas_jax.search import candidates
from ms_ranas_jax.search import constrained
from ms_ranas_jax.search import random_search
from ms_ranas_jax.space import grid
from ms_ranas_jax.space.genotype import Genotype

TRAINED, SGD = 'trained', 'sgd'
# No part of its own: what is known of a genotype without any network.
CHEAP = 'cheap'
SEARCHES = ('bilevel', 'random', 'ghn')
# What a reader calls the scores.
SCORES: Mapping[str, str] = {
  'ghn': 'params that a hypernetwork makes',
  'bilevel': 'shared params of the differentiable search',
  'random': 'shared params of random search',
  SGD: 'few steps of SGD',
  CHEAP: 'few macs up to the first exit, and nothing else',
}
PARTS = (TRAINED, *SEARCHES, SGD)
COEFFICIENTS: Mapping[str, Callable[[Any, Any], Any]] = {
  'Pearson': stats.pearsonr,
  'Spearman': stats.spearmanr,
  'Kendall': stats.kendalltau,
}
_NODES = 2
_BATCH = 64
_RESAMPLES = 2000


def correlation(name: str, a: Sequence[float], b: Sequence[float]) -> float:
  """Returns a coefficient, nan where all values of either are the same.

  Args:
    name: of `COEFFICIENTS`.
    a: values.
    b: as many values.
  """
  if np.ptp(a) == 0 or np.ptp(b) == 0:
    return float('nan')
  return float(COEFFICIENTS[name](a, b).statistic)


def interval(
  name: str, a: Sequence[float], b: Sequence[float], seed: int = 0
) -> tuple[float, float]:
  """Returns the 95 % interval of a coefficient, over the genotypes.

  Args:
    name: of `COEFFICIENTS`.
    a: values.
    b: as many values.
    seed: of the bootstrap, which draws pairs with replacement.

  Returns:
    The percentiles 2.5 and 97.5; nan where either has one value alone.
  """
  a, b = np.asarray(a), np.asarray(b)
  random = np.random.default_rng(seed)
  drawn = [
    correlation(name, a[rows], b[rows])
    for rows in random.integers(len(a), size=(_RESAMPLES, len(a)))
  ]
  if np.isnan(drawn).all():
    return float('nan'), float('nan')
  low, high = np.nanpercentile(drawn, [2.5, 97.5])
  return float(low), float(high)


def better_half(truth: Sequence[float]) -> np.ndarray:
  """Returns which values are not below the median, as booleans.

  Args:
    truth: values.
  """
  return np.asarray(truth) >= np.median(truth)


def areas(part: Mapping[str, Any]) -> np.ndarray:
  """Returns the area under the accuracy-cost curve of each genotype.

  Args:
    part: content of a file.
  """
  ends = *part['budget_range'], part['chance']
  return np.asarray(
    [
      curves.step_area(record['macs'], record['accuracy'], *ends)
      for record in part['records']
    ]
  )


def last_accuracies(part: Mapping[str, Any]) -> np.ndarray:
  """Returns the accuracy of the last exit of each genotype.

  Args:
    part: content of a file.
  """
  return np.asarray([record['accuracy'][-1] for record in part['records']])


# What genotypes are ranked by. Areas hold the costs of exits, which are known.
MEASURES: Mapping[str, Callable[[Mapping[str, Any]], np.ndarray]] = {
  'area': areas,
  'last exit': last_accuracies,
}


def rows(parts: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
  """Returns the rows of the table, its heads first.

  Args:
    parts: name -> content of its file; those that are not there are left out.
  """
  found = [['score', 'of', 'genotypes', *COEFFICIENTS, 'seconds in steps']]
  if TRAINED not in parts:
    return found
  for name, measure in itertools.product(SCORES, MEASURES):
    if name not in (*parts, CHEAP):
      continue
    truth = MEASURES[measure](parts[TRAINED])
    seconds = 0.0
    if name == CHEAP:
      scores = -np.array([r['macs'][0] for r in parts[TRAINED]['records']])
    else:
      scores = MEASURES[measure](parts[name])
      seconds = parts[name]['step_seconds']
    # As far as both have come.
    count = min(len(scores), len(truth))
    scores, truth = scores[:count], truth[:count]
    half = better_half(truth)
    for which, chosen in (('all', np.full(count, True)), ('better', half)):
      cells = []
      for coefficient in COEFFICIENTS:
        pair = scores[chosen], truth[chosen]
        low, high = interval(coefficient, *pair)
        cells.append(
          f'{correlation(coefficient, *pair):.2f} ({low:.2f} to {high:.2f})'
        )
      of = f'{which} {chosen.sum()}'
      found.append([SCORES[name], measure, of, *cells, f'{seconds:.0f}'])
  return found


def last_exits(part: Mapping[str, Any]) -> tuple[float, float, float]:
  """Returns the mean accuracy of the last exit, of the better half, the best.

  Args:
    part: content of a file.
  """
  last = sorted(last_accuracies(part).tolist())
  better = last[len(last) // 2 :]
  return statistics.fmean(last), statistics.fmean(better), last[-1]


@dataclasses.dataclass(frozen=True)
class Study:
  """What all parts share.

  Attributes:
    args: see `main`.
    settings: of all trainings and searches, entries of each file.
    genotypes: those that are ranked.
    listener: may ask to stop.
  """

  args: argparse.Namespace
  settings: Mapping[str, Any]
  genotypes: Sequence[Genotype]
  listener: interruption.Interruption

  @property
  def seed(self) -> int:
    """The seed of everything."""
    return self.args.seeds[0]

  def path(self, part: str) -> str:
    """Returns the file of a part."""
    return os.path.join(self.args.results, f'{part}.json')

  def folder(self, *names: str) -> str:
    """Returns a folder of the work directory."""
    return os.path.join(self.args.workdir, *names)

  def config(self, method: str = 'bilevel') -> Any:
    """Returns the config of a search and a training."""
    sizes = {
      name: getattr(self.args, name)
      for name in ('layers', 'channels', 'scales')
    }
    return experiments.build_config(self.args, method, nodes=_NODES, **sizes)

  def read(self, part: str) -> dict[str, Any]:
    """Returns the content of the file of a part, {} where there is none."""
    return experiments.read_result(self.path(part), self.settings)

  def write(self, part: str, records: Sequence[Any], **more: Any) -> None:
    """Writes the file of a part."""
    numbers = {name: self.settings[name] for name in ('images', 'epochs')}
    head = experiments.head(
      'python benchmarks/ranking.py --dataset-dir DIR --workdir DIR '
      f'--results DIR --images={numbers["images"]} '
      f'--train-epochs={numbers["epochs"]} --seconds={self.args.seconds:g}'
    )
    content = {**head, 'part': part, **self.settings, **more}
    files.write_json(self.path(part), {**content, 'records': records})


def _seconds_of_steps(folder: str) -> tuple[float, int]:
  """Returns the seconds of a step, from what a loop has written, and steps.

  What compiles is in the first line, so the others count, and of those the
  median, as the machine may have had other work for a while.
  """
  lines = metrics.read_metrics(os.path.join(folder, 'metrics.jsonl'))
  steps = [line['step'] for line in lines]
  if len(lines) < 2:
    raise UsageError(
      f'{folder}: one line of metrics does not tell the time of a step; give '
      'more images, or more epochs.'
    )
  each = statistics.median(
    line['seconds'] / (line['step'] - before)
    for before, line in zip(steps, lines[1:])
  )
  return each, steps[-1]


def budgets(config: Any) -> dict[str, Any]:
  """Returns what areas are taken over: the range of a search, and chance.

  Args:
    config: of a search and a training.
  """
  project = stages.project(config)
  derived = grid.derived_config(project.config.train.network)
  tables = linear_cost.cost_tables(
    grid.network_spec(derived, *project.image_format)
  )
  _, num_classes = project.image_format
  return {
    'budget_range': [0.0, float(constrained.cost_range(tables)[1])],
    'chance': 1 / num_classes,
  }


def train_each(study: Study, part: str, config: Any) -> None:
  """Trains every genotype on its own; writes after each.

  Args:
    study: what all parts share.
    part: `TRAINED`, judged on test images, or `SGD`, on held-out ones.
    config: of every training.
  """
  judged_on = 'test' if part == TRAINED else 'held_out'
  content = study.read(part)
  records = content.get('records', [])
  for index in range(len(records), len(study.genotypes)):
    path = study.folder('genotypes', f'{index}.json')
    files.write_text(path, study.genotypes[index].to_json())
    folder = experiments.run_training(
      config,
      str(index),
      {'train.genotype': path},
      study.folder(part, str(index)),
      study.listener,
    )
    each, steps = _seconds_of_steps(os.path.join(folder, 'train'))
    found = experiments.accuracies(folder)
    records.append(
      {
        'accuracy': found[judged_on],
        'macs': found['macs'],
        'step_seconds': each * steps,
      }
    )
    study.write(
      part,
      records,
      judged_on=judged_on,
      steps=steps,
      step_seconds=sum(record['step_seconds'] for record in records),
    )


def search(study: Study, method: str) -> None:
  """Searches for as long as may be, and judges every genotype.

  Args:
    study: what all parts share.
    method: of `SEARCHES`.
  """
  config = study.config(method)
  config.stages = ('search',)
  config.search.candidates.update(
    random=len(study.genotypes), images=study.args.judging_images
  )
  # Several lines of metrics an epoch, of which the first holds what compiles.
  half = study.args.images // 2
  config.search.chunk_steps = max(1, half // config.search.batch_size // 4)
  if method == 'bilevel':
    config.search.select = candidates.AREA
    config.search.candidates.last_epochs = 0
  trial = study.folder('trials', method)
  if not files.is_file(os.path.join(trial, 'search/genotype.json')):
    short = config.copy_and_resolve_references()
    with short.unlocked():
      short.search.epochs = 1
      short.search.candidates.random = 1
    stages.run_stages(short, trial, print, study.listener)
  each, steps = _seconds_of_steps(os.path.join(trial, 'search'))
  config.search.epochs = max(1, round(study.args.seconds / (each * steps)))
  folder = study.folder(method)
  began = time.monotonic()
  stages.run_stages(config, folder, print, study.listener)
  each, steps = _seconds_of_steps(os.path.join(folder, 'search'))
  judged = files.read_json(os.path.join(folder, candidates.CANDIDATES_FILE))
  found = [Genotype(**r['genotype']) for r in judged['candidates']]
  if found != list(study.genotypes):
    raise UsageError(f'{folder} is of other genotypes; name another --workdir.')
  study.write(
    method,
    [
      {'accuracy': record['accuracy'], 'macs': record['macs']}
      for record in judged['candidates']
    ],
    judged_on='validation half',
    epochs_of_search=config.search.epochs,
    steps=steps,
    step_seconds=each * steps,
    seconds=time.monotonic() - began,
  )


def sgd(study: Study) -> None:
  """Trains each genotype for the steps that it may.

  Args:
    study: what all parts share.

  Raises:
    UsageError: no training says yet what a step takes.
  """
  content = study.read(SGD)
  if content:
    steps = content['steps']
  else:
    trained = study.read(TRAINED)
    if not trained:
      raise UsageError(
        f'{study.path(TRAINED)} is not there yet, which tells what a step '
        f'takes; run --parts {TRAINED} {SGD}.'
      )
    typical = statistics.median(
      record['step_seconds'] / trained['steps'] for record in trained['records']
    )
    steps = round(study.args.seconds / (typical * len(study.genotypes)))
  config = study.config()
  config.train.epochs = 1
  config.train.chunk_steps = max(1, steps // 4)
  config.dataset.holdout = study.args.judging_images
  config.dataset.train_images = steps * _BATCH + config.dataset.holdout
  train_each(study, SGD, config)


def main(listener: interruption.Interruption) -> None:
  """Runs what is left and prints the table.

  Args:
    listener: may ask to stop.
  """
  parser = experiments.parser(__doc__, 'runs/ranking')
  parser.set_defaults(seeds=[0], train_epochs=4)
  parser.add_argument('--results', type=paths.expand, required=True)
  parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS))
  parser.add_argument('--genotypes', type=int, default=40, help='how many')
  parser.add_argument(
    '--seconds', type=float, default=1200, help='of the steps of each score'
  )
  parser.add_argument(
    '--judging-images', type=int, default=2048, help='for every score'
  )
  parser.add_argument('--layers', type=int, default=3)
  parser.add_argument('--channels', type=int, default=8)
  parser.add_argument('--scales', type=int, default=2)
  args = parser.parse_args()
  genotypes = random_search.random_genotypes(
    args.seeds[0], args.genotypes, _NODES
  )
  settings = {
    'dataset': args.dataset,
    'images': args.images,
    'epochs': args.train_epochs,
    'seed': args.seeds[0],
    'judging_images': args.judging_images,
    'network': {
      name: getattr(args, name) for name in ('layers', 'channels', 'scales')
    },
    'genotypes': [json.loads(genotype.to_json()) for genotype in genotypes],
  }
  study = Study(args, settings, genotypes, listener)
  settings.update(budgets(study.config()))
  for part in args.parts:
    if part == TRAINED:
      config = study.config()
      config.dataset.holdout = 0
      config.train.chunk_steps = max(1, args.images // _BATCH // 4)
      train_each(study, part, config)
    elif part == SGD:
      sgd(study)
    elif not study.read(part):
      search(study, part)
  for row in rows(
    {part: found for part in PARTS if (found := study.read(part))}
  ):
    print(f'| {" | ".join(row)} |')


if __name__ == '__main__':
  experiments.run(main)
