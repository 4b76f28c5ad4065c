"""The training stage on a tiny network and a few real digits.

All runs of this file are of one compiled step (one more for two devices).
"""

import dataclasses
import functools
import json
import os
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax import settings
from ms_ranas_jax.baselines import msdnet
from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.data.datasets import load_dataset
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import metrics
from ms_ranas_jax.runtime import parallel
from ms_ranas_jax.runtime.interruption import Interrupted
from ms_ranas_jax.space import genotype
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.training import objective
from ms_ranas_jax.training import stage

EPOCHS, BATCH, STEPS, HOLDOUT = 3, 16, 40, 20
# One image more than the steps of an epoch need.
COUNT = STEPS * BATCH + 1 + HOLDOUT
EDGES = (('skip_connect', 0), ('dil_conv_3x3', 1))
CELLS = genotype.Genotype(EDGES, (2,), EDGES, (2,))
NETWORK = network_lib.derived_network(
  grid.NetworkSpec(
    channels=4,
    layers=3,
    nodes=1,
    exits=(1, 2),
    image_shape=(8, 8, 1),
    num_classes=10,
  ),
  CELLS,
)


def _config(**changes):
  config = default_config.get_config()
  config.num_devices = 1
  config.dataset.holdout = HOLDOUT
  config.train.update(
    epochs=EPOCHS, batch_size=BATCH, chunk_steps=25, learning_rate=0.1
  )
  config.update_from_flattened_dict(changes)
  return settings.parse(config)


@pytest.fixture(scope='module')
def dataset():
  digits = load_dataset('digits')
  return dataclasses.replace(
    digits,
    train_images=digits.train_images[:COUNT],
    train_labels=digits.train_labels[:COUNT],
  )


def _train(dataset, workdir, **changes):
  return stage.run_training(_config(**changes), dataset, NETWORK, str(workdir))


def _metrics(workdir):
  """The records without the times that they took."""
  records = metrics.read_metrics(workdir / 'train' / 'metrics.jsonl')
  return [{k: v for k, v in r.items() if k != 'seconds'} for r in records]


def _assert_same(state, expected):
  states = (
    s.replace(rng=jax.random.key_data(s.rng)) for s in (state, expected)
  )
  jax.tree.map(np.testing.assert_array_equal, *states)


@dataclasses.dataclass(frozen=True)
class _Run:
  workdir: os.PathLike
  state: stage.TrainState
  batches: np.ndarray  # (steps, batch), all that the steps were given


@pytest.fixture(scope='module')
def finished(dataset, tmp_path_factory):
  """An undisturbed run."""
  workdir = tmp_path_factory.mktemp('finished')
  batches = []
  compile_chunk = parallel.compile_chunk

  def watched(*args):
    chunk = compile_chunk(*args)

    def run(state, sums, data, indices, flags):
      batches.append(np.array(indices))
      return chunk(state, sums, data, indices, flags)

    return run

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(parallel, 'compile_chunk', watched)
    state = _train(dataset, workdir)
  return _Run(workdir, state, np.concatenate(batches))


def test_the_loss_falls(finished):
  losses = [r['train_loss'] for r in _metrics(finished.workdir)]
  # Two exits of ten classes: about 2 log 10 at first.
  assert losses[0] > 4
  assert losses[-1] < 0.8 * losses[0]
  last = _metrics(finished.workdir)[-1]
  assert max(last['train_accuracy']) > 0.3
  assert max(last['holdout_accuracy']) > 0.4
  assert int(finished.state.step) == EPOCHS * STEPS


def test_there_is_a_line_of_metrics_per_chunk(finished):
  path = finished.workdir / 'train' / 'metrics.jsonl'
  records = [json.loads(line) for line in path.read_text().splitlines()]
  # 40 steps in an epoch, in chunks of 25 and 15.
  assert [r['step'] for r in records] == [25, 40, 65, 80, 105, 120]
  assert [r['epoch'] for r in records] == [0, 0, 1, 1, 2, 2]
  always = {
    'step',
    'epoch',
    'train_loss',
    'train_gradient_norm',
    'train_accuracy',
    'learning_rate',
    'seconds',
  }
  for record in records:
    # The held-out images are looked at after an epoch.
    ends = record['step'] % STEPS == 0
    held_out = {'holdout_loss', 'holdout_accuracy'} if ends else set()
    assert set(record) == always | held_out
    for name in {'train_accuracy', 'holdout_accuracy'} & set(record):
      assert len(record[name]) == 2
    # The rate of the chunk's last step, a cosine over three epochs.
    rate = 0.05 * (1 + np.cos(np.pi * record['epoch'] / EPOCHS))
    np.testing.assert_allclose(record['learning_rate'], rate, rtol=1e-5)


