"""Alphas, their weights, and genotypes derived by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import operations as ops

# none, max_pool_3x3, avg_pool_3x3, skip_connect, sep_conv_3x3, sep_conv_5x5,
# dil_conv_3x3, dil_conv_5x5: the columns of published alphas.
NAMES = tuple(ops.PRIMITIVES)
FEW = {
  'skip': ops.Skip(),
  'nothing': ops.Zero(),
  'conv': ops.Separable(3),
}


def _rows(*rows):
  """(the weight of some columns) per edge -> (edges, 8), the rest on none."""
  table = np.zeros((len(rows), len(NAMES)))
  for row, columns in enumerate(rows):
    for name, weight in columns.items():
      table[row, NAMES.index(name)] = weight
  table[:, NAMES.index('none')] += 1 - table.sum(axis=1)
  return table


def _both(table):
  return {'normal': table, 'reduction': table}


@pytest.mark.parametrize(('nodes', 'edges'), [(1, 2), (2, 5), (4, 14)])
def test_initial_alphas_have_a_row_per_edge(nodes, edges):
  alphas = alphas_lib.init_alphas(jax.random.key(0), nodes, 8)
  assert set(alphas) == {'normal', 'reduction'}
  for value in alphas.values():
    assert value.shape == (edges, 8)
    assert value.dtype == jnp.float32


def test_initial_alphas_are_small_and_normal():
  alphas = alphas_lib.init_alphas(jax.random.key(1), 40, 100)
  for value in alphas.values():
    scaled = np.asarray(value).ravel() / 1e-3
    # 86,000 draws: the standard error of the mean is 0.0034, and 68.27 % lie
    # within one deviation.
    assert abs(scaled.mean()) < 0.02
    assert abs(scaled.std() - 1) < 0.02
    assert abs((np.abs(scaled) < 1).mean() - 0.6827) < 0.01


def test_initial_alphas_follow_the_key():
  first, same, other = (
    alphas_lib.init_alphas(jax.random.key(seed), 2, 8) for seed in (3, 3, 4)
  )
  for kind in first:
    np.testing.assert_array_equal(first[kind], same[kind])
    assert not np.any(np.asarray(first[kind]) == np.asarray(other[kind]))
  assert not np.any(
    np.asarray(first['normal']) == np.asarray(first['reduction'])
  )


def test_a_genotype_worked_by_hand():
  normal = _rows(
    # Node 0 keeps both of its edges, the one that weighs more first.
    {'sep_conv_3x3': 0.3, 'max_pool_3x3': 0.2},
    {'skip_connect': 0.6, 'sep_conv_5x5': 0.1},
    # Node 1: `none` weighs most by far on state 0, and counts for nothing:
    # that edge has 0.1 left and loses.
    {'none': 0.9, 'dil_conv_5x5': 0.1},
    {'none': 0.5, 'avg_pool_3x3': 0.15, 'dil_conv_3x3': 0.35},
    {'max_pool_3x3': 0.2, 'sep_conv_5x5': 0.18},
    # Node 2: it is the strongest operation that counts, not the sum of all:
    # state 2 has 0.8 in all, but no operation above 0.4.
    {'skip_connect': 0.41, 'none': 0.59},
    {'sep_conv_3x3': 0.39, 'none': 0.61},
    {'max_pool_3x3': 0.4, 'avg_pool_3x3': 0.4, 'none': 0.2},
    {'dil_conv_3x3': 0.7, 'none': 0.3},
  )
  reduction = _rows(
    {'avg_pool_3x3': 0.5},
    {'avg_pool_3x3': 0.4},
    {'skip_connect': 0.1},
    {'skip_connect': 0.2},
    {'skip_connect': 0.3},
    {'dil_conv_5x5': 0.1},
    {'dil_conv_5x5': 0.4},
    {'dil_conv_5x5': 0.3},
    {'dil_conv_5x5': 0.2},
  )
  genotype = alphas_lib.derive_genotype(
    {'normal': normal, 'reduction': reduction}
  )
  assert genotype.normal == (
    ('skip_connect', 1),
    ('sep_conv_3x3', 0),
    ('dil_conv_3x3', 1),
    ('max_pool_3x3', 2),
    ('dil_conv_3x3', 3),
    ('skip_connect', 0),
  )
  assert genotype.reduction == (
    ('avg_pool_3x3', 0),
    ('avg_pool_3x3', 1),
    ('skip_connect', 2),
    ('skip_connect', 1),
    ('dil_conv_5x5', 1),
    ('dil_conv_5x5', 2),
  )
  assert genotype.normal_concat == genotype.reduction_concat == (2, 3, 4)


def test_ties_go_to_the_earlier_state_and_the_earlier_operation():
  table = np.full((5, len(NAMES)), 1 / len(NAMES))
  genotype = alphas_lib.derive_genotype(_both(table))
  assert genotype.normal == (('max_pool_3x3', 0), ('max_pool_3x3', 1)) * 2


def test_edges_are_compared_by_weights_not_by_alphas():
  # An alpha of 5 beside another 5 weighs less than a 1 beside zeros.
  alphas = np.zeros((5, 3), np.float32)
  alphas[2] = [5, 0, 5]
  alphas[3] = [1, 0, 0]
  alphas[4] = [0, 0, 3]
  genotype = alphas_lib.derive_genotype(
    edges_lib.softmax_weights(_both(alphas)), FEW
  )
  assert genotype.normal[2:] == (('conv', 2), ('skip', 1))


def test_primitives_of_ones_own():
  # The columns follow the mapping; whatever is a Zero cannot be chosen.
  table = np.array([[0.1, 0.6, 0.3], [0.2, 0.7, 0.1]])
  genotype = alphas_lib.derive_genotype(_both(table), FEW)
  assert genotype.normal == (('conv', 0), ('skip', 1))
  turned = dict(reversed(FEW.items()))
  genotype = alphas_lib.derive_genotype(_both(table), turned)
  assert genotype.normal == (('skip', 0), ('conv', 1))
  custom = ops.Custom(make=lambda *_: None, layers=lambda *_: ())
  genotype = alphas_lib.derive_genotype(
    _both(np.array([[0.2, 0.8], [0.6, 0.4]])), {'a': ops.Skip(), 'b': custom}
  )
  assert genotype.normal == (('b', 0), ('a', 1))


@pytest.mark.parametrize(
  ('weights', 'message'),
  [
    (_both(np.ones((5, 7))), r'weights\["normal"\] has shape \(5, 7\)'),
    (_both(np.zeros(8)), r'weights\["normal"\] has shape \(8,\)'),
    (_both(np.zeros((4, 8))), r'weights\["normal"\] has 4 rows'),
    (_both(np.zeros((1, 8))), r'weights\["normal"\] has 1 rows'),
    (
      {'normal': np.ones((5, 8)), 'reduction': np.ones((6, 8))},
      r'weights\["reduction"\] has 6 rows',
    ),
    (
      {'normal': np.ones((5, 8)), 'reduction': np.ones((2, 8))},
      'reduction',
    ),
    (_both(np.zeros((0, 8))), 'genotype field "normal" must be a non-empty'),
  ],
)
def test_shapes_that_are_no_cell_are_refused(weights, message):
  with pytest.raises(UsageError, match=message):
    alphas_lib.derive_genotype(weights)


def test_primitives_that_are_all_none_are_refused():
  with pytest.raises(UsageError, match='no operation other than none'):
    alphas_lib.derive_genotype(_both(np.ones((2, 1))), {'none': ops.Zero()})


def test_edges_have_logits_with_edge_normalization():
  key = jax.random.key(0)
  plain = alphas_lib.init_alphas(key, 2, 8)
  alphas = alphas_lib.init_alphas(key, 2, 8, edge_normalization=True)
  assert set(alphas) == set(plain) | {'normal_edges', 'reduction_edges'}
  for kind, value in plain.items():
    np.testing.assert_array_equal(alphas[kind], value)
    edges = np.asarray(alphas[f'{kind}_edges'])
    assert edges.shape == (5,) and edges.dtype == np.float32
    assert 0 < np.abs(edges).max() < 5e-3
    assert not set(edges) & set(np.asarray(value).ravel())
  assert (alphas['normal_edges'] != alphas['reduction_edges']).all()


def test_a_genotype_keeps_the_edges_whose_logits_say_so():
  """All operations weigh the same, so that the edges alone decide."""
  alphas = {kind: np.zeros((5, 3)) for kind in ('normal', 'reduction')}
  for kind in ('normal', 'reduction'):
    alphas[kind][:, 2] = 1.0
    alphas[f'{kind}_edges'] = np.array([0.0, 1.0, 0.0, 1.0, 2.0])
  found = alphas_lib.derive_genotype(
    edges_lib.softmax_weights(jax.tree.map(jnp.asarray, alphas)), FEW
  )
  expected = (('conv', 1), ('conv', 0), ('conv', 2), ('conv', 1))
  assert found.normal == found.reduction == expected


def test_alphas_in_the_place_of_weights_are_named_by_their_cell():
  good = _both(np.full((5, 8), 1 / 8))
  alphas = 1e-3 * np.random.default_rng(0).normal(size=(5, 8))
  for kind in good:
    words = rf'weights\["{kind}"\] are no weights'
    with pytest.raises(UsageError, match=words):
      alphas_lib.derive_genotype({**good, kind: alphas})
