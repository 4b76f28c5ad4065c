"""The search stage on a tiny network and a few real digits.

All runs of this file are of one compiled step (one more for two devices): only
the seed, the work directory and what interrupts them differ.
"""

import dataclasses
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax import settings
from ms_ranas_jax.baselines.cells import load_genotype
from ms_ranas_jax.data.datasets import load_dataset
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import loop as loop_lib
from ms_ranas_jax.runtime import metrics
from ms_ranas_jax.runtime import parallel
from ms_ranas_jax.runtime.interruption import Interrupted
from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.search import methods
from ms_ranas_jax.search import stage
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import operations as ops

FEW = {
  name: ops.PRIMITIVES[name]
  for name in ('none', 'avg_pool_3x3', 'skip_connect')
}
EPOCHS, BATCH, STEPS = 2, 8, 4
SHAPE = (EPOCHS + 1, 2, len(FEW))


def _config(**changes):
  config = default_config.get_config()
  config.num_devices = 1
  config.dataset.flip = True
  config.search.update(epochs=EPOCHS, batch_size=BATCH, chunk_steps=3, cutout=2)
  config.search.alphas_learning_rate = 1e-2
  config.search.network.update(channels=4, layers=3, nodes=1, scales=1)
  config.search.primitives = tuple(FEW)
  config.update_from_flattened_dict(changes)
  return settings.parse(config)


@pytest.fixture(scope='module')
def dataset():
  digits = load_dataset('digits')
  # One image more in each half than the steps of an epoch need.
  count = 2 * (STEPS * BATCH + 1)
  return dataclasses.replace(
    digits,
    train_images=digits.train_images[:count],
    train_labels=digits.train_labels[:count],
  )


def _search(dataset, workdir, **changes):
  return stage.run_search(_config(**changes), dataset, str(workdir))


def _alphas(workdir):
  with np.load(workdir / 'search' / 'alphas.npz') as arrays:
    return {kind: arrays[kind] for kind in arrays.files}


def _metrics(workdir):
  """The records without the times that they took."""
  records = metrics.read_metrics(workdir / 'search' / 'metrics.jsonl')
  return [{k: v for k, v in r.items() if k != 'seconds'} for r in records]


@dataclasses.dataclass(frozen=True)
class _Run:
  workdir: os.PathLike
  genotype: object
  batches: np.ndarray  # (steps, 2, batch), all that the steps were given


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
    genotype = _search(dataset, workdir)
  return _Run(workdir, genotype, np.concatenate(batches))


def test_alphas_are_recorded_every_epoch(finished):
  alphas = _alphas(finished.workdir)
  assert set(alphas) == {'normal', 'reduction'}
  for values in alphas.values():
    assert values.shape == SHAPE
    assert values.dtype == np.float32
    # They start near zero, and each of an epoch's steps of Adam is about as
    # long as its rate.
    assert 0 < np.abs(values[0]).max() < 5e-3
    moved = np.abs(np.diff(values, axis=0)).max(axis=(1, 2))
    assert (moved > 1e-3).all()
    assert (moved < 2 * STEPS * 1e-2).all()


def test_the_genotype_is_that_of_the_last_alphas(finished):
  path = finished.workdir / 'search' / 'genotype.json'
  assert load_genotype(str(path)) == finished.genotype
  last = {k: jnp.asarray(v[-1]) for k, v in _alphas(finished.workdir).items()}
  expected = alphas_lib.derive_genotype(edges_lib.softmax_weights(last), FEW)
  assert finished.genotype == expected
  assert finished.genotype.operations() == tuple(
    sorted(
      set(finished.genotype.operations()) & {'avg_pool_3x3', 'skip_connect'}
    )
  )


def test_there_is_a_line_of_metrics_per_chunk(finished):
  path = finished.workdir / 'search' / 'metrics.jsonl'
  records = [json.loads(line) for line in path.read_text().splitlines()]
  # Four steps in an epoch, in chunks of three and one.
  assert [r['step'] for r in records] == [3, 4, 7, 8]
  assert [r['epoch'] for r in records] == [0, 0, 1, 1]
  for record in records:
    ends = {'derived_cost', 'normal_skips', 'reduction_skips'}
    ends = ends if record['step'] % STEPS == 0 else set()
    assert set(record) == ends | {
      'step',
      'epoch',
      'train_loss',
      'train_accuracy',
      'train_gradient_norm',
      'valid_gradient_norm',
      'expected_cost',
      'valid_loss',
      'valid_accuracy',
      'seconds',
    }
    for half in ('train', 'valid'):
      # Two exits, so twice the cross-entropy of ten classes, about.
      assert 1 < record[f'{half}_loss'] < 10
      assert len(record[f'{half}_accuracy']) == 2
      assert all(0 <= a <= 1 for a in record[f'{half}_accuracy'])
    assert record['seconds'] > 0