def test_held_out_images_are_never_trained_on(finished, dataset):
  fitted, held_out = stage.split_training_images(_config(), dataset)
  assert len(held_out) == HOLDOUT
  assert sorted([*fitted, *held_out]) == list(range(COUNT))
  assert finished.batches.shape == (EPOCHS * STEPS, BATCH)
  trained = set(finished.batches.ravel())
  assert not trained & set(held_out)
  assert trained <= set(fitted)
  orders = finished.batches.reshape(EPOCHS, -1)
  for order in orders:
    assert len(set(order)) == STEPS * BATCH
  assert list(orders[0]) != list(orders[1])


def test_the_holdout_metrics_are_those_of_the_held_out_images(
  finished, dataset
):
  _, held_out = stage.split_training_images(_config(), dataset)
  images = dataset.train_images[held_out].astype(np.float32) / 255
  images = (images - np.float32(dataset.mean)) / np.float32(dataset.std)
  logits = jax.jit(lambda v, x: NETWORK.apply(v, x, train=False))(
    finished.state.variables, images
  )
  labels = dataset.train_labels[held_out]
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits, jnp.stack([labels, labels])
  )
  last = _metrics(finished.workdir)[-1]
  np.testing.assert_allclose(
    last['holdout_loss'], losses.mean(1).sum(), rtol=1e-4
  )
  np.testing.assert_allclose(
    last['holdout_accuracy'],
    (logits.argmax(-1) == labels[None]).mean(1),
    rtol=1e-6,
  )


def test_an_interrupted_training_goes_on_bit_for_bit(
  finished, dataset, tmp_path, stop_at_call
):
  with pytest.raises(Interrupted):
    stage.run_training(
      _config(), dataset, NETWORK, str(tmp_path), stop_at_call(4)
    )
  before = _metrics(tmp_path)
  assert 0 < len(before) < len(_metrics(finished.workdir))
  _assert_same(_train(dataset, tmp_path), finished.state)
  assert _metrics(tmp_path) == _metrics(finished.workdir)
  assert _metrics(tmp_path)[: len(before)] == before


# All options that one training can have at once.
OPTIONS = {
  'train.optimizer': 'adamw',
  'train.learning_rate': 2e-3,
  'train.schedule': 'one_cycle',
  'train.warmup_epochs': 0.5,
  'train.label_smoothing': 0.1,
  'train.mixup': 0.3,
  'train.distillation': 0.2,
  'train.distillation_temperature': 3.0,
  'train.trunk_epochs': 1.0,
  'train.ema_decay': 0.9,
}


@pytest.fixture(scope='module')
def with_options(dataset, tmp_path_factory):
  """An undisturbed run with all of them."""
  workdir = tmp_path_factory.mktemp('options')
  return _Run(workdir, _train(dataset, workdir, **OPTIONS), np.zeros(0))


def test_with_options_it_goes_on_bit_for_bit(
  with_options, dataset, tmp_path, stop_at_call
):
  with pytest.raises(Interrupted):
    stage.run_training(
      _config(**OPTIONS), dataset, NETWORK, str(tmp_path), stop_at_call(4)
    )
  _assert_same(_train(dataset, tmp_path, **OPTIONS), with_options.state)
  assert _metrics(tmp_path) == _metrics(with_options.workdir)


def test_with_options_both_losses_are_told(with_options):
  records = _metrics(with_options.workdir)
  for record in records:
    # At first the last exit's alone, which is less than that of both.
    trunk = record['epoch'] == 0
    assert (record['train_objective'] < 0.7 * record['train_loss']) == trunk
  assert records[-1]['holdout_loss'] < records[0]['train_loss']


