"""A search that collapses to skip connections, and what the guards do to it.

A deep search network on the digits, three operations (none, skip_connect,
sep_conv_3x3) and large steps of the alphas. Prints, for each guard alone, how
many of a cell's edges would be skip connections after every tenth epoch, and
how many are in the genotype that is found.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
import os
import tempfile
import time
from typing import Any

from ms_ranas_jax import default_config
from ms_ranas_jax.runtime import metrics
from ms_ranas_jax.runtime.data import load_dataset
from ms_ranas_jax.search import constrained
from ms_ranas_jax.search import loop
from ms_ranas_jax.space import operations as ops

_GUARDS: Mapping[str, Mapping[str, Any]] = {
  'none': {},
  'max_skips': {'max_skips': 1},
  'auxiliary_skip': {'auxiliary_skip': 1.0},
  'partial_channels': {'partial_channels': 2},
  'early_stop': {'early_stop': True},
}
_PRIMITIVES = {
  name: ops.PRIMITIVES[name]
  for name in ('none', 'skip_connect', 'sep_conv_3x3')
}
_KINDS = ('normal', 'reduction')
_EVERY = 10


def run(guard: str, args: argparse.Namespace) -> str:
  """Searches with one guard; returns a line of the table."""
  config = default_config.get_config()
  config.seed = args.seed
  config.search.network.update(
    channels=4, layers=args.layers, nodes=2, scales=1, exits='last'
  )
  config.search.epochs = args.epochs
  config.search.alphas_learning_rate = args.alphas_learning_rate
  config.search.guards.update(_GUARDS[guard])
  began = time.monotonic()
  with tempfile.TemporaryDirectory() as workdir:
    genotype = loop.run_search(
      config, load_dataset('digits'), workdir, _PRIMITIVES
    )
    records = metrics.read_metrics(
      os.path.join(workdir, 'search', 'metrics.jsonl')
    )
  ends = [r for r in records if 'normal_skips' in r]
  found = constrained.count_skips(genotype, _PRIMITIVES)
  columns = [
    ' '.join(str(r[f'{kind}_skips']) for r in ends[_EVERY - 1 :: _EVERY])
    for kind in _KINDS
  ]
  columns += [str(found[kind]) for kind in _KINDS]
  columns.append(f'{ends[-1]["valid_accuracy"][-1]:.1%}')
  columns.append(f'{time.monotonic() - began:.0f} s')
  return f'| {guard} | {" | ".join(columns)} |'


def main() -> None:
  """Parses the arguments and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    '--guard', action='append', choices=_GUARDS, help='by default all'
  )
  parser.add_argument('--layers', type=int, default=16)
  parser.add_argument('--epochs', type=int, default=60)
  parser.add_argument('--alphas-learning-rate', type=float, default=0.02)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  print(
    f'| guard | normal, every {_EVERY} epochs | reduction | normal, found | '
    'reduction, found | validation accuracy | took |\n' + '|---' * 7 + '|'
  )
  for guard in args.guard or _GUARDS:
    print(run(guard, args), flush=True)


if __name__ == '__main__':
  main()
