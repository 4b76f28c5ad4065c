"""The expected cost of what alphas would be derived to."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.costs import cost
from ms_ranas_jax.costs import linear_cost
from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.search import derived_cost
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops

SPEC = grid.NetworkSpec(8, 4, 2, 2)


def _alphas(nodes, scale, seed=0):
  rng = np.random.default_rng(seed)
  shape = edges_lib.num_edges(nodes), len(ops.PRIMITIVES)
  return {
    kind: scale * rng.normal(size=shape) for kind in ('normal', 'reduction')
  }


@pytest.mark.parametrize('nodes', [1, 2, 3])
def test_probabilities_are_those_of_the_draw(nodes):
  """Against a sum over all pairs of edges, in both orders."""
  with jax.enable_x64(True):
    alphas = _alphas(nodes, 1.0)
    found = derived_cost.derived_probabilities(alphas, temperature=0.7)
  for kind, table in alphas.items():
    weights = np.exp(table) / np.exp(table).sum(1, keepdims=True)
    strength = weights[:, 1:].max(1) ** (1 / 0.7)  # `none` is the first
    odds = np.exp(table[:, 1:] / 0.7)
    odds /= odds.sum(1, keepdims=True)
    row = 0
    for node in range(nodes):
      states = range(2 + node)
      kept = np.zeros(len(states))
      block = strength[row : row + len(states)]
      for first, second in itertools.permutations(states, 2):
        share = block[first] / block.sum()
        share *= block[second] / (block.sum() - block[first])
        kept[[first, second]] += share
      np.testing.assert_allclose(
        found[kind][row : row + len(states), 1:],
        kept[:, None] * odds[row : row + len(states)],
        rtol=1e-9,
      )
      np.testing.assert_allclose(kept.sum(), 2)
      row += len(states)
    assert not np.any(found[kind][:, 0])


@pytest.mark.parametrize('metric', cost.METRICS)
@pytest.mark.parametrize('exit_index', [0, None])
def test_sharp_alphas_cost_what_their_network_costs(metric, exit_index):
  """Exactly at one-hot; within 1 % once they are sharp."""
  tables = linear_cost.cost_tables(SPEC, metric=metric, exit_index=exit_index)
  for seed in range(5):
    alphas = _alphas(2, 1.0, seed)
    genotype = alphas_lib.derive_genotype(edges_lib.softmax_weights(alphas))
    exact = tables.of_genotype(genotype)
    network = network_lib.derived_network(SPEC, genotype)
    exits = cost.network_cost(network).exits
    exit_cost = exits[-1 if exit_index is None else exit_index]
    assert exact == getattr(exit_cost, metric)
    for temperature, tolerance in ((1e-4, 1e-6), (0.005, 0.01)):
      found = derived_cost.expected_derived_cost(
        alphas, tables, temperature=temperature
      )
      np.testing.assert_allclose(found, exact, rtol=tolerance)


@pytest.mark.parametrize('temperature', [0.3, 1.0])
def test_its_gradient_is_that_of_finite_differences(temperature):
  with jax.enable_x64(True):
    tables = linear_cost.cost_tables(SPEC)
    alphas = _alphas(2, 0.5)

    def relative(alphas):
      return (
        derived_cost.expected_derived_cost(
          alphas, tables, temperature=temperature
        )
        / 1e6
      )

    gradient = jax.jit(jax.grad(relative))(alphas)
    evaluate = jax.jit(relative)
    rng = np.random.default_rng(1)
    for _ in range(5):
      direction = jax.tree.map(lambda a: rng.normal(size=a.shape), alphas)
      step = 1e-6
      ahead, behind = (
        evaluate(jax.tree.map(lambda a, d, s=s: a + s * d, alphas, direction))
        for s in (step, -step)
      )
      expected = sum(jnp.sum(gradient[k] * direction[k]) for k in alphas)
      np.testing.assert_allclose(
        (ahead - behind) / (2 * step), expected, rtol=1e-6
      )


def test_far_alphas_have_finite_costs_and_gradients():
  tables = linear_cost.cost_tables(SPEC)
  alphas = jax.tree.map(np.float32, _alphas(2, 100.0))
  value, gradient = jax.value_and_grad(derived_cost.expected_derived_cost)(
    alphas, tables
  )
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in gradient.values())