def test_what_is_judged_is_the_average(with_options, dataset):
  state = with_options.state
  assert state.variables is state.average
  moved = jax.tree.map(
    lambda x, y: float(jnp.abs(x - y).max()),
    state.average,
    {'params': state.params, 'batch_stats': state.batch_stats},
  )
  # Every array is an average, BN statistics as well.
  assert min(jax.tree.leaves(moved)) > 0
  _, held_out = stage.split_training_images(_config(), dataset)
  logits = stage.prediction.predict(
    functools.partial(NETWORK.apply, train=False),
    state.average,
    dataset.train_images[held_out],
    dataset.mean,
    dataset.std,
  )
  last = _metrics(with_options.workdir)[-1]
  np.testing.assert_allclose(
    last['holdout_accuracy'],
    (logits.argmax(-1) == dataset.train_labels[held_out][None]).mean(1),
    rtol=1e-6,
  )


@pytest.mark.slow
def test_with_options_two_devices_train_as_one_does(
  with_options, dataset, tmp_path
):
  _train(dataset, tmp_path, num_devices=2, **OPTIONS)
  found, expected = _metrics(tmp_path), _metrics(with_options.workdir)
  for name in 'train_loss', 'train_objective':
    np.testing.assert_allclose(found[0][name], expected[0][name], rtol=2e-3)


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('distillation', 0.5),
    ('trunk_epochs', 0.5),
    ('gradient_equilibrium', True),
  ],
)
def test_one_exit_has_no_others(dataset, name, value):
  network = network_lib.derived_network(
    dataclasses.replace(NETWORK.plan.spec, exits='last'), CELLS
  )
  with pytest.raises(UsageError, match=f'{name} = {value}, but the network'):
    stage.build_program(_config(**{f'train.{name}': value}), dataset, network)


def test_a_trunk_takes_a_last_exit_with_weight(dataset):
  config = _config(
    **{'train.trunk_epochs': 1.0, 'train.exit_weights': (1.0, 0.0)}
  )
  with pytest.raises(UsageError, match='trunk_epochs = 1, but the last exit'):
    stage.build_program(config, dataset, NETWORK)


def test_a_finished_training_only_answers(finished, dataset, monkeypatch):
  def forbidden(*_):
    raise AssertionError('nothing is left to do')

  before = _metrics(finished.workdir)
  monkeypatch.setattr(parallel, 'compile_chunk', forbidden)
  _assert_same(_train(dataset, finished.workdir), finished.state)
  assert _metrics(finished.workdir) == before


@pytest.mark.slow
def test_two_devices_train_as_one_does(finished, dataset, tmp_path):
  state = _train(dataset, tmp_path, num_devices=2)
  found, expected = _metrics(tmp_path), _metrics(finished.workdir)
  assert [r['step'] for r in found] == [r['step'] for r in expected]
  # Later, rounding has grown: a ReLU that changes sides is enough.
  np.testing.assert_allclose(
    found[0]['train_loss'], expected[0]['train_loss'], rtol=2e-3
  )
  assert jax.tree.structure(state) == jax.tree.structure(finished.state)
  shapes = (jax.tree.map(jnp.shape, s) for s in (state, finished.state))
  assert next(shapes) == next(shapes)
  assert int(state.step) == EPOCHS * STEPS


def test_another_seed_is_another_training(dataset, finished):
  states = [
    stage.new_state(
      NETWORK, stage.build_optimizer(_config().train, STEPS), seed
    )
    for seed in (0, 0, 1)
  ]
  _assert_same(states[0], states[1])
  kernels = [s.params['stem_0']['kernel'] for s in states]
  assert (kernels[0] != kernels[2]).any()
  assert (
    jax.random.key_data(states[0].rng) != jax.random.key_data(states[2].rng)
  ).any()
  splits = [
    stage.split_training_images(_config(seed=seed), dataset)[1]
    for seed in (0, 1)
  ]
  assert set(splits[0]) != set(splits[1])


def _watch_steps(monkeypatch, observe):
  """Replaces the step by one that writes down a number, as the loss."""

  def step(state, images, labels, **fields):
    return state.replace(step=state.step + 1), {
      'train_loss': observe(state, images, labels, fields),
      'train_accuracy': jnp.zeros(2),
      'train_gradient_norm': jnp.float32(0),
    }

  monkeypatch.setattr(stage, 'train_step', step)
  monkeypatch.setattr(stage, '_holdout_metrics', lambda *_: {})