def test_each_half_of_the_images_has_one_use(finished, dataset):
  assert finished.batches.shape == (EPOCHS * STEPS, 2, BATCH)
  for_params, for_alphas = finished.batches[:, 0], finished.batches[:, 1]
  assert not set(for_params.ravel()) & set(for_alphas.ravel())
  assert finished.batches.max() < len(dataset.train_images)
  for half in (for_params, for_alphas):
    first, second = half.reshape(EPOCHS, STEPS * BATCH)
    # Once an epoch, in another order every time.
    assert len(set(first)) == len(set(second)) == STEPS * BATCH
    assert list(first) != list(second)


def test_an_interrupted_search_goes_on_bit_for_bit(
  finished, dataset, tmp_path, monkeypatch, stop_at_call
):
  """In the middle of a line of the second epoch."""
  monkeypatch.setattr(loop_lib, '_call_length', lambda *_: 1)
  with pytest.raises(Interrupted):
    stage.run_search(_config(), dataset, str(tmp_path), stop_at_call(5))
  assert not (tmp_path / 'search' / 'genotype.json').exists()
  written = [r['step'] for r in _metrics(tmp_path)]
  assert written == [3, 4]
  assert len(_alphas(tmp_path)['normal']) == 2

  assert _search(dataset, tmp_path) == finished.genotype
  expected = _alphas(finished.workdir)
  for kind, values in _alphas(tmp_path).items():
    np.testing.assert_array_equal(values, expected[kind])
  assert _metrics(tmp_path) == _metrics(finished.workdir)


def test_a_finished_search_only_answers(finished, dataset, monkeypatch):
  def forbidden(*_):
    raise AssertionError('nothing is left to do')

  before = _metrics(finished.workdir)
  (finished.workdir / 'search' / 'genotype.json').unlink()
  monkeypatch.setattr(parallel, 'compile_chunk', forbidden)
  assert _search(dataset, finished.workdir) == finished.genotype
  assert (
    load_genotype(str(finished.workdir / 'search' / 'genotype.json'))
    == finished.genotype
  )
  assert _metrics(finished.workdir) == before
  assert _alphas(finished.workdir)['normal'].shape == SHAPE


def _cut_off(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _shorten(path):
  """Leaves out the last epoch."""
  with np.load(path) as arrays:
    shorter = {kind: arrays[kind][:-1] for kind in arrays.files}
  np.savez(path, **shorter)


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (os.remove, 'cannot be read .* epoch 2'),
    (_cut_off, 'cannot be read .* epoch 2'),
    (lambda path: path.write_bytes(b''), 'cannot be read .* epoch 2'),
    (_shorten, 'ends before epoch 2'),
  ],
  ids=['missing', 'cut off', 'empty', 'too short'],
)
def test_a_search_whose_alphas_are_gone_is_refused(
  damage, message, finished, dataset, tmp_path
):
  shutil.copytree(finished.workdir, tmp_path, dirs_exist_ok=True)
  path = tmp_path / 'search' / 'alphas.npz'
  damage(path)
  with pytest.raises(UsageError, match=message) as caught:
    _search(dataset, tmp_path)
  assert str(path) in str(caught.value)


def test_another_seed_is_another_search(finished, dataset, tmp_path):
  _search(dataset, tmp_path, seed=1)
  expected = _alphas(finished.workdir)
  for kind, values in _alphas(tmp_path).items():
    assert values.shape == SHAPE
    assert (values != expected[kind]).all()
  assert _metrics(tmp_path) != _metrics(finished.workdir)


@pytest.mark.slow
def test_two_devices_search_as_one_does(finished, dataset, tmp_path):
  _search(dataset, tmp_path, num_devices=2)
  expected = _alphas(finished.workdir)
  for kind, values in _alphas(tmp_path).items():
    # Adam divides by the gradient's size, so rounding can show; a step of it
    # is 1e-2 long.
    np.testing.assert_allclose(values, expected[kind], atol=2e-4)
  for record, other in zip(
    _metrics(tmp_path), _metrics(finished.workdir), strict=True
  ):
    np.testing.assert_allclose(
      record['train_loss'], other['train_loss'], rtol=1e-3
    )


class _Captured(Exception):
  """Carries what the bilevel step was called with."""


