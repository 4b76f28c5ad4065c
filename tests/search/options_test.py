"""What the guards mean for a search, on a tiny network and a few digits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax import settings
from ms_ranas_jax.costs import cost
from ms_ranas_jax.data.datasets import load_dataset
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import loop as loop_lib
from ms_ranas_jax.runtime import metrics
from ms_ranas_jax.runtime import parallel
from ms_ranas_jax.runtime.interruption import Interrupted
from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.search import early_stop
from ms_ranas_jax.search import methods
from ms_ranas_jax.search import options
from ms_ranas_jax.search import ranking
from ms_ranas_jax.search import stage
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import operations as ops

FEW = {
  name: ops.PRIMITIVES[name]
  for name in ('none', 'avg_pool_3x3', 'skip_connect')
}
EPOCHS, BATCH, STEPS = 4, 8, 2
SPEC = grid.NetworkSpec(4, 3, 1, image_shape=(8, 8, 1))
ALL = {
  'max_skips': 1,
  'auxiliary_skip': 0.9,
  'partial_channels': 2,
  'early_stop': True,
  # One more than the validation half has.
  'early_stop_batches': STEPS + 1,
  'early_stop_window': 1,
}

# It has no alphas, nor a rate for them.
RANDOM = {'method': 'random', 'alphas_learning_rate': 3e-4}


def _config(epochs=EPOCHS, search=None, **changes):
  config = default_config.get_config()
  config.num_devices = 1
  config.search.update(epochs=epochs, batch_size=BATCH, chunk_steps=STEPS)
  config.search.alphas_learning_rate = 0.05
  config.search.network.update(channels=4, layers=3, nodes=1, scales=1)
  config.search.guards.update(changes)
  config.search.primitives = tuple(FEW)
  config.search.update(search or {})
  return settings.parse(config)


@pytest.fixture(scope='module')
def dataset():
  digits = load_dataset('digits')
  count = 2 * STEPS * BATCH
  return dataclasses.replace(
    digits,
    train_images=digits.train_images[:count],
    train_labels=digits.train_labels[:count],
  )


@pytest.fixture(scope='module')
def program(dataset):
  """Compiled once for all searches, which differ in their eigenvalues."""
  return stage.build_program(_config(**ALL), dataset)


@pytest.fixture
def search(dataset, program, monkeypatch):
  """(workdir, eigenvalues of the epochs, interruption) -> the genotype."""

  def run(workdir, eigenvalues, interruption=None):
    made = dataclasses.replace(
      program, eigenvalue=lambda state, epoch: eigenvalues[epoch]
    )
    monkeypatch.setattr(stage, 'build_program', lambda *_: made)
    return stage.run_search(_config(**ALL), dataset, str(workdir), interruption)

  return run


def _alphas(workdir):
  with np.load(workdir / 'search' / 'alphas.npz') as arrays:
    return {kind: arrays[kind] for kind in arrays.files}


def _metrics(workdir):
  records = metrics.read_metrics(workdir / 'search' / 'metrics.jsonl')
  return [{k: v for k, v in r.items() if k != 'seconds'} for r in records]


def _genotype(program, alphas, entry):
  weights = edges_lib.softmax_weights(
    {kind: jnp.asarray(values[entry]) for kind, values in alphas.items()}
  )
  return program.cost_term.derive(weights)


def test_the_state_of_the_guards_is_in_the_metrics(search, program, tmp_path):
  eigenvalues = [4.0, 3.0, 2.0, 1.0]
  genotype = search(tmp_path, eigenvalues)
  records = _metrics(tmp_path)
  assert [r['hessian_eigenvalue'] for r in records] == eigenvalues
  np.testing.assert_allclose(
    [r['auxiliary_skip'] for r in records], [0.9, 0.6, 0.3, 0.0], rtol=1e-6
  )
  alphas = _alphas(tmp_path)
  assert {kind: v.shape for kind, v in alphas.items()} == {
    'normal': (EPOCHS + 1, 2, 3),
    'reduction': (EPOCHS + 1, 2, 3),
    'normal_edges': (EPOCHS + 1, 2),
    'reduction_edges': (EPOCHS + 1, 2),
  }
  for values in alphas.values():
    assert (np.abs(np.diff(values, axis=0)) > 0).any(axis=0).all()
  for epoch, record in enumerate(records, start=1):
    weights = {
      kind: np.asarray(table)
      for kind, table in edges_lib.softmax_weights(
        {k: jnp.asarray(v[epoch]) for k, v in alphas.items()}
      ).items()
    }
    for kind, table in weights.items():
      # Of each of the two edges, whether the skip outweighs the pool.
      assert record[f'{kind}_skips'] == np.sum(table[:, 2] > table[:, 1])
  assert genotype == _genotype(program, alphas, -1)


def test_it_stops_with_the_genotype_from_before_the_rise(
  search, program, dataset, tmp_path, monkeypatch
):
  eigenvalues = [1.0, 1.2, 1.7, 1.0]
  genotype = search(tmp_path, eigenvalues)
  records = _metrics(tmp_path)
  # 1.7 is the first to be more than 1.3 times the one before.
  assert [r['epoch'] for r in records] == [0, 1, 2]
  alphas = _alphas(tmp_path)
  assert len(alphas['normal']) == 4
  # After two epochs; the first entry is that before any.
  assert genotype == _genotype(program, alphas, 2)
  monkeypatch.setattr(parallel, 'compile_chunk', None)  # nothing is left to do
  assert search(tmp_path, None) == genotype
  assert _metrics(tmp_path) == records


@pytest.mark.slow
def test_an_interrupted_search_stops_where_it_would_have(
  search, tmp_path, monkeypatch, stop_at_call
):
  eigenvalues = [1.0, 1.2, 1.7, 1.0]
  genotype = search(tmp_path / 'whole', eigenvalues)
  monkeypatch.setattr(loop_lib, '_call_length', lambda *_: 1)
  with pytest.raises(Interrupted):
    search(tmp_path / 'parts', eigenvalues, stop_at_call(3))
  assert search(tmp_path / 'parts', eigenvalues) == genotype
  assert _metrics(tmp_path / 'parts') == _metrics(tmp_path / 'whole')
  whole = _alphas(tmp_path / 'whole')
  for kind, values in _alphas(tmp_path / 'parts').items():
    np.testing.assert_array_equal(values, whole[kind])


def test_lost_eigenvalues_are_refused(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 2, "epoch": 0, "hessian_eigenvalue": 1.5}\n')
  assert options.read_eigenvalues(str(path), 1) == [1.5]
  with pytest.raises(UsageError, match='lacks the hessian_eigenvalue.* 2'):
    options.read_eigenvalues(str(path), 2)


@pytest.mark.slow
def test_the_eigenvalue_is_that_of_the_mean_over_batches(dataset, program):
  state = program.new_state()
  weigh = options.weights_in(_config(**ALL).search, 1)
  loss = methods.exit_loss(program.network, (1.0,) * 2, weigh)

  def batch(rows):
    images = (dataset.train_images[rows] / 255.0 - np.array(dataset.mean)) / (
      np.array(dataset.std)
    )
    return images.astype(np.float32), dataset.train_labels[rows]

  rows = program.halves[1]
  assert len(rows) == STEPS * BATCH
  batches = [batch(part) for part in np.split(rows, STEPS)]

  def value(params, alphas):
    losses = [loss(params, alphas, state.batch_stats, b)[0] for b in batches]
    return sum(losses) / STEPS

  count = sum(a.size for a in state.alphas.values())
  expected = jax.jit(
    lambda p, a: early_stop.hessian_eigenvalue(value, p, a, count)
  )(state.params, state.alphas)
  found = float(program.eigenvalue(state, 1))
  assert found > 1e-4
  np.testing.assert_allclose(found, expected, rtol=1e-2)


def test_without_guards_the_network_is_the_plain_one():
  section = _config().search
  network = options.search_network(section, SPEC, FEW)
  assert network.partial_channels == 1
  assert tuple(network.operations) == tuple(FEW)
  assert options.weights_in(section, 0) is edges_lib.softmax_weights
  assert options.line_metrics(section, 0) == {}
  assert options.max_skips(section) is None
  assert not options.edge_normalization(section)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'partial_channels': 3}, 'partial_channels = 3 .*channels = 4'),
    ({'auxiliary_skip': 1.0, 'epochs': 1}, 'search.epochs = 1'),
    ({'early_stop': True}, 'window = 5 epochs, but search.epochs = 4'),
  ],
)
def test_guards_that_do_not_fit_are_refused(changes, message, dataset):
  with pytest.raises(UsageError, match=message):
    stage.build_program(_config(**changes), dataset)


@pytest.mark.parametrize(
  ('guard', 'search', 'message'),
  [
    (
      {'early_stop': True, 'early_stop_window': 1},
      {'num_seeds': 2},
      'search.num_seeds = 2',
    ),
    ({'auxiliary_skip': 1.0}, RANDOM, 'no alphas to guard'),
    ({'partial_channels': 2}, RANDOM, 'no alphas to guard'),
  ],
)
def test_guards_that_do_not_go_with_a_search_are_refused(
  guard, search, message
):
  config = _config(search=search, **guard)
  with pytest.raises(UsageError, match=message):
    options.check(
      config.search, FEW, methods.named(config.search.method).has_alphas
    )


def test_one_hot_weights_leave_the_auxiliary_skip_out():
  found = options.one_hot_weights(
    _config(auxiliary_skip=1.0).search,
    next(ranking.ranked_genotypes(_uniform_weights(), FEW)),
    FEW,
  )
  for table in found.values():
    assert table.shape[1] == len(FEW) + 1
    assert not np.any(table[:, -1])
    np.testing.assert_array_equal(np.sum(table, axis=1), 1)


def test_one_hot_weights_share_a_node_between_its_two_edges():
  """With edge normalisation, where channels go past edges by their share."""
  config = _config(partial_channels=2)
  shape = edges_lib.num_edges(2), len(FEW)
  rng = np.random.default_rng(0)
  weights = {k: rng.uniform(size=shape) for k in ('normal', 'reduction')}
  genotype = alphas_lib.derive_genotype(weights, FEW)
  found = options.one_hot_weights(config.search, genotype, FEW)
  plain = alphas_lib.one_hot_weights(genotype, FEW)
  none = list(FEW).index('none')
  for kind, table in found.items():
    kept = plain[kind][:, none] == 0
    np.testing.assert_array_equal(table[kept], plain[kind][kept] / 2)
    np.testing.assert_array_equal(table[~kept], 0)
    # The rows of a node sum to one together, as in the search.
    np.testing.assert_array_equal([table[:2].sum(), table[2:].sum()], [1, 1])


def _uniform_weights():
  nodes = _config().search.network.nodes
  shape = edges_lib.num_edges(nodes), len(FEW)
  return {k: np.full(shape, 1 / len(FEW)) for k in ('normal', 'reduction')}


def test_a_cap_needs_something_else_to_choose():
  skips = {name: FEW[name] for name in ('none', 'skip_connect')}
  section = _config(max_skips=1).search
  options.check(section, FEW)
  options.check(_config(max_skips=2).search, skips)
  with pytest.raises(UsageError, match='search.guards.max_skips = 1'):
    options.check(section, skips)


def test_the_cost_of_the_search_network_is_that_with_guards():
  plain, partial, beside = (
    cost.network_cost(
      options.search_network(_config(**changes).search, SPEC, FEW)
    )
    for changes in ({}, {'partial_channels': 2}, {'auxiliary_skip': 1.0})
  )
  assert partial.macs < plain.macs
  # Two factorized reduces in each of two reduction cells, of 8 channels at 8x8
  # and of 16 at 4x4.
  added = 2 * (8 * 8 + 16 * 16)
  assert beside.params == plain.params + added
  assert beside.macs == plain.macs + 2 * (8 * 8 * 16 + 16 * 16 * 4)
