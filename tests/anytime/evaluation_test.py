"""The evaluate stage: a tiny network, most of the time with made-up logits."""

import dataclasses
import json
import types

import numpy as np
import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax import settings
from ms_ranas_jax.anytime import budgets
from ms_ranas_jax.anytime import calibration
from ms_ranas_jax.anytime import evaluation
from ms_ranas_jax.costs import cost
from ms_ranas_jax.data.datasets import Dataset
from ms_ranas_jax.runtime import files
from ms_ranas_jax.space import genotype
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.training import stage

TRAIN, TEST, HOLDOUT, CLASSES, EXITS = 60, 40, 25, 3, 2
EPOCHS, BATCH = 2, 10
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
  return settings.parse(config)


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
def fake(network):
  """Made-up logits of every image, and the images that were asked for."""
  rng = np.random.default_rng(1)
  # Test images are less sure than held-out ones, so that it shows which of
  # them thresholds come from.
  logits = rng.normal(size=(EXITS, 256, CLASSES)).astype(np.float32)
  logits[:, :100] *= 3
  asked = []

  def steps_logits(images, batch_size):
    assert batch_size == 16
    which = images[:, 0, 0, 0].astype(int)
    asked.append(which)
    return logits[:, which]

  return types.SimpleNamespace(
    logits=logits,
    asked=asked,
    steps=types.SimpleNamespace(logits=steps_logits, network=network),
  )


def _evaluate(fake, dataset, config=None):
  config = config or _config()
  _, held_out = stage.split_training_images(config, dataset)
  return evaluation.evaluate_exits(
    config.evaluate, dataset, fake.steps, held_out
  )


def _probabilities(logits):
  exponents = np.exp(logits.astype(np.float64))
  return exponents / exponents.sum(-1, keepdims=True)


def _temperatures(fake, dataset):
  """Those of the held-out images."""
  _, held_out = stage.split_training_images(_config(), dataset)
  return [
    calibration.solve_temperature(
      fake.logits[k, held_out], dataset.train_labels[held_out]
    )
    for k in range(EXITS)
  ]


def _confidence(logits, temperatures):
  temperatures = np.array(temperatures)[:, None, None]
  return _probabilities(logits / temperatures).max(-1)


def test_anytime_is_measured_on_the_test_images(fake, dataset, network):
  anytime = _evaluate(fake, dataset).anytime
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
    assert row.pop('temperature') == _temperatures(fake, dataset)[index]
    for name, temperature in (
      ('calibration_error_before', 1.0),
      ('calibration_error', _temperatures(fake, dataset)[index]),
    ):
      sure = _probabilities(logits[index] / temperature).max(-1)
      np.testing.assert_allclose(
        row.pop(name), calibration.calibration_error(sure, right[index])
      )
    of_exit = expected_cost.exits[index]
    assert row == {
      'exit': index,
      'layer': (1, 2)[index],
      'macs': of_exit.macs,
      'flops_msdnet': of_exit.flops_msdnet,
      'params': of_exit.params,
      'total_params': expected_cost.params,
      'params_deployed': of_exit.params_deployed,
      'peak_activation_bytes': of_exit.peak_activation_bytes,
    }


def test_expected_accuracy_is_worked_by_hand(fake, dataset, network):
  anytime = _evaluate(fake, dataset).anytime
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
  anytime = _evaluate(
    fake,
    dataset,
    _config(**{'evaluate.budget_range': (middle, 2 * macs[1] - middle)}),
  ).anytime
  first, last = (e['accuracy'] for e in anytime['exits'])
  np.testing.assert_allclose(
    anytime['expected_accuracy'], (first + last) / 2, rtol=1e-6
  )
  assert anytime['budget_range'] == [middle, 2 * macs[1] - middle]


def test_thresholds_come_from_held_out_images(fake, dataset, network):
  budgeted = _evaluate(fake, dataset).budgeted
  _, held_out = stage.split_training_images(_config(), dataset)
  temperatures = _temperatures(fake, dataset)
  test = fake.logits[:, 100 : 100 + TEST]
  right = test.argmax(-1) == dataset.test_labels
  macs = [e.macs for e in cost.network_cost(network).exits]

  def points(logits):
    """Thresholds from these images, results of the test images."""
    rows = []
    for q in budgets.QS:
      thresholds = budgets.solve_thresholds(
        _confidence(logits, temperatures), budgets.exit_fractions(q, EXITS)
      )
      outcome = budgets.apply_thresholds(
        _confidence(test, temperatures), right, macs, thresholds
      )
      rows.append((*outcome, np.clip(thresholds, 0, 2)))
    return rows

  assert budgeted['num_holdout'] == HOLDOUT
  assert [p['q'] for p in budgeted['points']] == list(budgets.QS)
  found = np.array([p['fractions'] for p in budgeted['points']])
  expected = points(fake.logits[:, held_out])
  np.testing.assert_allclose(found, [row[2] for row in expected])
  for point, (accuracy, spent, _, thresholds) in zip(
    budgeted['points'], expected
  ):
    assert set(point) == {'q', 'accuracy', 'macs', 'fractions', 'thresholds'}
    np.testing.assert_allclose(point['accuracy'], accuracy)
    np.testing.assert_allclose(point['macs'], spent)
    np.testing.assert_allclose(point['thresholds'], thresholds)
  # Thresholds from the test images, or from those that were trained on, would
  # be others.
  for other in (test, fake.logits[:, :TRAIN]):
    fractions = [row[2] for row in points(other)]
    assert np.abs(found - fractions).max() > 0.05