def test_drop_path_grows_with_the_epoch(dataset, tmp_path, monkeypatch):
  _watch_steps(monkeypatch, lambda s, x, y, fields: fields['drop_path'])
  _train(dataset, tmp_path, **{'train.drop_path': 0.6})
  # 0.6 * epoch / 3, as in the reference code.
  rates = [r['train_loss'] for r in _metrics(tmp_path)]
  np.testing.assert_allclose(rates, [0, 0, 0.2, 0.2, 0.4, 0.4], atol=1e-6)


def test_there_is_no_drop_path_by_default(dataset, tmp_path, monkeypatch):
  rates = []

  def observe(state, images, labels, fields):
    rates.append(fields['drop_path'])
    assert fields['axis_name'] is None
    assert fields['objective'].weights == (1.0, 0.5)
    assert fields['objective'].is_plain and not fields['ema_decay']
    assert images.shape == (BATCH, 8, 8, 1)
    assert labels.shape == (BATCH,)
    return jnp.zeros(())

  _watch_steps(monkeypatch, observe)
  _train(dataset, tmp_path, **{'train.exit_weights': (1.0, 0.5)})
  assert rates and set(rates) == {None}


def test_every_step_is_augmented_anew(dataset, tmp_path, monkeypatch):
  def augment(images, key, positions, settings):
    assert settings.cutout == 3 and settings.crop_padding == 1
    assert settings.mean == dataset.mean and settings.std == dataset.std
    assert not settings.flip
    assert positions.shape == (BATCH,)
    return jnp.full(images.shape, jax.random.uniform(key))

  monkeypatch.setattr(stage.augmentation, 'augment', augment)
  _watch_steps(monkeypatch, lambda s, images, y, f: images.mean())
  _train(dataset, tmp_path, **{'train.chunk_steps': 1, 'train.cutout': 3})
  drawn = [r['train_loss'] for r in _metrics(tmp_path)]
  assert len(set(np.round(drawn, 5))) == EPOCHS * STEPS


class _FakeNetwork:
  """Linear, with two exits, and drop-path that leaves out whole images."""

  num_exits = 2

  def apply(self, variables, images, *, train, drop_path, mutable, rngs):
    assert train and mutable == ['batch_stats']
    flat = images.reshape(len(images), -1)
    if drop_path is not None:
      keep = jax.random.bernoulli(
        rngs['drop_path'], 1 - drop_path, (len(images), 1)
      )
      flat = flat * keep
    logits = jnp.stack([flat @ w for w in variables['params']['w']])
    mean = 0.9 * variables['batch_stats']['mean'] + 0.1 * images.mean()
    return logits, {'batch_stats': {'mean': mean}}


def _fake_state():
  rng = np.random.default_rng(0)
  params = {'w': [jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)] * 2}
  return stage.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats={'mean': jnp.ones(())},
    opt_state=optax.sgd(0.1).init(params),
    rng=jax.random.key(0),
  )


def _fake_batch():
  rng = np.random.default_rng(1)
  images = rng.normal(size=(6, 2, 2, 1)).astype(np.float32)
  return jnp.asarray(images), jnp.asarray([0, 1, 2, 0, 1, 2])


def _fake_step(state, images, labels, **fields):
  terms = {k: fields.pop(k) for k in ('class_weights',) if k in fields}
  return stage.train_step(
    state,
    images,
    labels,
    network=_FakeNetwork(),
    optimizer=optax.sgd(0.1),
    objective=objective.Objective((1.0, 0.25), **terms),
    **fields,
  )


def test_a_step_descends_the_weighted_loss():
  state, (images, labels) = _fake_state(), _fake_batch()
  after, found = jax.jit(_fake_step)(state, images, labels)
  flat = np.asarray(images).reshape(6, 4)
  total = 0.0
  for exit_, (w, weight) in enumerate(zip(state.params['w'], (1.0, 0.25))):
    logits = flat @ np.asarray(w)
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    total -= weight * np.log(odds[np.arange(6), labels]).mean()
    slope = flat.T @ (odds - np.eye(3)[np.asarray(labels)]) / 6
    np.testing.assert_allclose(
      after.params['w'][exit_], w - 0.1 * weight * slope, rtol=1e-4, atol=1e-6
    )
  np.testing.assert_allclose(found['train_loss'], total, rtol=1e-5)
  assert found['train_accuracy'].shape == (2,)
  np.testing.assert_allclose(
    after.batch_stats['mean'], 0.9 + 0.1 * images.mean(), rtol=1e-6
  )
  assert int(after.step) == 1


