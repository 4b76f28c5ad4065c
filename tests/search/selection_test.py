"""From searches, of one seed or several, to one genotype: whole small runs.

The config is that of `loop_test`, so that both compile one program of one seed.
"""

import dataclasses
import functools
import json

import chex
import jax
import numpy as np
import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax import settings
from ms_ranas_jax.baselines.cells import load_genotype
from ms_ranas_jax.data.datasets import load_dataset
from ms_ranas_jax.hypernetwork import hypernetwork as hypernetwork_lib
from ms_ranas_jax.runtime import checkpoint
from ms_ranas_jax.runtime import loop as loop_lib
from ms_ranas_jax.runtime import metrics
from ms_ranas_jax.runtime.interruption import Interrupted
from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.search import candidates
from ms_ranas_jax.search import hypernetwork_file
from ms_ranas_jax.search import seeds as seeds_lib
from ms_ranas_jax.search import stage
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space.genotype import Genotype

FEW = {
  name: ops.PRIMITIVES[name]
  for name in ('none', 'avg_pool_3x3', 'skip_connect')
}
EPOCHS, BATCH, STEPS = 2, 8, 4
SEEDS = 2


def _config(**changes):
  config = default_config.get_config()
  config.num_devices = 1
  config.dataset.flip = True
  config.search.update(epochs=EPOCHS, batch_size=BATCH, chunk_steps=3, cutout=2)
  config.search.alphas_learning_rate = 1e-2
  for section in (config.search, config.train):
    section.network.update(channels=4, layers=3, nodes=1, scales=1)
  config.search.primitives = tuple(FEW)
  config.update_from_flattened_dict(changes)
  return settings.parse(config)


@pytest.fixture(scope='module')
def dataset():
  digits = load_dataset('digits')
  count = 2 * (STEPS * BATCH + 1)
  return dataclasses.replace(
    digits,
    train_images=digits.train_images[:count],
    train_labels=digits.train_labels[:count],
  )


def _search(dataset, workdir, interruption=None, **changes):
  return stage.run_search(
    _config(**changes), dataset, str(workdir), interruption
  )


def _json(path):
  return json.loads(path.read_text())


def _arrays(path):
  with np.load(path) as arrays:
    return {kind: arrays[kind] for kind in arrays.files}


def _records(workdir):
  return metrics.read_metrics(workdir / 'search/metrics.jsonl')


def _state(workdir, config, dataset):
  """The state of the last checkpoint."""
  program = stage.build_program(config, dataset)
  seeds = seeds_lib.side_by_side(config.search)
  new_state = program.new_state
  if seeds is not None:
    new_state = functools.partial(
      seeds_lib.new_states,
      program.new_state,
      seeds_lib.numbers(config.seed, config.search.num_seeds),
    )
  template = loop_lib.template(new_state, program.metrics, 'stop', seeds)
  folder = loop_lib.checkpoints(str(workdir), 'search')
  with checkpoint.open_manager(folder, read_only=True) as manager:
    return checkpoint.restore_latest(manager, template)[1].state


ALONE = {
  'search.select': 'area',
  'search.candidates.last_epochs': 1,
  'search.candidates.random': 4,
}


@pytest.fixture(scope='module')
def alone(dataset, tmp_path_factory):
  """Work directories of searches of one seed each, by area."""
  workdirs = [tmp_path_factory.mktemp(f'seed_{n}') for n in range(SEEDS)]
  for seed, workdir in enumerate(workdirs):
    _search(dataset, workdir, seed=seed, **ALONE)
  return workdirs


TOGETHER = {'search.num_seeds': SEEDS, 'search.seeds_at_once': SEEDS}


@pytest.fixture(scope='module')
def together(dataset, tmp_path_factory):
  """The work directory of both seeds in one run."""
  workdir = tmp_path_factory.mktemp('together')
  _search(dataset, workdir, **TOGETHER)
  return workdir


def _check_same(dataset, together, alone, changes):
  """Compares seeds side by side with runs of their own."""
  alphas = _arrays(together / 'search/alphas_by_seed.npz')
  records = _records(together)
  state = _state(together, _config(**changes), dataset)
  for seed, workdir in enumerate(alone):
    for kind, values in _arrays(workdir / 'search/alphas.npz').items():
      assert alphas[kind].shape == (SEEDS, EPOCHS + 1, 2, len(FEW))
      # Drawn alike to the bit; then Adam divides by the gradient's size, so
      # rounding can show. A step of it is 1e-2 long.
      np.testing.assert_array_equal(alphas[kind][seed, 0], values[0])
      np.testing.assert_allclose(alphas[kind][seed], values, atol=1e-4)
    own = _state(workdir, _config(seed=seed, **ALONE), dataset)
    jax.tree.map(
      lambda mine, other, seed=seed: np.testing.assert_allclose(
        mine[seed], other, rtol=1e-3, atol=1e-4
      ),
      (state.params, state.batch_stats),
      (own.params, own.batch_stats),
    )
    np.testing.assert_array_equal(
      jax.random.key_data(state.rng[seed]), jax.random.key_data(own.rng)
    )
    for record, of_own in zip(records, _records(workdir), strict=True):
      assert (record['step'], record['epoch']) == (
        of_own['step'],
        of_own['epoch'],
      )
      for name in set(of_own) - {'step', 'epoch', 'seconds'}:
        np.testing.assert_allclose(
          record[f'{name}_by_seed'][seed],
          np.ravel(of_own[name])[-1],
          rtol=1e-3,
          atol=1e-5,
          err_msg=name,
        )


