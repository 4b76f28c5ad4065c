"""The layout of tables of edges, and the weights that alphas give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.baselines import cells
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import operations as ops

FEW = {
  'skip': ops.Skip(),
  'nothing': ops.Zero(),
  'conv': ops.Separable(3),
}


def test_weights_are_known_from_alphas():
  rng = np.random.default_rng(0)
  for nodes in 1, 4:
    shape = (edges_lib.num_edges(nodes), 8)
    alphas = {k: 1e-3 * rng.normal(size=shape) for k in edges_lib.KINDS}
    logits = {
      edges_lib.logits_key(k): rng.normal(size=shape[0])
      for k in edges_lib.KINDS
    }
    for good in (
      edges_lib.softmax_weights(alphas),
      edges_lib.softmax_weights({**alphas, **logits}),
      {k: np.eye(8)[np.zeros(shape[0], int)] for k in edges_lib.KINDS},
    ):
      edges_lib.check_weights(good)
    uniform = {k: np.zeros(shape) for k in edges_lib.KINDS}
    positive = {k: np.abs(a) for k, a in alphas.items()}
    for bad in alphas, uniform, positive:
      with pytest.raises(UsageError, match=r'no weights.*softmax_weights\('):
        edges_lib.check_weights(bad)
      with pytest.raises(UsageError, match=r'"reduction"\] are no weights'):
        edges_lib.check_weights({**good, 'reduction': bad['reduction']})
  # While a function is traced there are no numbers to look at.
  jax.jit(edges_lib.check_weights)(uniform)


def test_a_derived_cell_has_weights():
  few = ops.PRIMITIVES
  genotype = cells.DARTS_V2
  table = edges_lib.one_hot(genotype.normal, few)
  edges_lib.check_weights(dict.fromkeys(edges_lib.KINDS, table))


def test_the_rows_of_a_cell():
  assert edges_lib.edge_list(1) == [(0, 0), (0, 1)]
  assert edges_lib.edge_list(2) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
  assert edges_lib.edge_list(4)[-1] == (3, 4)
  for nodes in range(1, 6):
    count = edges_lib.num_edges(nodes)
    listed = edges_lib.edge_list(nodes)
    assert len(listed) == count
    assert edges_lib.num_nodes(count) == nodes
    for node, rows in enumerate(edges_lib.node_rows(count)):
      assert listed[rows] == [(node, state) for state in range(2 + node)]
  assert edges_lib.all_nodes(3) == (2, 3, 4)


@pytest.mark.parametrize('count', [0, 1, 3, 13])
def test_edges_of_no_cell_are_refused(count):
  for function in (edges_lib.num_nodes, edges_lib.node_rows):
    with pytest.raises(UsageError, match='fit no cell'):
      function(count)


def test_the_rows_and_columns_of_a_genotype():
  chosen = cells.DARTS_V2.reduction
  rows = edges_lib.genotype_rows(chosen)
  listed = edges_lib.edge_list(4)
  assert [listed[row] for row in rows] == [
    (index // 2, state) for index, (_, state) in enumerate(chosen)
  ]
  table = edges_lib.one_hot(chosen, ops.PRIMITIVES)
  assert table.shape == (14, 8) and table.sum() == 8
  names = list(ops.PRIMITIVES)
  for row, (name, _) in zip(rows, chosen, strict=True):
    assert table[row, names.index(name)] == 1


def test_columns_that_are_real():
  assert edges_lib.real_columns(FEW) == [0, 2]
  assert not edges_lib.real_columns({'mine': ops.Zero()})
  names = list(ops.OPERATIONS)
  real = [names[column] for column in edges_lib.real_columns(ops.OPERATIONS)]
  assert real == [name for name in names if name != 'none']


def test_weights_are_the_softmax_of_each_edge():
  rng = np.random.default_rng(0)
  alphas = {
    'normal': rng.normal(size=(5, 8)).astype(np.float32),
    'reduction': rng.normal(size=(2, 3)).astype(np.float32),
  }
  weights = edges_lib.softmax_weights(alphas)
  assert set(weights) == set(alphas)
  for kind, value in alphas.items():
    exponents = np.exp(value.astype(np.float64))
    np.testing.assert_allclose(
      weights[kind], exponents / exponents.sum(1, keepdims=True), rtol=1e-6
    )


def test_large_alphas_do_not_overflow():
  alphas = {kind: np.full((2, 2), 1e4) for kind in edges_lib.KINDS}
  for table in edges_lib.softmax_weights(alphas).values():
    np.testing.assert_allclose(table, 0.5)


def test_edges_share_a_node_by_the_softmax_of_their_logits():
  rng = np.random.default_rng(0)
  alphas = {
    kind: jnp.asarray(rng.normal(size=shape), jnp.float32)
    for kind, shape in (
      ('normal', (5, 3)),
      ('reduction', (5, 3)),
      ('normal_edges', (5,)),
      ('reduction_edges', (5,)),
    )
  }
  weights = edges_lib.softmax_weights(alphas)
  logs = edges_lib.log_softmax_weights(alphas)
  assert set(weights) == {'normal', 'reduction'}
  for kind, table in weights.items():
    odds = np.exp(np.asarray(alphas[kind], np.float64))
    shares = np.exp(np.asarray(alphas[f'{kind}_edges'], np.float64))
    # Node 0 has the first two edges, node 1 the other three.
    shares[:2] /= shares[:2].sum()
    shares[2:] /= shares[2:].sum()
    expected = odds / odds.sum(1, keepdims=True) * shares[:, None]
    np.testing.assert_allclose(table, expected, rtol=1e-5)
    np.testing.assert_allclose(logs[kind], np.log(expected), atol=1e-5)


@pytest.mark.parametrize('with_logits', [False, True])
def test_weights_of_all_epochs_are_those_of_each(with_logits):
  rng = np.random.default_rng(0)
  alphas = {kind: rng.normal(size=(3, 5, 8)) for kind in edges_lib.KINDS}
  if with_logits:
    for kind in edges_lib.KINDS:
      alphas[edges_lib.logits_key(kind)] = rng.normal(size=(3, 5))
  alphas = jax.tree.map(jnp.asarray, alphas)
  together = edges_lib.softmax_weights(alphas)
  for epoch in range(3):
    own = edges_lib.softmax_weights({k: a[epoch] for k, a in alphas.items()})
    for kind, table in own.items():
      np.testing.assert_array_equal(together[kind][epoch], table)