CLASS_WEIGHTS = np.array([4.0, 1.0, 0.25], np.float32)


def test_a_step_descends_the_loss_with_class_weights():
  state, (images, labels) = _fake_state(), _fake_batch()
  step = functools.partial(_fake_step, class_weights=CLASS_WEIGHTS)
  after, found = jax.jit(step)(state, images, labels)
  _, plain = jax.jit(_fake_step)(state, images, labels)
  flat = np.asarray(images).reshape(6, 4)
  of_images = CLASS_WEIGHTS[np.asarray(labels)]
  total = 0.0
  for exit_, (w, weight) in enumerate(zip(state.params['w'], (1.0, 0.25))):
    logits = flat @ np.asarray(w)
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    of_image = -np.log(odds[np.arange(6), labels])
    total += weight * (of_images @ of_image) / 6
    off = of_images[:, None] * (odds - np.eye(3)[np.asarray(labels)])
    np.testing.assert_allclose(
      after.params['w'][exit_],
      w - 0.1 * weight * flat.T @ off / 6,
      rtol=1e-4,
      atol=1e-6,
    )
  # The loss of every line stays the plain one; what is minimised is beside it.
  assert set(found) == set(plain) | {'train_objective'}
  np.testing.assert_allclose(found['train_objective'], total, rtol=1e-5)
  for name in 'train_loss', 'train_accuracy':
    np.testing.assert_allclose(found[name], plain[name], rtol=1e-6)
  assert abs(total - plain['train_loss']) > 0.1


def test_class_weights_do_not_depend_on_the_devices():
  state, (images, labels) = _fake_state(), _fake_batch()
  # Sorted, so that the devices have different classes.
  order = np.argsort(labels, stable=True)
  images, labels = images[order], labels[order]
  expected, found = jax.jit(
    functools.partial(_fake_step, class_weights=CLASS_WEIGHTS)
  )(state, images, labels)
  after, both = jax.pmap(
    lambda x, y: _fake_step(
      state, x, y, class_weights=CLASS_WEIGHTS, axis_name='devices'
    ),
    axis_name='devices',
    devices=jax.local_devices()[:2],
  )(images.reshape(2, 3, 2, 2, 1), labels.reshape(2, 3))
  for device in range(2):
    for exit_ in range(2):
      np.testing.assert_allclose(
        after.params['w'][exit_][device], expected.params['w'][exit_], rtol=1e-4
      )
    for name, value in found.items():
      np.testing.assert_allclose(both[name][device], value, rtol=1e-5)


