"""Searches that collapse to skip connections, and what the guards do to them.

Two of them, on the digits:

- deep: 16 layers, three operations (none, skip_connect, sep_conv_3x3) and large
  steps of the alphas, which prefer the easiest path;
- noise: 4 layers, two operations (skip_connect, sep_conv_3x3), and two labels
  of five drawn at random: params come to fit the noise, and alphas turn to the
  operation that fits less.

Prints, for each guard alone, how many of a cell's edges would be skip
connections after every tenth epoch, and how many are in the genotype that is
found.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
import dataclasses
import os
import tempfile
import time
from typing import Any

import numpy as np

from ms_ranas_jax import default_config
from ms_ranas_jax import settings
from ms_ranas_jax.data.datasets import Dataset
from ms_ranas_jax.data.datasets import load_dataset
from ms_ranas_jax.runtime import metrics
from ms_ranas_jax.search import constrained
from ms_ranas_jax.search import stage
from ms_ranas_jax.space import operations as ops

_GUARDS: Mapping[str, Mapping[str, Any]] = {
  'none': {},
  'max_skips': {'max_skips': 1},
  'auxiliary_skip': {'auxiliary_skip': 1.0},
  'partial_channels': {'partial_channels': 2},
  'early_stop': {'early_stop': True, 'early_stop_batches': 8},
}
_KINDS = ('normal', 'reduction')
_EVERY = 10


@dataclasses.dataclass(frozen=True)
class Case:
  """A search that collapses.

  Attributes:
    operations: what is on every edge.
    network: fields of `search.network`.
    search: fields of `search`.
    dataset: fields of `dataset`.
    noise: share of the training labels that are drawn at random.
  """

  operations: tuple[str, ...]
  network: Mapping[str, Any]
  search: Mapping[str, Any]
  dataset: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  noise: float = 0.0


_CASES: Mapping[str, Case] = {
  'deep': Case(
    operations=('none', 'skip_connect', 'sep_conv_3x3'),
    network={'channels': 4, 'layers': 16},
    search={'epochs': 60, 'alphas_learning_rate': 0.02},
  ),
  'noise': Case(
    operations=('skip_connect', 'sep_conv_3x3'),
    network={'channels': 16, 'layers': 4},
    search={
      'epochs': 60,
      'alphas_learning_rate': 0.005,
      'batch_size': 32,
      'train_fraction': 0.3,
      # All that would keep params from fitting the noise is left out.
      'weight_decay': 0.0,
      'learning_rate': 0.025,
      'final_learning_rate': 0.025,
    },
    dataset={'crop_padding': 0, 'flip': False},
    noise=0.4,
  ),
}


def _with_noise(dataset: Dataset, share: float) -> Dataset:
  """Draws a share of the training labels at random, the same every time."""
  rng = np.random.default_rng(0)
  labels = dataset.train_labels.copy()
  chosen = rng.random(len(labels)) < share
  labels[chosen] = rng.integers(0, dataset.num_classes, chosen.sum())
  return dataclasses.replace(dataset, train_labels=labels)


def run(case: Case, guard: str, args: argparse.Namespace) -> str:
  """Searches with one guard; returns a line of the table."""
  primitives = {name: ops.PRIMITIVES[name] for name in case.operations}
  config = default_config.get_config()
  config.seed = args.seed
  config.search.network.update(nodes=2, scales=1, exits='last', **case.network)
  config.search.update(case.search)
  config.dataset.update(case.dataset)
  for name in ('layers', 'epochs', 'alphas_learning_rate'):
    section = config.search.network if name == 'layers' else config.search
    if getattr(args, name) is not None:
      section[name] = getattr(args, name)
  config.search.primitives = tuple(primitives)
  config.search.guards.update(_GUARDS[guard])
  began = time.monotonic()
  with tempfile.TemporaryDirectory() as workdir:
    genotype = stage.run_search(
      settings.parse(config),
      _with_noise(load_dataset('digits'), case.noise),
      workdir,
    )
    records = metrics.read_metrics(
      os.path.join(workdir, 'search', 'metrics.jsonl')
    )
  ends = [r for r in records if 'normal_skips' in r]
  found = constrained.count_skips(genotype, primitives)
  columns = [
    ' '.join(str(r[f'{kind}_skips']) for r in ends[_EVERY - 1 :: _EVERY])
    for kind in _KINDS
  ]
  columns += [str(found[kind]) for kind in _KINDS]
  columns.append(str(len(ends)))
  columns.append(f'{ends[-1]["valid_accuracy"][-1]:.1%}')
  columns.append(f'{time.monotonic() - began:.0f} s')
  return f'| {guard} | {" | ".join(columns)} |'


def main() -> None:
  """Parses the arguments and prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--case', choices=_CASES, default='deep')
  parser.add_argument(
    '--guard', action='append', choices=_GUARDS, help='by default all'
  )
  for name, kind in (
    ('layers', int),
    ('epochs', int),
    ('alphas-learning-rate', float),
  ):
    parser.add_argument(f'--{name}', type=kind, help="by default the case's")
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  print(
    f'| guard | normal, every {_EVERY} epochs | reduction | normal, found | '
    'reduction, found | epochs | validation accuracy | took |\n'
    + '|---' * 8
    + '|'
  )
  for guard in args.guard or _GUARDS:
    print(run(_CASES[args.case], guard, args), flush=True)


if __name__ == '__main__':
  main()