@pytest.mark.parametrize('order', [1, 2])
def test_the_config_reaches_the_bilevel_step(
  order, dataset, tmp_path, monkeypatch
):
  def capture(state, train_batch, valid_batch, **fields):
    raise _Captured(state, train_batch, valid_batch, fields)

  monkeypatch.setattr(methods.bilevel, 'search_step', capture)
  with pytest.raises(_Captured) as caught:
    _search(
      dataset,
      tmp_path,
      **{
        'search.order': order,
        'search.clip': 0.5,
        'search.learning_rate': 0.25,
        'search.momentum': 0.0,
        'search.weight_decay': 0.0,
        'search.alphas_learning_rate': 0.125,
      },
    )
  state, train, valid, fields = caught.value.args
  assert fields['order'] == order
  assert fields['axis_name'] is None
  for images, labels in (train, valid):
    assert images.shape == (BATCH, 8, 8, 1)
    assert images.dtype == jnp.float32
    assert labels.shape == (BATCH,)
  assert jax.tree.map(jnp.shape, state.alphas) == {
    'normal': (2, 3),
    'reduction': (2, 3),
  }
  # Only the params step clips; both have one form of state.
  params = jnp.asarray([3.0, 4.0])

  def update(optimizer):
    updates, _ = optimizer.update(
      params, fields['params_optimizer'].init(params), params
    )
    return np.asarray(updates)

  np.testing.assert_allclose(
    update(fields['params_optimizer']), [-0.25 * 0.3, -0.25 * 0.4], rtol=1e-6
  )
  np.testing.assert_allclose(
    update(fields['lookahead_optimizer']), [-0.75, -1.0], rtol=1e-6
  )
  adam = fields['alphas_optimizer']
  updates, _ = adam.update(params, adam.init(params), params)
  np.testing.assert_allclose(updates, [-0.125, -0.125], rtol=1e-5)


def test_every_half_of_every_step_is_augmented_apart(
  dataset, tmp_path, monkeypatch
):
  def augment(images, key, positions, *, settings):
    assert settings.cutout == 2 and settings.crop_padding == 1
    assert settings.flip
    assert settings.mean == dataset.mean and settings.std == dataset.std
    np.testing.assert_array_equal(positions.shape, (BATCH,))
    return jnp.full(images.shape, jax.random.uniform(key))

  def search_step(state, train_batch, valid_batch, **_):
    return state.replace(step=state.step + 1), {
      'train_loss': train_batch[0].mean(),
      'valid_loss': valid_batch[0].mean(),
      'expected_cost': jnp.float32(0),
      **{
        f'{half}_{name}': jnp.zeros(shape)
        for half in ('train', 'valid')
        for name, shape in (('accuracy', 2), ('gradient_norm', ()))
      },
    }

  monkeypatch.setattr(stage.augmentation, 'augment', augment)
  monkeypatch.setattr(methods.bilevel, 'search_step', search_step)
  _search(dataset, tmp_path, **{'search.chunk_steps': 1})
  records = _metrics(tmp_path)
  assert len(records) == EPOCHS * STEPS
  drawn = [r[f'{half}_loss'] for r in records for half in ('train', 'valid')]
  assert len(set(np.round(drawn, 5))) == 2 * EPOCHS * STEPS


class _FakeNetwork:
  """Has two exits: one sees the brightness, one says always class 0."""

  def apply(self, variables, images, weights, *, train, mutable):
    assert train and mutable == ['batch_stats']
    brightness = images.mean((1, 2, 3))[:, None] * jnp.asarray([[0.0, 1.0]])
    gate = weights['normal'][0, 0] * variables['params']['w']
    logits = jnp.stack([gate * brightness, jnp.zeros_like(brightness)])
    return logits, {
      'batch_stats': {'seen': variables['batch_stats']['seen'] + 1}
    }


def test_the_loss_is_the_weighted_sum_over_exits():
  loss = methods.exit_loss(_FakeNetwork(), (1.0, 0.5))
  ones = np.ones((1, 4, 4, 1), np.float32)
  batch = np.concatenate([ones, -ones]), np.array([1, 1])
  alphas = {kind: np.zeros((2, 4)) for kind in ('normal', 'reduction')}
  value, (batch_stats, found) = jax.jit(loss)(
    {'w': 8.0}, alphas, {'seen': 3}, batch
  )
  # A weight of 1/4 and w = 8 make the first exit's logits (0, 2) and (0, -2).
  first = (np.log1p(np.exp(-2)) + np.log1p(np.exp(2))) / 2
  np.testing.assert_allclose(value, first + 0.5 * np.log(2), rtol=1e-6)
  assert batch_stats == {'seen': 4}
  assert set(found) == {'accuracy'}
  np.testing.assert_allclose(found['accuracy'], [0.5, 0.0])


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'search.batch_size': 64}, 'search.batch_size = 64, .* 33 images'),
    ({'search.train_fraction': 0.1}, 'search.batch_size = 8, .* 6 images'),
    ({'search.exit_weights': (1.0,)}, 'search.exit_weights has 1 .* 2 exits'),
    ({'num_devices': 3}, 'num_devices = 3'),
    (
      {'num_devices': 2, 'search.batch_size': 5},
      'search.batch_size = 5 cannot be split',
    ),
    ({'search.network.nodes': 0}, 'search.network.nodes = 0'),
  ],
)
def test_impossible_configs_are_refused(changes, message, dataset, tmp_path):
  with pytest.raises(UsageError, match=message):
    _search(dataset, tmp_path, **changes)
  assert not os.listdir(tmp_path)