def test_seeds_side_by_side_are_runs_of_their_own(dataset, together, alone):
  _check_same(dataset, together, alone, TOGETHER)


@pytest.mark.slow
def test_seeds_one_after_the_other_are_too(dataset, alone, tmp_path):
  changes = {'search.num_seeds': SEEDS, 'search.seeds_at_once': 1}
  _search(dataset, tmp_path, **changes)
  _check_same(dataset, tmp_path, alone, changes)


def test_a_line_of_several_seeds_has_their_means(together):
  for record in _records(together):
    for name, value in record.items():
      if not name.endswith('_by_seed'):
        continue
      assert len(value) == SEEDS
      mean = record[name.removesuffix('_by_seed')]
      np.testing.assert_allclose(np.ravel(mean)[-1], np.mean(value), rtol=1e-6)
    assert len(record['valid_accuracy']) == 2
    assert ('derived_cost_by_seed' in record) == (record['step'] % STEPS == 0)


def test_the_seed_with_the_lowest_loss_is_kept(together, dataset):
  content = _json(together / 'search/seeds.json')
  assert [record['seed'] for record in content['seeds']] == [0, 1]
  last = [r for r in _records(together) if r['epoch'] == EPOCHS - 1]
  # Three steps and one.
  expected = np.average(
    [r['valid_loss_by_seed'] for r in last], axis=0, weights=[3, 1]
  )
  for record, loss in zip(content['seeds'], expected, strict=True):
    assert record['valid_loss'] == pytest.approx(loss)
  chosen = int(np.argmin(expected))
  assert content['chosen'] == chosen
  found = load_genotype(str(together / 'search/genotype.json'))
  assert Genotype(**content['seeds'][chosen]['genotype']) == found
  alphas = _arrays(together / 'search/alphas_by_seed.npz')
  for kind, values in _arrays(together / 'search/alphas.npz').items():
    np.testing.assert_array_equal(values, alphas[kind][chosen])
  weights = edges_lib.softmax_weights(
    {k: v[chosen, -1] for k, v in alphas.items()}
  )
  assert alphas_lib.derive_genotype(weights, FEW) == found
  pairs = [Genotype(**r['genotype']) for r in content['seeds']]
  edges, operations = seeds_lib.agreement(*pairs)
  assert content['mean_agreement'] == {
    'edges': edges,
    'operations': operations,
  }
  assert not (together / 'search/candidates.json').exists()


def test_interrupted_seeds_go_on_bit_for_bit(
  dataset, together, tmp_path, monkeypatch, stop_at_call
):
  monkeypatch.setattr(loop_lib, '_call_length', lambda *_: 1)
  with pytest.raises(Interrupted):
    _search(dataset, tmp_path, stop_at_call(5), **TOGETHER)
  assert not (tmp_path / 'search/genotype.json').exists()
  _search(dataset, tmp_path, **TOGETHER)
  for name in ('alphas_by_seed.npz', 'alphas.npz', 'genotype.json'):
    again = (tmp_path / 'search' / name).read_bytes()
    assert again == (together / 'search' / name).read_bytes()
  assert _json(tmp_path / 'search/seeds.json') == _json(
    together / 'search/seeds.json'
  )
  for record, other in zip(_records(tmp_path), _records(together), strict=True):
    del record['seconds'], other['seconds']
    assert record == other


def test_by_area_the_best_candidate_is_kept(alone, dataset):
  workdir = alone[0]
  content = _json(workdir / 'search/candidates.json')
  records = content['candidates']
  assert content['left'] == 0 and content['images'] == {'0': 32}
  sources = [source for record in records for source in record['sources']]
  assert {'seed': 0, 'epoch': EPOCHS} in sources
  assert [s['random'] for s in sources if 'random' in s] == [0, 1, 2, 3]
  (best,) = (record for record in records if record['chosen'])
  assert best['score'] == max(record['score'] for record in records)
  assert load_genotype(str(workdir / 'search/genotype.json')) == Genotype(
    **best['genotype']
  )
  # Judged with the params that the search ended with, on validation images.
  config = _config(**ALONE)
  state = _state(workdir, config, dataset)
  half = stage.plan_epochs(
    config.search, len(dataset.train_images), config.seed
  )[0][1]
  accuracy, loss = candidates.build_score(
    stage.build_program(config, dataset).method.logits, dataset
  )(
    state,
    alphas_lib.one_hot_weights(Genotype(**best['genotype']), FEW),
    half[: STEPS * BATCH].reshape(STEPS, BATCH),
  )
  np.testing.assert_allclose(best['accuracy'], accuracy)
  np.testing.assert_allclose(best['loss'], loss, rtol=1e-5)