@pytest.mark.parametrize('mixed', [False, True])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(mixed):
  """Where no batch normalisation tells them apart."""
  state, (images, labels) = _fake_state(), _fake_batch()
  if mixed:
    labels = objective.Mixed(labels, labels[::-1], jnp.float32(0.7))
  expected, found = jax.jit(lambda s, x: _fake_step(s, x, labels))(
    state, images
  )
  for count in 2, 3:
    after, of_parts = jax.jit(
      lambda s, x, count=count: _fake_step(s, x, labels, accumulate=count)
    )(state, images)
    for one, other in zip(after.params['w'], expected.params['w'], strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    assert of_parts.keys() == found.keys()
    for name, value in found.items():
      np.testing.assert_allclose(of_parts[name], value, rtol=1e-5)
    # Running averages go on from part to part.
    mean = 1.0
    for part in np.split(np.asarray(images), count):
      mean = 0.9 * mean + 0.1 * part.mean()
    np.testing.assert_allclose(after.batch_stats['mean'], mean, rtol=1e-6)


def test_parts_of_a_batch_draw_drop_path_on_their_own():
  state, (images, labels) = _fake_state(), _fake_batch()
  twice = jnp.concatenate([images] * 8), jnp.tile(labels, 8)

  def loss(count):
    _, found = jax.jit(
      lambda s: _fake_step(s, *twice, drop_path=0.5, accumulate=count)
    )(state)
    return float(found['train_loss'])

  # Were their draws the same, two equal halves would have the loss of one.
  _, half = jax.jit(
    lambda s: _fake_step(s, twice[0][:24], twice[1][:24], drop_path=0.5)
  )(state)
  assert abs(loss(2) - float(half['train_loss'])) > 1e-4


@pytest.mark.usefixtures('as_users_compile')
def test_parts_of_a_batch_take_less_memory():
  optimizer = optax.sgd(0.1)
  state = jax.eval_shape(lambda: stage.new_state(NETWORK, optimizer, 0))
  images = jax.ShapeDtypeStruct((256, 8, 8, 1), jnp.float32)
  labels = jax.ShapeDtypeStruct((256,), jnp.int32)

  def taken(count):
    step = functools.partial(
      stage.train_step,
      network=NETWORK,
      optimizer=optimizer,
      objective=objective.Objective((1.0, 1.0)),
      accumulate=count,
    )
    compiled = jax.jit(step).lower(state, images, labels).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert taken(4) < 0.5 * taken(1)


def test_frozen_modules_keep_their_params():
  state, (images, labels) = _fake_state(), _fake_batch()
  decaying = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1))
  params = {**state.params, 'wide': jnp.ones(2), 'other': jnp.ones(2)}
  state = state.replace(params=params, opt_state=decaying.init(params))

  def step(frozen):
    after, found = stage.train_step(
      state,
      images,
      labels,
      network=_FakeNetwork(),
      optimizer=decaying,
      objective=objective.Objective((1.0, 0.25)),
      frozen=frozen,
    )
    return after.params, float(found['train_gradient_norm'])

  (free, norm), (kept, none) = step(()), step(('w',))
  for name in 'w', 'wide':
    for one, other in zip(kept[name], params[name], strict=True):
      np.testing.assert_array_equal(one, other)
  assert norm > 0 and none == 0
  np.testing.assert_array_equal(kept['other'], free['other'])
  assert (free['other'] < 1).all()


