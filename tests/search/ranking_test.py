"""Genotypes from the likeliest down, against sorting all of them."""

import itertools
import math

import numpy as np
import pytest

from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.search import ranking
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import operations as ops

FEW = {
  name: ops.PRIMITIVES[name]
  for name in ('none', 'skip_connect', 'sep_conv_3x3')
}


def _weights(nodes, primitives, seed):
  rng = np.random.default_rng(seed)
  odds = np.exp(
    rng.normal(size=(2, edges_lib.num_edges(nodes), len(primitives)))
  )
  odds /= odds.sum(-1, keepdims=True)
  return dict(zip(('normal', 'reduction'), odds, strict=True))


def _value(genotype, weights, primitives):
  names = list(primitives)
  return sum(
    math.log(
      weights[kind][edges_lib.num_edges(i // 2) + state, names.index(operation)]
    )
    for kind, reduction in (('normal', False), ('reduction', True))
    for i, (operation, state) in enumerate(genotype.edges(reduction))
  )


@pytest.mark.parametrize('seed', range(3))
def test_all_genotypes_come_once_and_in_order(seed):
  weights = _weights(2, FEW, seed)
  found = list(ranking.ranked_genotypes(weights, FEW))
  # Per cell: 2 * 2 operations at node 0, 3 pairs of states at node 1.
  assert len(found) == (4 * 3 * 4) ** 2
  assert len(set(found)) == len(found)
  values = [_value(genotype, weights, FEW) for genotype in found]
  assert all(a >= b - 1e-9 for a, b in itertools.pairwise(values))
  assert values[0] > values[-1]


@pytest.mark.parametrize('nodes', [1, 2, 4])
def test_the_first_is_what_darts_derives(nodes):
  for seed in range(5):
    weights = _weights(nodes, ops.PRIMITIVES, seed)
    first = next(ranking.ranked_genotypes(weights))
    assert first == alphas_lib.derive_genotype(weights)


def test_many_genotypes_of_a_large_space_are_found_quickly():
  weights = _weights(4, ops.PRIMITIVES, 0)
  found = list(itertools.islice(ranking.ranked_genotypes(weights), 2000))
  values = [_value(genotype, weights, ops.PRIMITIVES) for genotype in found]
  assert all(a >= b - 1e-9 for a, b in itertools.pairwise(values))
  assert len(set(found)) == 2000