def test_a_finished_choice_only_answers(alone, dataset, monkeypatch):
  def forbidden(*_):
    raise AssertionError('nothing is left to judge')

  monkeypatch.setattr(candidates, 'build_score', lambda *_: forbidden)
  path = alone[0] / 'search/candidates.json'
  before = path.read_bytes()
  found = load_genotype(str(alone[0] / 'search/genotype.json'))
  assert _search(dataset, alone[0], seed=0, **ALONE) == found
  assert path.read_bytes() == before


RANDOM = {
  'search.method': 'random',
  # It has no alphas, nor a rate for them.
  'search.alphas_learning_rate': 3e-4,
  'search.num_seeds': SEEDS,
  'search.candidates.random': 6,
}


def test_a_random_search(dataset, tmp_path, stop_at_call):
  """Of several seeds, interrupted once."""
  with pytest.raises(Interrupted):
    _search(dataset, tmp_path, stop_at_call(2), **RANDOM)
  found = _search(dataset, tmp_path, **RANDOM)
  content = _json(tmp_path / 'search/candidates.json')
  records = content['candidates']
  assert len(records) == 6
  assert all(set(s) == {'random'} for r in records for s in r['sources'])
  (best,) = (record for record in records if record['chosen'])
  assert Genotype(**best['genotype']) == found
  assert best['score'] == max(record['score'] for record in records)
  lines = _records(tmp_path)
  assert [line['step'] for line in lines] == [3, 4, 7, 8]
  names = {n for n in lines[-1] if not n.endswith('_by_seed')}
  assert names == {
    'step',
    'epoch',
    'seconds',
    'train_loss',
    'train_accuracy',
    'train_gradient_norm',
    'valid_loss',
    'valid_accuracy',
  }
  assert not list((tmp_path / 'search').glob('alphas*'))
  compared = _json(tmp_path / 'search/seeds.json')
  for index, record in enumerate(compared['seeds']):
    assert record['score'] == max(
      r['score'] for r in records if r['genotype'] == record['genotype']
    )
    own = [r['by_seed'][index]['score'] for r in records]
    assert record['genotype'] == records[int(np.argmax(own))]['genotype']


def test_a_search_with_a_hypernetwork_goes_on_to_the_bit(
  dataset, tmp_path, stop_at_call
):
  fields = {
    **RANDOM,
    'search.method': 'ghn',
    'search.num_seeds': 1,
    'search.ghn.rounds': 1,
    'search.ghn.width': 4,
    'search.ghn.learning_rate': 1e-2,
    'search.ghn.short_epochs': 1,
    'search.ghn.short_candidates': 1,
  }
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  found = _search(dataset, whole, **fields)
  with pytest.raises(Interrupted):
    _search(dataset, parts, stop_at_call(2), **fields)
  assert _search(dataset, parts, **fields) == found
  assert _json(parts / 'search/candidates.json') == _json(
    whole / 'search/candidates.json'
  )
  lines = [
    [{k: v for k, v in line.items() if k != 'seconds'} for line in _records(d)]
    for d in (parts, whole)
  ]
  assert lines[0] == lines[1]
  # The best by what is made was trained for a while, and nothing else.
  records = _json(whole / 'search/candidates.json')['candidates']
  short = [record for record in records if 'short' in record]
  assert short == [record for record in records if record['chosen']]
  assert short[0]['score'] == max(record['score'] for record in records)
  assert short[0]['short']['epochs'] == 1
  place = whole / 'search/short' / str(records.index(short[0]))
  assert metrics.read_metrics(str(place / 'train/metrics.jsonl'))
  # It learns, and what is judged is what it makes.
  assert lines[1][-1]['train_gradient_norm'] > 0
  config = _config(**fields)
  state = _state(whole, config, dataset)
  assert int(state.step) == EPOCHS * STEPS
  half = stage.plan_epochs(
    config.search, len(dataset.train_images), config.seed
  )[0][1][: STEPS * BATCH].reshape(STEPS, BATCH)
  genotype = Genotype(**records[0]['genotype'])
  hypernetwork, params = hypernetwork_file.load_hypernetwork(str(whole))
  chex.assert_trees_all_equal(params, jax.device_get(state.params))
  network = network_lib.derived_network(hypernetwork.spec, genotype, FEW)
  params = hypernetwork_lib.make_params(hypernetwork, params, genotype)
  right = np.zeros(network.num_exits)
  for rows in half:
    images = dataset.train_images[rows] / np.float32(255)
    images = (images - dataset.mean) / dataset.std
    logits = network.apply({'params': params}, images, train=True)
    labels = dataset.train_labels[rows]
    right += (np.asarray(logits).argmax(-1) == labels).sum(axis=1)
  np.testing.assert_allclose(records[0]['accuracy'], right / half.size)
