"""Random genotypes, and the step of a search that draws them."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.search import bilevel
from ms_ranas_jax.search import random_search
from ms_ranas_jax.space import operations as ops

FEW = {
  name: ops.PRIMITIVES[name]
  for name in ('skip_connect', 'none', 'avg_pool_3x3')
}


def _draw(count, nodes, primitives):
  keys = jax.random.split(jax.random.key(0), count)
  draw = jax.jit(
    jax.vmap(lambda k: random_search.random_weights(k, nodes, primitives))
  )
  return jax.device_get(draw(keys))


def test_random_weights_are_one_hot_and_even():
  drawn = _draw(2000, 2, FEW)
  assert set(drawn) == {'normal', 'reduction'}
  pairs = collections.Counter()
  for table in drawn.values():
    assert table.shape == (2000, 5, 3)
    assert set(np.unique(table)) == {0, 1}
    np.testing.assert_array_equal(table.sum(axis=2), 1)
    kept = table[:, :, 1] == 0
    # Both edges of the first node, two of three of the second.
    assert kept[:, :2].all()
    np.testing.assert_array_equal(kept[:, 2:].sum(axis=1), 2)
    pairs.update(map(tuple, kept[:, 2:]))
    shares = table[..., [0, 2]].sum(axis=(0, 1)) / (4 * 2000)
    # Five standard deviations.
    np.testing.assert_allclose(shares, 0.5, atol=5 * 0.5 / 8000**0.5)
  assert len(pairs) == 3
  for count in pairs.values():
    assert abs(count / 4000 - 1 / 3) < 5 * (2 / 9 / 4000) ** 0.5
  assert (drawn['normal'] != drawn['reduction']).any()


def test_random_weights_without_none_leave_edges_out():
  primitives = {n: o for n, o in FEW.items() if n != 'none'}
  table = _draw(50, 2, primitives)['normal']
  np.testing.assert_array_equal(np.sort(table.sum(axis=2)[:, 2:])[:, 0], 0)
  np.testing.assert_array_equal(table.sum(axis=(1, 2)), 4)


def test_weights_and_genotypes_are_each_others_inverse():
  drawn = _draw(20, 3, ops.PRIMITIVES)
  for index in range(20):
    weights = {kind: table[index] for kind, table in drawn.items()}
    genotype = alphas_lib.derive_genotype(weights)
    again = alphas_lib.one_hot_weights(genotype)
    for kind, table in weights.items():
      np.testing.assert_array_equal(again[kind], table)


def test_random_genotypes_are_reproducible_and_differ():
  first = random_search.random_genotypes(3, 30, 2)
  assert random_search.random_genotypes(3, 30, 2) == first
  assert len(set(first)) == 30
  # More of them go on from there.
  assert random_search.random_genotypes(3, 40, 2)[:30] == first
  assert not set(random_search.random_genotypes(4, 30, 2)) & set(first)
  for genotype in first:
    assert genotype.nodes == 2
    assert 'none' not in genotype.operations()
  assert random_search.random_genotypes(3, 0, 2) == []


def test_a_small_space_is_drawn_whole():
  # Two operations on two edges of two cells.
  found = random_search.random_genotypes(0, 20, 1, FEW)
  assert len(found) == len(set(found)) == 16


def test_preferred_genotypes_come_first():
  def preferred(genotype):
    return 'skip_connect' not in genotype.operations()

  found = random_search.random_genotypes(0, 3, 1, FEW, preferred)
  # There is one that is.
  assert [preferred(g) for g in found] == [True, False, False]
  assert len(set(found)) == 3


def test_the_step_trains_the_drawn_params_alone():
  """Each weight has a param of its own, pulled to the batch's value."""

  def loss(params, weights, batch_stats, batch):
    table = weights['normal']
    value = 0.5 * jnp.sum(table * (params - batch) ** 2)
    return value, ({'seen': batch_stats['seen'] + 1}, {'batch': batch})

  optimizer = optax.sgd(0.5)
  state = bilevel.init_state(
    jnp.zeros((2, 3)),
    {'normal': jnp.ones((2, 3))},
    {'seen': 0},
    optimizer,
    optax.adam(1e-3),
    jax.random.key(1),
  )
  step = jax.jit(
    functools.partial(
      random_search.random_search_step,
      loss=loss,
      params_optimizer=optimizer,
      nodes=1,
      primitives=FEW,
    )
  )
  drawn = set()
  for number in range(1, 9):
    after, metrics = step(state, jnp.float32(4), jnp.float32(1))
    moved = np.asarray(after.params - state.params)
    chosen = np.asarray(moved != 0)
    np.testing.assert_array_equal(chosen.sum(axis=1), 1)
    assert not chosen[:, 1].any()
    np.testing.assert_allclose(
      moved, chosen * 0.5 * (4 - np.asarray(state.params))
    )
    assert int(after.step) == number
    assert int(after.batch_stats['seen']) == number
    np.testing.assert_array_equal(after.alphas['normal'], 1)
    # Of the params before the update, and the same genotype.
    assert metrics['valid_batch'] == 1 and metrics['train_batch'] == 4
    before = np.asarray(state.params)[chosen]
    np.testing.assert_allclose(
      metrics['valid_loss'], 0.5 * ((before - 1) ** 2).sum(), rtol=1e-6
    )
    np.testing.assert_allclose(
      metrics['train_gradient_norm'], np.linalg.norm(4 - before), rtol=1e-6
    )
    drawn.add(tuple(chosen.ravel()))
    state = after
  assert len(drawn) > 1
