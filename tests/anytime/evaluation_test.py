"""The evaluate stage: a tiny network, most of the time with made-up logits."""

import json
import os
import types

import jax
import numpy as np
import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax.anytime import budgets
from ms_ranas_jax.anytime import evaluation
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import checkpoint
from ms_ranas_jax.runtime import parallel
from ms_ranas_jax.runtime.data import Dataset
from ms_ranas_jax.space import cost
from ms_ranas_jax.space import curves
from ms_ranas_jax.space import genotype
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.training import loop
from ms_ranas_jax.training import steps

TRAIN, TEST, HOLDOUT, CLASSES, EXITS = 60, 40, 25, 3, 2
EPOCHS, BATCH = 2, 10
STEPS = (TRAIN - HOLDOUT) // BATCH
EDGES = (('skip_connect', 0), ('skip_connect', 1))
CELLS = genotype.Genotype(EDGES, (2,), EDGES, (2,))
SPEC = grid.NetworkSpec(
  channels=4,
  layers=3,
  nodes=1,
  exits=(1, 2),
  image_shape=(4, 4, 1),
  num_classes=CLASSES,
)


@pytest.fixture(scope='module')
def network():
  return network_lib.derived_network(SPEC, CELLS)


def _config(**changes):
  config = default_config.get_config()
  config.num_devices = 1
  config.dataset.holdout = HOLDOUT
  config.train.update(epochs=EPOCHS, batch_size=BATCH)
  config.evaluate.batch_size = 16
  config.update_from_flattened_dict(changes)
  return config


@pytest.fixture(scope='module')
def dataset():
  """The first pixel of an image says which one it is."""
  rng = np.random.default_rng(0)

  def images(count, first):
    pixels = rng.integers(0, 256, (count, *SPEC.image_shape), dtype=np.uint8)
    pixels[:, 0, 0, 0] = np.arange(first, first + count)
    return pixels

  return Dataset(
    name='toy',
    train_images=images(TRAIN, 0),
    train_labels=rng.integers(0, CLASSES, TRAIN).astype(np.int32),
    test_images=images(TEST, 100),
    test_labels=rng.integers(0, CLASSES, TEST).astype(np.int32),
    num_classes=CLASSES,
    mean=(0.5,),
    std=(0.25,),
  )


@pytest.fixture
def fake(monkeypatch):
  """Made-up logits of every image, and the images that were asked for."""
  rng = np.random.default_rng(1)
  # Test images are less sure than held-out ones, so that it shows which of
  # them thresholds come from.
  logits = rng.normal(size=(EXITS, 256, CLASSES)).astype(np.float32)
  logits[:, :100] *= 3
  asked = []

  def predict(apply, variables, images, mean, std, batch_size):
    assert (mean, std, batch_size) == ((0.5,), (0.25,), 16)
    which = images[:, 0, 0, 0].astype(int)
    asked.append(which)
    return logits[:, which]

  monkeypatch.setattr(evaluation.prediction, 'predict', predict)
  return types.SimpleNamespace(logits=logits, asked=asked)


def _evaluate(dataset, network, config=None):
  config = config or _config()
  _, held_out = loop.split_training_images(config, dataset)
  return evaluation.evaluate_exits(config, dataset, network, {}, held_out)


def _probabilities(logits):
  exponents = np.exp(logits.astype(np.float64))
  return exponents / exponents.sum(-1, keepdims=True)


def _confidence(logits):
  return _probabilities(logits).max(-1)


def test_anytime_is_measured_on_the_test_images(fake, dataset, network):
  anytime, _ = _evaluate(dataset, network)
  logits = fake.logits[:, 100 : 100 + TEST]
  right = logits.argmax(-1) == dataset.test_labels
  losses = -np.log(
    _probabilities(logits)[:, np.arange(TEST), dataset.test_labels]
  ).mean(1)
  expected_cost = cost.network_cost(network)

  assert anytime['dataset'] == 'toy'
  assert anytime['num_examples'] == TEST
  assert len(anytime['exits']) == EXITS
  for index, row in enumerate(anytime['exits']):
    np.testing.assert_allclose(row.pop('accuracy'), right[index].mean())
    np.testing.assert_allclose(row.pop('loss'), losses[index], rtol=1e-5)
    of_exit = expected_cost.exits[index]
    assert row == {
      'exit': index,
      'layer': (1, 2)[index],
      'macs': of_exit.macs,
      'flops_msdnet': of_exit.flops_msdnet,
      'params': of_exit.params,
      'total_params': expected_cost.params,
      'peak_activation_bytes': of_exit.peak_activation_bytes,
    }


