"""From a finished search to one genotype.

By default it is the genotype of the last alphas; of several seeds, that of the
one with the lowest validation loss in the last epoch. By area, it is the best
of the candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import os
from typing import Any

import numpy as np

from ms_ranas_jax.data.datasets import Dataset
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import metrics
from ms_ranas_jax.runtime import processes
from ms_ranas_jax.search import candidates as candidates_lib
from ms_ranas_jax.search import history as history_lib
from ms_ranas_jax.search import methods
from ms_ranas_jax.search import seeds as seeds_lib
from ms_ranas_jax.search.cost_term import CostTerm
from ms_ranas_jax.search.short_training import ShortTraining
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space.genotype import Genotype

GENOTYPE_FILE = 'search/genotype.json'


def select(
  method: methods.Method,
  derived: grid.NetworkSpec,
  dataset: Dataset,
  state: Any,
  history: Sequence[history_lib.Moment],
  valid_halves: Mapping[int, np.ndarray],
  workdir: str,
  short: ShortTraining | None = None,
) -> Genotype:
  """Chooses the genotype of a finished search and writes it.

  Writes `search/genotype.json`, and what the method saves; by area
  `search/candidates.json` before; of several seeds `search/seeds.json`, and
  `search/alphas.npz` of one of them.

  Args:
    method: of the search.
    derived: sizes of the network to be derived.
    dataset: its training images judge.
    state: after the last step; with an axis of seeds where there are several.
    history: the alphas at the start and after every epoch, the same; empty for
      a search without alphas.
    valid_halves: seed -> indices of the images that train its alphas.
    workdir: the work directory.
    short: trains the best candidates, of which one is chosen then.

  Returns:
    The genotype.

  Raises:
    UsageError: no genotype costs what it may.
  """
  problem = method.problem
  seeds = list(valid_halves)
  several = len(seeds) > 1
  states = {
    seed: seeds_lib.of_seed(state, index) if several else state
    for index, seed in enumerate(seeds)
  }
  if processes.is_first():
    for seed, one in states.items():
      directory = os.path.join(workdir, 'search')
      method.save(one, directory, seed if several else None)
  histories: dict[int, list[history_lib.Moment]] = {}
  if history:
    histories = {
      seed: history_lib.of_seed(history, index if several else None)
      for index, seed in enumerate(seeds)
    }
  found = {
    seed: problem.cost_term.derive(edges_lib.softmax_weights(moments[-1]))
    for seed, moments in histories.items()
  }
  records = None
  if candidates_lib.is_by_area(problem.search):
    judged = candidates_lib.what_is_judged(
      problem.search,
      problem.network.plan.spec,
      derived,
      problem.cost_term,
      problem.primitives,
    )
    records = candidates_lib.choose(
      candidates_lib.gather(seeds[0], histories, judged),
      judged,
      candidates_lib.build_score(method.logits, dataset),
      {
        seed: (
          one,
          candidates_lib.validation_batches(problem.search, valid_halves[seed]),
        )
        for seed, one in states.items()
      },
      os.path.join(workdir, candidates_lib.CANDIDATES_FILE),
      short,
    )['candidates']
  chosen = best = None
  if records is not None:
    (best,) = (record for record in records if record['chosen'])
    # Of a random one, no seed is the origin.
    chosen = next((s['seed'] for s in best['sources'] if 'seed' in s), None)
    if several and not found:
      found = candidates_lib.best_of_each_seed(records)
  if several:
    chosen = _compare_seeds(
      seeds, found, chosen, records, problem.cost_term, workdir
    )
    if history and processes.is_first():
      history_lib.write(
        os.path.join(workdir, 'search'), histories[chosen], by_seed=False
      )
  if best is not None:
    genotype = Genotype(**best['genotype'])
  else:
    genotype = found[seeds[0] if chosen is None else chosen]
  if processes.is_first():
    files.write_text(os.path.join(workdir, GENOTYPE_FILE), genotype.to_json())
  return genotype


def _compare_seeds(
  seeds: Sequence[int],
  found: Mapping[int, Genotype],
  chosen: int | None,
  records: Sequence[Mapping[str, Any]] | None,
  cost_term: CostTerm,
  workdir: str,
) -> int:
  """Writes `seeds.json` and returns the seed that the search goes with."""
  # The first process has written them, and the others read.
  processes.wait_for_all('metrics of the search')
  lines = metrics.read_metrics(os.path.join(workdir, 'search/metrics.jsonl'))
  values = seeds_lib.last_epoch(lines, ('valid_loss', 'valid_accuracy'))
  genotypes = [found[seed] for seed in seeds]
  values['derived_cost'] = [cost_term.cost(genotype) for genotype in genotypes]
  if records is not None:
    scores = candidates_lib.scores_of(records, genotypes)
    if scores is not None:
      values['score'] = scores
  if chosen is None:
    chosen = seeds[int(np.argmin(values['valid_loss']))]
  if processes.is_first():
    files.write_json(
      os.path.join(workdir, seeds_lib.SEEDS_FILE),
      seeds_lib.compare(seeds, genotypes, values, chosen),
    )
  return chosen
