"""Several seeds of one search: their states side by side, and how they compare.

Seed number i of a search is what a search of its own with `seed + i`
would be: its params, alphas, halves of the images, their order and their
augmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import json
from typing import Any, TypeVar

import jax
import numpy as np

from ms_ranas_jax.runtime import metrics
from ms_ranas_jax.runtime import parallel
from ms_ranas_jax.sections import SearchConfig
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space.genotype import Genotype

State = TypeVar('State')
SEEDS_FILE = 'search/seeds.json'


def numbers(seed: int, num_seeds: int) -> tuple[int, ...]:
  """Returns the seeds of a search, from the first one on."""
  return tuple(range(seed, seed + num_seeds))


def side_by_side(search: SearchConfig) -> parallel.Seeds | None:
  """Returns how the seeds of `config.search` run, None where there is one."""
  if search.num_seeds == 1:
    return None
  return parallel.Seeds(search.num_seeds, search.seeds_at_once)


def new_states(
  new_state: Callable[[Any], State], seeds: Sequence[int]
) -> State:
  """Returns the states of all seeds before the first step.

  Args:
    new_state: seed -> its state.
    seeds: the seeds.

  Returns:
    A state with an axis of seeds in front.
  """
  return jax.vmap(new_state)(np.asarray(seeds, np.int32))


def of_seed(state: State, index: int) -> State:
  """Returns the state of one seed of those side by side."""
  return jax.tree.map(lambda x: x[index], state)


def last_epoch(
  records: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, list[float]]:
  """Returns each seed's metrics over the last epoch.

  Args:
    records: lines of `metrics.jsonl` of a search of several seeds.
    names: of metrics.

  Returns:
    name -> a mean over the steps of the epoch for each seed, that of the last
    exit where there is one per exit.
  """
  steps = np.diff([0, *(record['step'] for record in records)])
  lines = [
    (record, count)
    for record, count in zip(records, steps, strict=True)
    if record['epoch'] == records[-1]['epoch']
  ]
  return {
    name: np.average(
      [record[name + metrics.BY_SEED] for record, _ in lines],
      axis=0,
      weights=[count for _, count in lines],
    ).tolist()
    for name in names
  }


def agreement(first: Genotype, second: Genotype) -> tuple[float, float]:
  """Returns how far two genotypes are the same.

  Args:
    first: a genotype.
    second: one of as many nodes.

  Returns:
    The share of the edges of both cells, two per node, that both keep, and the
    share that carries the same operation besides. The order of a node's edges
    does not count.
  """
  edges = operations = total = 0
  for kind in edges_lib.KINDS:
    mine, other = getattr(first, kind), getattr(second, kind)
    total += len(mine)
    for start in range(0, len(mine), 2):
      pairs = [set(e[start : start + 2]) for e in (mine, other)]
      states = [{state for _, state in pair} for pair in pairs]
      operations += len(pairs[0] & pairs[1])
      edges += len(states[0] & states[1])
  return edges / total, operations / total


def compare(
  seeds: Sequence[int],
  genotypes: Sequence[Genotype],
  values: Mapping[str, Sequence[float]],
  chosen: int,
) -> dict[str, Any]:
  """Returns the content of `seeds.json`.

  Args:
    seeds: the seeds.
    genotypes: what each of them found.
    values: name -> a number for each.
    chosen: the seed that the search goes with.

  Returns:
    In `seeds` a record for each, with its number, genotype and values; in
    `agreement` the tables (seeds, seeds) of the shares of equal `edges` and
    equal `operations`, see `agreement`, and in `mean_agreement` their means
    over all pairs; and the `chosen` seed.
  """
  pairs = np.array([[agreement(a, b) for b in genotypes] for a in genotypes])
  others = ~np.eye(len(seeds), dtype=bool)
  return {
    'chosen': chosen,
    'seeds': [
      {
        'seed': seed,
        **{name: float(each[index]) for name, each in values.items()},
        'genotype': json.loads(genotypes[index].to_json()),
      }
      for index, seed in enumerate(seeds)
    ],
    'agreement': {
      'edges': pairs[..., 0],
      'operations': pairs[..., 1],
    },
    'mean_agreement': {
      'edges': float(pairs[others, 0].mean()),
      'operations': float(pairs[others, 1].mean()),
    },
  }