def test_expected_accuracy_is_worked_by_hand(fake, dataset, network):
  anytime, _ = _evaluate(dataset, network)
  first, last = anytime['exits']
  # From nothing to the last exit's cost; chance before the first exit, and the
  # last one is reached at the very end only.
  share = first['macs'] / last['macs']
  np.testing.assert_allclose(
    anytime['expected_accuracy'],
    share / CLASSES + (1 - share) * first['accuracy'],
    rtol=1e-6,
  )
  assert anytime['budget_range'] == [0, last['macs']]


def test_the_budget_range_can_be_set(fake, dataset, network):
  macs = [e.macs for e in cost.network_cost(network).exits]
  middle = (macs[0] + macs[1]) / 2
  anytime, _ = _evaluate(
    dataset,
    network,
    _config(**{'evaluate.budget_range': (middle, 2 * macs[1] - middle)}),
  )
  first, last = (e['accuracy'] for e in anytime['exits'])
  np.testing.assert_allclose(
    anytime['expected_accuracy'], (first + last) / 2, rtol=1e-6
  )
  assert anytime['budget_range'] == [middle, 2 * macs[1] - middle]


def test_thresholds_come_from_held_out_images(fake, dataset, network):
  _, budgeted = _evaluate(dataset, network)
  _, held_out = loop.split_training_images(_config(), dataset)
  test = fake.logits[:, 100 : 100 + TEST]
  right = test.argmax(-1) == dataset.test_labels
  macs = [e.macs for e in cost.network_cost(network).exits]

  def points(confidence):
    """Thresholds from these images, results of the test images."""
    rows = []
    for q in budgets.QS:
      thresholds = budgets.solve_thresholds(
        confidence, budgets.exit_fractions(q, EXITS)
      )
      rows.append(
        budgets.apply_thresholds(_confidence(test), right, macs, thresholds)
      )
    return rows

  assert budgeted['num_holdout'] == HOLDOUT
  assert [p['q'] for p in budgeted['points']] == list(budgets.QS)
  found = np.array([p['fractions'] for p in budgeted['points']])
  expected = points(_confidence(fake.logits[:, held_out]))
  np.testing.assert_allclose(found, [row[2] for row in expected])
  for point, (accuracy, spent, _) in zip(budgeted['points'], expected):
    assert set(point) == {'q', 'accuracy', 'macs', 'fractions'}
    np.testing.assert_allclose(point['accuracy'], accuracy)
    np.testing.assert_allclose(point['macs'], spent)
  # Thresholds from the test images, or from those that were trained on, would
  # be others.
  for other in (test, fake.logits[:, :TRAIN]):
    fractions = [row[2] for row in points(_confidence(other))]
    assert np.abs(found - fractions).max() > 0.05


def test_test_images_cannot_move_the_thresholds(
  fake, dataset, network, monkeypatch
):
  thresholds = []
  solve = budgets.solve_thresholds

  def watched(confidence, fractions):
    thresholds.append(solve(confidence, fractions))
    return thresholds[-1]

  monkeypatch.setattr(budgets, 'solve_thresholds', watched)
  _evaluate(dataset, network)
  before = np.array(thresholds)
  del thresholds[:]
  fake.logits[:, 100:] = 7 * fake.logits[:, 100:] + 1
  _evaluate(dataset, network)
  np.testing.assert_array_equal(thresholds, before)
  del thresholds[:]
  fake.logits[:, :100] *= 2
  _evaluate(dataset, network)
  assert not np.array_equal(thresholds, before)