def _with_scores(monkeypatch, scores):
  """Has held-out accuracies come in this order, and keeps the variables."""
  seen = []

  def metrics(batch_size, images, apply, state, program):
    seen.append(jax.device_get(state.variables))
    score = scores[int(state.step) // STEPS - 1]
    return {'holdout_loss': 1.0, 'holdout_accuracy': [score, score]}

  monkeypatch.setattr(stage, '_holdout_metrics', metrics)
  return seen


def test_a_training_ends_when_nothing_gets_better(
  dataset, tmp_path, monkeypatch
):
  changes = {'train.epochs': 6, 'train.patience': 2}
  seen = _with_scores(monkeypatch, [0.1, 0.5, 0.5, 0.4, 0.9, 0.9])
  state = _train(dataset, tmp_path, **changes)
  # The second epoch is the best; two without a better one follow.
  assert int(state.step) == 4 * STEPS
  found = stage.shipped_variables(_config(**changes), str(tmp_path), state)
  chex.assert_trees_all_equal(found, seen[1])
  assert stage.summary(_config(**changes), str(tmp_path)) == (
    'ended after 4 of 6 epochs; what ships is of epoch 2, with a held-out '
    'accuracy of 50.00% in the mean of the exits'
  )
  with pytest.raises(AssertionError):
    chex.assert_trees_all_equal(state.variables, seen[1])
  # Started again it has ended, with the same.
  again = _train(dataset, tmp_path, **changes)
  assert int(again.step) == 4 * STEPS
  found = stage.shipped_variables(_config(**changes), str(tmp_path), again)
  chex.assert_trees_all_equal(found, seen[1])
  (tmp_path / 'train/best.msgpack').unlink()
  with pytest.raises(UsageError, match='best.msgpack is missing, which has'):
    stage.shipped_variables(_config(**changes), str(tmp_path), again)


def test_an_interrupted_training_keeps_its_patience(
  dataset, tmp_path, monkeypatch, stop_at_call
):
  changes = {'train.epochs': 6, 'train.patience': 2}
  scores = [0.1, 0.5, 0.5, 0.4, 0.9, 0.9]
  seen = _with_scores(monkeypatch, scores)
  for call in 5, 5:
    try:
      stage.run_training(
        _config(**changes), dataset, NETWORK, str(tmp_path), stop_at_call(call)
      )
    except Interrupted:
      pass
  state = _train(dataset, tmp_path, **changes)
  assert int(state.step) == 4 * STEPS
  records = [r for r in _metrics(tmp_path) if 'holdout_accuracy' in r]
  assert [r['holdout_accuracy'][0] for r in records] == scores[:4]
  found = stage.shipped_variables(_config(**changes), str(tmp_path), state)
  best = [v for v, s in zip(seen, scores, strict=False) if s == 0.5][0]
  chex.assert_trees_all_equal(found, best)


def test_balanced_sampling_draws_every_class_as_often(dataset, monkeypatch):
  drawn = []

  def run(spec, *_):
    drawn.append(spec.batches(0))

  monkeypatch.setattr(stage.loop, 'run', run)
  for sampling in '', 'balanced':
    stage.run_training(
      _config(**{'train.sampling': sampling}), dataset, NETWORK, 'nowhere'
    )
  plain, balanced = (
    np.bincount(dataset.train_labels[rows.ravel()], minlength=10)
    for rows in drawn
  )
  assert set(balanced) == {STEPS * BATCH // 10}
  assert len(set(plain)) > 1
  _, held_out = stage.split_training_images(_config(), dataset)
  assert not set(held_out) & set(drawn[1].ravel())


MSDNET = msdnet.build_msdnet(
  msdnet_plan.MSDNetSpec(
    blocks=2, base=1, step=1, channels=4, image_shape=(8, 8, 1), num_classes=10
  )
)


@pytest.mark.parametrize('network', [NETWORK, MSDNET], ids=['grid', 'msdnet'])
def test_the_loss_of_every_family_has_class_weights(
  network, dataset, monkeypatch
):
  given = []
  monkeypatch.setattr(
    stage, 'train_step', lambda *_, **fields: given.append(fields)
  )
  state = types.SimpleNamespace(rng=jax.random.key(0), step=jnp.int32(0))
  data = {'images': dataset.train_images, 'labels': dataset.train_labels}
  for choice in '', 'balanced':
    program = stage.build_program(
      _config(**{'train.class_weights': choice}), dataset, network
    )
    program.step(state, jax.tree.map(jnp.asarray, data), np.arange(BATCH))
    assert ('train_objective' in program.metrics) == bool(choice)
  off, on = (fields['objective'].class_weights for fields in given)
  assert off is None
  # Of the images that are trained on, without those held out.
  counts = np.bincount(dataset.train_labels[program.fitted], minlength=10)
  assert counts.sum() == COUNT - HOLDOUT
  np.testing.assert_allclose(on, (COUNT - HOLDOUT) / (10 * counts), rtol=1e-6)


def test_a_training_with_class_weights_says_both_losses(
  dataset, tmp_path, monkeypatch
):
  def step(state, images, labels, **fields):
    weights = jnp.asarray(fields['objective'].class_weights)[labels]
    return state.replace(step=state.step + 1), {
      'train_loss': jnp.float32(1),
      'train_objective': weights.mean(),
      'train_accuracy': jnp.zeros(2),
      'train_gradient_norm': jnp.float32(0),
    }

  monkeypatch.setattr(stage, 'train_step', step)
  monkeypatch.setattr(stage, '_holdout_metrics', lambda *_: {})
  _train(dataset, tmp_path, **{'train.class_weights': 'balanced'})
  records = _metrics(tmp_path)
  assert {r['train_loss'] for r in records} == {1.0}
  # Their mean over all images is 1.
  means = [r['train_objective'] for r in records]
  np.testing.assert_allclose(np.mean(means), 1, atol=0.02)
  assert len(set(means)) > 1


def test_drop_path_is_drawn_anew_every_step_and_on_every_device():
  state, (images, labels) = _fake_state(), _fake_batch()
  images, labels = jnp.tile(images, (8, 1, 1, 1)), jnp.tile(labels, 8)

  def loss(step, rate):
    at = state.replace(step=jnp.int32(step))
    return float(
      jax.jit(_fake_step)(at, images, labels, drop_path=rate)[1]['train_loss']
    )

  assert loss(0, 0.5) == loss(0, 0.5)
  assert loss(0, 0.5) != loss(1, 0.5)
  np.testing.assert_allclose(loss(0, 0.0), loss(1, 0.0), rtol=1e-6)

  # All devices get the same images: were their draws the same too, the mean
  # of their losses would be the loss of one.
  def on_devices(count):
    losses = jax.pmap(
      lambda x, y: _fake_step(state, x, y, drop_path=0.5, axis_name='devices')[
        1
      ]['train_loss'],
      axis_name='devices',
      devices=jax.local_devices()[:count],
    )(jnp.stack([images] * count), jnp.stack([labels] * count))
    return float(losses[0])

  assert on_devices(1) == on_devices(1)
  assert abs(on_devices(1) - on_devices(2)) > 1e-4


def test_devices_share_their_means():
  state, (images, labels) = _fake_state(), _fake_batch()
  expected, found = jax.jit(_fake_step)(state, images, labels)
  after, both = jax.pmap(
    lambda x, y: _fake_step(state, x, y, axis_name='devices'),
    axis_name='devices',
    devices=jax.local_devices()[:2],
  )(images.reshape(2, 3, 2, 2, 1), labels.reshape(2, 3))
  for device in range(2):
    np.testing.assert_allclose(
      after.params['w'][0][device], expected.params['w'][0], rtol=1e-4
    )
    np.testing.assert_allclose(
      after.batch_stats['mean'][device], expected.batch_stats['mean'], rtol=1e-5
    )
    for name, value in found.items():
      np.testing.assert_allclose(both[name][device], value, rtol=1e-5)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'dataset.holdout': COUNT}, f'dataset.holdout = {COUNT}, .* {COUNT}'),
    ({'train.batch_size': 800}, 'train.batch_size = 800, .* 641 images'),
    ({'train.exit_weights': (1.0,)}, 'train.exit_weights has 1 .* 2 exits'),
    ({'num_devices': 3}, 'num_devices = 3'),
    (
      {'train.class_weights': 'balanced', 'dataset.holdout': COUNT - BATCH},
      "train.class_weights = 'balanced', but 1 of 10 classes .* '9'",
    ),
    (
      {'num_devices': 2, 'train.batch_size': 5},
      'train.batch_size = 5 cannot be split',
    ),
    (
      {'train.patience': 1, 'dataset.holdout': 0},
      'train.patience = 1 follows the accuracy on held-out images',
    ),
    (
      {'train.accumulate': 3},
      f'train.accumulate = 3, but the {BATCH} images that a device',
    ),
    (
      {'train.class_weights': 'balanced', 'train.sampling': 'balanced'},
      "train.class_weights and config.train.sampling are 'balanced'",
    ),
  ],
)
def test_impossible_configs_are_refused(changes, message, dataset, tmp_path):
  with pytest.raises(UsageError, match=message):
    _train(dataset, tmp_path, **changes)
  assert not os.listdir(tmp_path)


