"""The cost in the loss of a search, as a term and as a target."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax import settings
from ms_ranas_jax.costs import cost
from ms_ranas_jax.costs import linear_cost
from ms_ranas_jax.data.datasets import load_dataset
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import metrics
from ms_ranas_jax.search import cost_term
from ms_ranas_jax.search import stage
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops

SPEC = grid.NetworkSpec(8, 4, 2, 2, image_shape=(8, 8, 1))
# The costs of a search with them lie far apart.
FEW = {
  name: ops.PRIMITIVES[name]
  for name in ('none', 'skip_connect', 'sep_conv_3x3')
}


def _config(**changes):
  config = default_config.get_config()
  config.search.network.nodes = 2
  config.search.cost.update(changes)
  return settings.parse(config)


def _term(**changes):
  return cost_term.build_cost_term(
    _config(**changes).search, SPEC, ops.PRIMITIVES
  )


def _alphas(seed=0, scale=0.5):
  rng = np.random.default_rng(seed)
  return {
    kind: jnp.asarray(scale * rng.normal(size=(5, 8)), jnp.float32)
    for kind in ('normal', 'reduction')
  }


def test_a_weighted_term_is_relative_to_uniform_alphas():
  term = _term(weight=0.5)
  uniform = jax.tree.map(jnp.zeros_like, _alphas())
  value, (violation, found) = term.penalty(uniform, jnp.float32(3))
  np.testing.assert_allclose(value, 0.5, rtol=1e-6)
  assert violation == 0
  np.testing.assert_allclose(found['expected_cost'], term.expected(uniform))
  # Its gradient leads to cheaper networks.
  gradient = jax.grad(term.penalty, has_aux=True)(_alphas(), jnp.float32(0))[0]
  moved = jax.tree.map(lambda a, g: a - 0.1 * g, _alphas(), gradient)
  assert term.expected(moved) < term.expected(_alphas())
  nothing = _term().penalty(_alphas(), jnp.float32(0))[0]
  assert nothing == 0


def test_a_target_is_a_constraint():
  expected = float(_term().expected(_alphas()))
  term = _term(target=0.9 * expected)
  low, high = cost_term.constrained.cost_range(term.tables)
  v = 0.1 * expected / (high - low)
  value, (violation, _) = term.penalty(_alphas(), jnp.float32(2))
  np.testing.assert_allclose(value, 2 * v + 10 * v * v / 2, rtol=1e-4)
  assert np.sign(violation) == np.sign(v)


@pytest.mark.parametrize('share', [0.2, 0.4, 0.8])
def test_alphas_come_to_cost_the_target_against_another_pull(share):
  """A pull towards large convolutions stands for the loss."""
  tables = _term().tables
  cheapest, dearest = cost_term.constrained.cost_range(tables)
  target = cheapest + share * (dearest - cheapest)
  term = _term(target=target)

  def pull(alphas):
    weights = edges_lib.softmax_weights(alphas)
    return -sum(jnp.mean(table[:, 5]) for table in weights.values())

  optimizer = optax.adam(1e-2, b1=0.5)

  @jax.jit
  def step(carry, _):
    alphas, state, multiplier = carry
    gradient, (violation, _) = jax.grad(term.penalty, has_aux=True)(
      alphas, multiplier
    )
    gradient = jax.tree.map(jnp.add, gradient, jax.grad(pull)(alphas))
    updates, state = optimizer.update(gradient, state)
    alphas = optax.apply_updates(alphas, updates)
    return (alphas, state, multiplier + violation), term.expected(alphas)

  alphas = _alphas(scale=1e-3)
  carry = alphas, optimizer.init(alphas), jnp.float32(0)
  (alphas, _, _), costs = jax.lax.scan(step, carry, length=1000)
  np.testing.assert_allclose(costs[-300:].mean(), target, rtol=0.01)
  genotype = term.derive(edges_lib.softmax_weights(alphas))
  exact = cost.network_cost(network_lib.derived_network(SPEC, genotype)).macs
  assert abs(exact / target - 1) <= 0.05


def test_a_target_that_no_network_has_is_refused():
  with pytest.raises(UsageError, match='search.cost.target = 1: .* macs'):
    _term(target=1.0)
  with pytest.raises(UsageError, match='search.cost.target = .*params'):
    _term(target=1e12, metric='params')


@pytest.mark.parametrize('exit_', [3, -4])
def test_an_exit_that_is_not_there_is_refused(exit_):
  with pytest.raises(UsageError, match='search.cost.exit = .*exits 0 to 2'):
    _term(exit=exit_)


def test_a_search_finds_what_it_was_asked_for(tmp_path):
  """And says what it expects, and what the cells of every epoch cost."""
  dataset = load_dataset('digits')
  config = default_config.get_config()
  config.num_devices = 1
  config.search.update(epochs=2, batch_size=64, alphas_learning_rate=0.05)
  config.search.network.update(channels=4, layers=2, nodes=1, scales=1)
  config.train.network.update(channels=4, layers=3, nodes=1, scales=1)
  config.search.primitives = tuple(FEW)
  spec = grid.network_spec(
    settings.parse(config).train.network,
    dataset.image_shape,
    dataset.num_classes,
  )
  cheapest, dearest = cost_term.constrained.cost_range(
    linear_cost.cost_tables(spec, FEW), FEW
  )
  # All edges of one of the two cells.
  for share in (0.3, 0.7):
    target = cheapest + share * (dearest - cheapest)
    config.search.cost.update(target=target, tolerance=0.2)
    workdir = tmp_path / str(share)
    genotype = stage.run_search(settings.parse(config), dataset, str(workdir))
    network = network_lib.derived_network(spec, genotype)
    exact = cost.network_cost(network).macs
    assert abs(exact / target - 1) <= 0.2
    records = metrics.read_metrics(workdir / 'search/metrics.jsonl')
    costs = [r['expected_cost'] for r in records]
    assert abs(costs[-1] - target) < abs(costs[0] - target)
    ends = [r for r in records if 'derived_cost' in r]
    assert len(ends) == 2
    assert all(cheapest <= r['derived_cost'] <= dearest for r in ends)


@pytest.mark.parametrize('metric', linear_cost.METRICS)
def test_any_metric_can_be_a_term(metric):
  """A peak is no sum over edges, and its tables are others."""
  term = _term(metric=metric, weight=0.5)
  uniform = jax.tree.map(jnp.zeros_like, _alphas())
  value, (_, found) = term.penalty(uniform, jnp.float32(0))
  np.testing.assert_allclose(value, 0.5, rtol=1e-6)
  np.testing.assert_allclose(found['expected_cost'], term.uniform, rtol=1e-6)