def test_only_test_and_held_out_images_are_looked_at(fake, dataset, network):
  _evaluate(dataset, network)
  fitted, held_out = loop.split_training_images(_config(), dataset)
  tested, looked_at = fake.asked
  assert tested.tolist() == list(range(100, 100 + TEST))
  assert sorted(looked_at) == sorted(held_out)
  assert not set(looked_at) & set(fitted)


@pytest.fixture(scope='module')
def state(network):
  """A state as a training leaves it, with running averages of its own."""
  config = _config()
  fresh = loop.new_state(
    network, loop.build_optimizer(config, STEPS), config.seed
  )
  rng = np.random.default_rng(2)
  return fresh.replace(
    batch_stats=jax.tree.map(
      lambda x: x + rng.uniform(0, 0.5, x.shape).astype(np.float32),
      fresh.batch_stats,
    )
  )


def _save(workdir, state, step, dataset, network):
  program = loop.build_program(_config(), dataset, network)
  saved = steps.Saved(
    state.replace(step=np.int32(step)),
    parallel.zero_sums(program.metrics),
    np.float32(0),
  )
  folder = steps.checkpoints(str(workdir), 'train')
  with checkpoint.open_manager(folder) as manager:
    checkpoint.save(manager, step, saved)


def test_what_was_trained_is_evaluated_and_written(
  state, dataset, network, tmp_path
):
  _save(tmp_path, state, EPOCHS * STEPS, dataset, network)
  returned = evaluation.run_evaluation(
    _config(), dataset, network, str(tmp_path)
  )
  anytime, budgeted = (
    json.loads((tmp_path / 'evaluate' / name).read_text())
    for name in ('anytime.json', 'budgeted.json')
  )
  assert anytime == returned
  images = (dataset.test_images.astype(np.float32) / 255 - 0.5) / 0.25
  logits = jax.jit(lambda v, x: network.apply(v, x, train=False))(
    state.variables, images
  )
  right = np.asarray(logits).argmax(-1) == dataset.test_labels
  np.testing.assert_allclose(
    [e['accuracy'] for e in anytime['exits']], right.mean(1), atol=1e-6
  )
  assert len(budgeted['points']) == 39
  assert all(abs(sum(p['fractions']) - 1) < 1e-9 for p in budgeted['points'])
  macs = [e['macs'] for e in anytime['exits']]
  assert all(macs[0] <= p['macs'] <= macs[1] for p in budgeted['points'])
  expected = curves.expected_accuracy(
    macs, [e['accuracy'] for e in anytime['exits']], 1 / CLASSES
  )
  np.testing.assert_allclose(anytime['expected_accuracy'], expected)


def test_without_a_training_it_is_refused(dataset, network, tmp_path):
  with pytest.raises(UsageError, match="0 of 6 steps; run the 'train' stage"):
    evaluation.run_evaluation(_config(), dataset, network, str(tmp_path))
  assert not os.listdir(tmp_path)


def test_an_unfinished_training_is_refused(state, dataset, network, tmp_path):
  _save(tmp_path, state, STEPS, dataset, network)
  with pytest.raises(UsageError, match="3 of 6 steps; run the 'train' stage"):
    evaluation.run_evaluation(_config(), dataset, network, str(tmp_path))
  assert os.listdir(tmp_path) == ['train']


def test_a_training_of_another_network_is_refused(
  state, dataset, network, tmp_path
):
  other = ('max_pool_3x3', 0), ('sep_conv_3x3', 1)
  network = network_lib.derived_network(
    SPEC, genotype.Genotype(other, (2,), other, (2,))
  )
  _save(tmp_path, state, EPOCHS * STEPS, dataset, network)
  with pytest.raises(UsageError, match='of another configuration'):
    evaluation.run_evaluation(_config(), dataset, network, str(tmp_path))


def test_reading_changes_nothing(state, dataset, network, tmp_path):
  _save(tmp_path, state, EPOCHS * STEPS, dataset, network)
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
  variables = evaluation.trained_variables(
    _config(), dataset, network, str(tmp_path)
  )
  assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')} == before
  jax.tree.map(np.testing.assert_array_equal, variables, state.variables)
