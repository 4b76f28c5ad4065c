"""Deriving a genotype within a cost, against trying all of them."""

import itertools

import numpy as np
import pytest

from ms_ranas_jax.costs import linear_cost
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.search import constrained
from ms_ranas_jax.search import ranking
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import genotype as genotype_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import operations as ops

FEW = {
  name: ops.PRIMITIVES[name]
  for name in ('none', 'skip_connect', 'sep_conv_3x3', 'sep_conv_5x5')
}


def _weights(nodes, primitives, seed):
  rng = np.random.default_rng(seed)
  shape = edges_lib.num_edges(nodes), len(primitives)
  odds = np.exp(rng.normal(size=(2, *shape)))
  odds /= odds.sum(-1, keepdims=True)
  return dict(zip(('normal', 'reduction'), odds))


def _value(genotype, weights, primitives):
  names = list(primitives)
  return sum(
    np.log(
      weights[kind][edges_lib.num_edges(i // 2) + state, names.index(operation)]
    )
    for kind, reduction in (('normal', False), ('reduction', True))
    for i, (operation, state) in enumerate(genotype.edges(reduction))
  )


def _all_genotypes(primitives):
  """Of two nodes."""
  real = [n for n in primitives if n != 'none']

  def node(states):
    return [
      ((a, s), (b, t))
      for s, t in itertools.combinations(range(states), 2)
      for a in real
      for b in real
    ]

  cells = [x + y for x, y in itertools.product(node(2), node(3))]
  for normal, reduction in itertools.product(cells, cells):
    yield genotype_lib.Genotype(normal, (2, 3), reduction, (2, 3))


def _sets(genotype):
  """The edges of each node, in no order."""
  return [
    set(edges[start : start + 2])
    for edges in (genotype.normal, genotype.reduction)
    for start in range(0, len(edges), 2)
  ]


def _check_best(found, every, values, inside):
  """Asserts that it is the one of the largest value, which is alone."""
  best = np.flatnonzero(inside)[np.argsort(-values[inside])]
  assert len(best) == 1 or values[best[0]] > values[best[1]]
  assert _sets(found) == _sets(every[best[0]])


def test_it_is_the_likeliest_of_all_within_the_limits():
  primitives = {n: FEW[n] for n in ('none', 'skip_connect', 'sep_conv_3x3')}
  spec = grid.NetworkSpec(4, 3, 2, 1, image_shape=(8, 8, 1))
  tables = linear_cost.cost_tables(spec, primitives)
  every = list(_all_genotypes(primitives))
  costs = np.array([tables.of_genotype(g, primitives) for g in every])
  for seed in range(3):
    weights = _weights(2, primitives, seed)
    values = np.array([_value(g, weights, primitives) for g in every])
    windows = [(cost, cost) for cost in sorted(set(costs))]
    for share in (0.2, 0.5, 0.8):
      middle = costs.min() + share * (costs.max() - costs.min())
      windows.append((0.97 * middle, 1.03 * middle))
    for low, high in windows:
      inside = (costs >= low) & (costs <= high)
      assert inside.any()
      found = constrained.derive_within(weights, tables, low, high, primitives)
      assert low <= tables.of_genotype(found, primitives) <= high
      _check_best(found, every, values, inside)


def _skips(genotype):
  return max(
    sum(name == 'skip_connect' for name, _ in edges)
    for edges in (genotype.normal, genotype.reduction)
  )


@pytest.mark.parametrize('cap', [0, 1, 2, 3, 4])
def test_it_is_the_likeliest_of_all_with_so_few_skips(cap):
  primitives = {n: FEW[n] for n in ('none', 'skip_connect', 'sep_conv_3x3')}
  spec = grid.NetworkSpec(4, 3, 2, 1, image_shape=(8, 8, 1))
  tables = linear_cost.cost_tables(spec, primitives)
  every = [g for g in _all_genotypes(primitives) if _skips(g) <= cap]
  costs = np.array([tables.of_genotype(g, primitives) for g in every])
  np.testing.assert_allclose(
    constrained.cost_range(tables, primitives, cap), (costs.min(), costs.max())
  )
  for seed in range(3):
    weights = _weights(2, primitives, seed)
    for table in weights.values():
      table[:, 1] *= 3  # a search that collapses
    values = np.array([_value(g, weights, primitives) for g in every])
    found = constrained.derive_capped(weights, cap, primitives)
    assert _skips(found) <= cap
    _check_best(found, every, values, values > -np.inf)
    # And within a cost as well.
    middle = costs.min() + 0.5 * (costs.max() - costs.min())
    low, high = 0.97 * middle, 1.03 * middle
    inside = (costs >= low) & (costs <= high)
    assert inside.any()
    found = constrained.derive_within(
      weights, tables, low, high, primitives, cap
    )
    assert _skips(found) <= cap
    assert low <= tables.of_genotype(found, primitives) <= high
    _check_best(found, every, values, inside)


@pytest.mark.parametrize('max_skips', [None, 1])
@pytest.mark.parametrize('metric', ['macs', 'params'])
def test_it_is_the_likeliest_of_a_large_space(metric, max_skips):
  """The first within the limits, from the likeliest down."""
  spec = grid.NetworkSpec(8, 5, 4, 2)
  tables = linear_cost.cost_tables(spec, metric=metric)
  for seed in range(3):
    weights = {
      kind: table.astype(np.float32)
      for kind, table in _weights(4, ops.PRIMITIVES, seed).items()
    }
    plain = alphas_lib.derive_genotype(weights)
    usual = tables.of_genotype(plain)
    low, high = 0.94 * usual, 0.96 * usual
    first = next(
      genotype
      for genotype in ranking.ranked_genotypes(weights)
      if low <= tables.of_genotype(genotype) <= high
      and (max_skips is None or _skips(genotype) <= max_skips)
    )
    for _ in range(2):  # the same again
      found = constrained.derive_within(
        weights, tables, low, high, max_skips=max_skips
      )
      assert _sets(found) == _sets(first)


def test_a_cap_that_does_not_bind_changes_nothing():
  weights = _weights(4, ops.PRIMITIVES, 0)
  plain = alphas_lib.derive_genotype(weights)
  counts = constrained.count_skips(plain)
  assert max(counts.values()) == _skips(plain) > 0
  for cap in (_skips(plain), 99, None):
    assert constrained.derive_capped(weights, cap) == plain
  capped = constrained.derive_capped(weights, _skips(plain) - 1)
  assert _skips(capped) == _skips(plain) - 1
  # A cell that keeps to it stays.
  kind = min(counts, key=counts.get)
  assert counts[kind] < _skips(plain)
  assert set(getattr(capped, kind)) == set(getattr(plain, kind))


def test_a_cap_with_nothing_but_skips_is_refused():
  primitives = {n: FEW[n] for n in ('none', 'skip_connect')}
  weights = _weights(2, primitives, 0)
  with pytest.raises(UsageError, match='no genotype has 3 skip connections'):
    constrained.derive_capped(weights, 3, primitives)
  assert _skips(constrained.derive_capped(weights, 4, primitives)) == 4


@pytest.mark.parametrize('nodes', [2, 4])
def test_it_keeps_to_the_limits_with_all_primitives(nodes):
  spec = grid.NetworkSpec(8, 5, nodes, 2)
  tables = linear_cost.cost_tables(spec, metric='params')
  weights = _weights(nodes, ops.PRIMITIVES, 0)
  plain = alphas_lib.derive_genotype(weights)
  usual = tables.of_genotype(plain)
  assert constrained.derive_within(weights, tables, 0, usual) == plain
  for factor in (0.8, 1.1):
    low, high = 0.98 * factor * usual, 1.02 * factor * usual
    found = constrained.derive_within(weights, tables, low, high)
    assert found != plain
    assert low <= tables.of_genotype(found) <= high


@pytest.mark.parametrize('factor', [0.1, 10.0])
def test_an_impossible_cost_is_refused_with_what_can_be_had(factor):
  spec = grid.NetworkSpec(4, 3, 2, 1)
  tables = linear_cost.cost_tables(spec, FEW)
  weights = _weights(2, FEW, 0)
  costs = [
    tables.of_genotype(
      genotype_lib.Genotype(
        ((name, 0), (name, 1)) * 2, (2, 3), ((name, 0), (name, 1)) * 2, (2, 3)
      ),
      FEW,
    )
    for name in ('skip_connect', 'sep_conv_5x5')
  ]
  middle = factor * np.mean(costs)
  with pytest.raises(UsageError, match='no genotype costs') as caught:
    constrained.derive_within(weights, tables, middle, 1.01 * middle, FEW)
  assert 'the cheapest costs' in str(caught.value)


@pytest.mark.parametrize('max_skips', [None, 1])
def test_a_peak_of_activations_is_kept_to_as_well(max_skips):
  primitives = {n: FEW[n] for n in ('none', 'skip_connect', 'sep_conv_3x3')}
  spec = grid.NetworkSpec(4, 3, 2, 2, image_shape=(16, 16, 1))
  tables = linear_cost.cost_tables(spec, primitives, linear_cost.PEAK)
  every = [
    g
    for g in _all_genotypes(primitives)
    if max_skips is None
    or max(constrained.count_skips(g, primitives).values()) <= max_skips
  ]
  peaks = np.array([tables.of_genotype(g, primitives) for g in every])
  assert len(set(peaks)) > 1
  cheapest, dearest = constrained.cost_range(tables, primitives, max_skips)
  assert peaks.min() <= cheapest < dearest <= peaks.max()
  weights = _weights(2, primitives, 0)
  values = np.array([_value(g, weights, primitives) for g in every])
  for peak in sorted(set(peaks)):
    inside = peaks == peak
    found = constrained.derive_within(
      weights, tables, peak, peak, primitives, max_skips
    )
    assert tables.of_genotype(found, primitives) == peak
    np.testing.assert_allclose(
      _value(found, weights, primitives), values[inside].max(), rtol=1e-9
    )
  with pytest.raises(UsageError, match='no peak between 1 and 2'):
    constrained.derive_within(weights, tables, 1.0, 2.0, primitives, max_skips)
