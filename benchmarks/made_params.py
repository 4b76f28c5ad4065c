"""What a start from params that a hypernetwork made is worth.

python benchmarks/made_params.py --search WORKDIR --dataset-dir DIR --json FILE

WORKDIR is of a search with search.method = 'ghn'. Networks of random genotypes
are trained by the same SGD on the same batches, once from the params that the
hypernetwork makes for each and once from random ones. After some steps the mean
loss over all exits is told, of the training batches since the mark before, and
the accuracy of the exits on test images; BNs use the statistics of the batch,
in both, since those of a run are not made.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
import statistics
from typing import Any

import experiments
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

import ms_ranas_jax as mr
from ms_ranas_jax import paths
from ms_ranas_jax.runtime import files
from ms_ranas_jax.training import augmentation
from ms_ranas_jax.training import optimizers

STARTS = ('made', 'random')
_MOMENTUM, _WEIGHT_DECAY, _CLIP = 0.9, 3e-4, 5.0


def train(
  network: Any,
  params: Any,
  data: mr.Dataset,
  batches: np.ndarray,
  marks: Sequence[int],
  learning_rate: float,
) -> list[dict[str, Any]]:
  """Trains a network, and says how it does at some steps.

  Args:
    network: what is trained.
    params: where it starts.
    data: images.
    batches: indices of training images, (steps, batch).
    marks: steps after which it is judged, rising.
    learning_rate: the first; it falls to 0 along a cosine.

  Returns:
    For each mark `step`, `loss` and `accuracy` per exit.
  """
  steps, size = batches.shape
  optimizer = optimizers.sgd(
    optimizers.epoch_cosine(learning_rate, 0.0, steps, 1),
    _MOMENTUM,
    _WEIGHT_DECAY,
    _CLIP,
  )

  def logits(params, images):
    images = augmentation.normalize(images, data.mean, data.std)
    return network.apply({'params': params}, images, train=True)

  @jax.jit
  def step(params, state, images, labels):
    def loss(params):
      return mr.exit_losses(logits(params, images), labels).mean()

    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state, params)
    params = jax.tree.map(jnp.add, params, updates)
    return params, state, value

  @jax.jit
  def right(params, images, labels):
    return (logits(params, images).argmax(-1) == labels).mean(axis=1)

  def accuracy(params):
    count = len(data.test_labels) // size
    return np.mean(
      [
        right(params, data.test_images[rows], data.test_labels[rows])
        for rows in np.arange(count * size).reshape(count, size)
      ],
      axis=0,
    ).tolist()

  state = optimizer.init(params)
  found, since = [], []
  for done in range(steps + 1):
    if done in marks:
      loss = statistics.fmean(since) if since else None
      record = {'step': done, 'loss': loss, 'accuracy': accuracy(params)}
      found.append(record)
      since = []
    if done < steps:
      rows = batches[done]
      params, state, value = step(
        params, state, data.train_images[rows], data.train_labels[rows]
      )
      since.append(float(value))
  return found


def rows(result: dict[str, Any]) -> list[list[str]]:
  """Returns the rows of the table, its heads first.

  Args:
    result: content of the file.
  """
  table = [['steps', *(f'{s}: loss, last exit' for s in STARTS)]]
  for index, mark in enumerate(result['marks']):
    cells = []
    for start in STARTS:
      records = [r[start][index] for r in result['records']]
      last = [record['accuracy'][-1] for record in records]
      losses = [record['loss'] for record in records]
      loss = '–' if None in losses else f'{statistics.fmean(losses):.3f}'
      cells.append(f'{loss}, {statistics.fmean(last):.1%}')
    table.append([f'{mark}', *cells])
  return table


def main() -> None:
  """Trains each network twice and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--search', type=paths.expand, required=True)
  parser.add_argument('--dataset', default='cifar10')
  parser.add_argument('--dataset-dir', type=paths.expand, default='')
  parser.add_argument('--genotypes', type=int, default=5, help='how many')
  parser.add_argument('--seed', type=int, default=1, help='of genotypes, too')
  parser.add_argument('--batch', type=int, default=64)
  parser.add_argument('--learning-rate', type=float, default=0.05)
  parser.add_argument(
    '--marks', type=int, nargs='+', default=[0, 50, 100, 200, 400]
  )
  parser.add_argument('--json', type=paths.expand, required=True)
  args = parser.parse_args()
  hypernetwork, params = mr.load_hypernetwork(args.search)
  data = mr.load_dataset(args.dataset, args.dataset_dir)
  random = np.random.default_rng(args.seed)
  shape = args.marks[-1], args.batch
  batches = random.permutation(len(data.train_labels))[: np.prod(shape)]
  batches = batches.reshape(shape)
  records = []
  genotypes = mr.random_genotypes(
    args.seed, args.genotypes, hypernetwork.spec.nodes, hypernetwork.primitives
  )
  for index, genotype in enumerate(tqdm.tqdm(genotypes, unit='genotype')):
    network = mr.derived_network(hypernetwork.spec, genotype)
    key = jax.random.key(args.seed + index)
    starts = {
      'made': mr.make_params(hypernetwork, params, genotype),
      'random': mr.init_variables(network, key)['params'],
    }
    record: dict[str, Any] = {'genotype': json.loads(genotype.to_json())}
    for name in STARTS:
      record[name] = train(
        network, starts[name], data, batches, args.marks, args.learning_rate
      )
    records.append(record)
  result = {
    **experiments.head(
      'python benchmarks/made_params.py --search WORKDIR --dataset-dir DIR '
      f'--json FILE --genotypes={args.genotypes} --seed={args.seed} '
      f'--learning-rate={args.learning_rate:g}'
    ),
    'dataset': args.dataset,
    'marks': args.marks,
    'records': records,
  }
  files.write_json(args.json, result)
  for row in rows(result):
    print(f'| {" | ".join(row)} |')


if __name__ == '__main__':
  main()