def test_of_some_rows_no_other_image_is_trained_on(dataset):
  rows = np.arange(5, len(dataset.train_images), 3)
  fitted, held_out = stage.split_training_images(_config(), dataset, rows)
  both = np.concatenate([fitted, held_out])
  assert sorted(both.tolist()) == rows.tolist()
  # In the order that a dataset of these images alone would have.
  alone = dataclasses.replace(
    dataset,
    train_images=dataset.train_images[rows],
    train_labels=dataset.train_labels[rows],
  )
  expected, _ = stage.split_training_images(_config(), alone)
  np.testing.assert_array_equal(fitted, rows[expected])


def test_the_holdout_loss_is_weighted_as_the_training_loss_is(
  dataset, monkeypatch
):
  rows = np.array([3, 5])
  labels = dataset.train_labels[rows]
  logits = np.zeros((2, 2, dataset.num_classes), np.float32)
  logits[1, np.arange(2), labels] = 4.0  # The second exit is sure and right.
  monkeypatch.setattr(stage.prediction, 'predict', lambda *_: logits)
  state = types.SimpleNamespace(variables=None)

  def loss(weights):
    known = objective.Objective(weights)
    program = types.SimpleNamespace(held_out=rows, objective=known)
    record = stage._holdout_metrics(
      _config().evaluate.batch_size, dataset, None, state, program
    )
    return record['holdout_loss']

  first, second = loss((1.0, 0.0)), loss((0.0, 1.0))
  np.testing.assert_allclose(first, np.log(dataset.num_classes), rtol=1e-6)
  assert second < first
  np.testing.assert_allclose(loss((0.5, 3.0)), 0.5 * first + 3.0 * second)