def test_test_images_cannot_move_what_is_settled(fake, dataset):
  def settled():
    anytime, budgeted, *_ = _evaluate(fake, dataset)
    return (
      [e['temperature'] for e in anytime['exits']],
      [p['thresholds'] for p in budgeted['points']],
    )

  before = settled()
  fake.logits[:, 100:] = 7 * fake.logits[:, 100:] + 1
  assert settled() == before
  fake.logits[:, :100] *= 2
  changed = settled()
  assert changed[0] != before[0] and changed[1] != before[1]


def test_only_test_and_held_out_images_are_looked_at(fake, dataset, network):
  _evaluate(fake, dataset)
  fitted, held_out = stage.split_training_images(_config(), dataset)
  tested, looked_at = fake.asked
  assert tested.tolist() == list(range(100, 100 + TEST))
  assert sorted(looked_at) == sorted(held_out)
  assert not set(looked_at) & set(fitted)


def test_what_is_written_is_what_was_found(fake, dataset, tmp_path):
  found = _evaluate(fake, dataset)
  evaluation.write_evaluation(found, str(tmp_path))
  written = [
    json.loads((tmp_path / 'evaluate' / name).read_text())
    for name in ('anytime.json', 'budgeted.json', 'classes.json')
  ]
  assert written == list(found[:3])
  arrays = files.read_npz(tmp_path / 'evaluate/predictions.npz')
  assert set(arrays) == set(found.predictions)
  for name, values in found.predictions.items():
    np.testing.assert_array_equal(arrays[name], values)


NAMES = ('cat', 'dog', 'cow')


def test_every_class_is_judged_by_its_name(fake, dataset):
  named = dataclasses.replace(dataset, class_names=NAMES)
  judged = _evaluate(fake, named)
  answers = fake.logits[:, 100 : 100 + TEST].argmax(-1)
  labels = dataset.test_labels
  found = judged.classes
  assert (found['dataset'], found['num_examples']) == ('toy', TEST)
  assert found['class_names'] == list(NAMES)
  assert found['images'] == [(labels == c).sum() for c in range(CLASSES)]
  np.testing.assert_allclose(
    found['accuracies'],
    [
      [(of_exit[labels == c] == c).mean() for c in range(CLASSES)]
      for of_exit in answers
    ],
  )
  assert found['confusion'] == [
    [((labels == c) & (answers[-1] == a)).sum() for a in range(CLASSES)]
    for c in range(CLASSES)
  ]
  # They add up to the accuracy of every exit.
  shares = np.array(found['images']) / TEST
  np.testing.assert_allclose(
    np.array(found['accuracies']) @ shares,
    [e['accuracy'] for e in judged.anytime['exits']],
  )


def test_a_class_without_test_images_has_no_accuracy(fake, dataset):
  labels = np.where(dataset.test_labels == 1, 2, dataset.test_labels)
  found = _evaluate(
    fake, dataclasses.replace(dataset, test_labels=labels)
  ).classes
  assert found['images'][1] == sum(found['confusion'][1]) == 0
  for of_exit in found['accuracies']:
    assert of_exit[1] is None and None not in (of_exit[0], of_exit[2])


def test_predictions_of_every_image(fake, dataset):
  named = dataclasses.replace(dataset, class_names=NAMES)
  found = _evaluate(fake, named).predictions
  logits = fake.logits[:, 100 : 100 + TEST]
  types_and_shapes = {k: (v.dtype.kind, v.shape) for k, v in found.items()}
  assert types_and_shapes == {
    'label': ('i', (TEST,)),
    'prediction': ('i', (EXITS, TEST)),
    'confidence': ('f', (EXITS, TEST)),
    'class_names': ('U', (CLASSES,)),
  }
  assert found['label'].dtype == found['prediction'].dtype == np.int32
  assert found['confidence'].dtype == np.float32
  np.testing.assert_array_equal(found['label'], dataset.test_labels)
  np.testing.assert_array_equal(found['prediction'], logits.argmax(-1))
  np.testing.assert_allclose(
    found['confidence'],
    _confidence(logits, _temperatures(fake, dataset)),
    rtol=1e-6,
  )
  assert tuple(found['class_names']) == NAMES


@pytest.mark.parametrize('classes', [10, 11])
def test_top_5_is_of_more_than_ten_classes(classes, fake, dataset):
  rng = np.random.default_rng(2)
  fake.logits = rng.normal(size=(EXITS, 256, classes)).astype(np.float32)
  fake.steps.logits = lambda images, _: fake.logits[:, images[:, 0, 0, 0]]
  labels = rng.integers(0, classes, TEST).astype(np.int32)
  many = dataclasses.replace(
    dataset, num_classes=classes, class_names=(), test_labels=labels
  )
  logits = fake.logits[:, 100 : 100 + TEST]
  best = np.argsort(-logits, axis=-1)[..., :5]
  for index, exit_ in enumerate(_evaluate(fake, many).anytime['exits']):
    if classes == 10:
      assert 'top5_accuracy' not in exit_
    else:
      expected = (best[index] == labels[:, None]).any(-1).mean()
      assert exit_['top5_accuracy'] == expected
      assert exit_['accuracy'] < expected < 1
