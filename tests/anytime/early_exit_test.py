"""Leaving early: who leaves where, and that nobody is computed in vain."""

import doctest
import types

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from ms_ranas_jax.anytime import budgets
from ms_ranas_jax.anytime import early_exit
from ms_ranas_jax.space import protocol

EXITS, CLASSES = 4, 3
MEAN, STD = (0.5,), (0.25,)


class Toy:
  """A network of any batch axis, with a feature that grows step by step.

  Its logits are a function of the image and of all steps that it went through,
  so that a mistake in gathering shows.
  """

  num_exits = EXITS
  plan = types.SimpleNamespace(spec=types.SimpleNamespace(num_classes=CLASSES))

  def __init__(self, batch_axis=0):
    self.batch_axis = batch_axis
    self.sizes = []  # of the batches that steps were traced for

  def modules_of_step(self, step):
    return frozenset({f'step_{step}'})

  def apply(self, variables, carried, *, step, train, method):
    assert (train, method) == (False, 'advance')
    assert set(variables['params']) == {f'step_{step}'}
    if step == 0:
      x = carried[protocol.IMAGES].reshape(len(carried[protocol.IMAGES]), -1)
    else:
      x = jnp.moveaxis(carried['x'], self.batch_axis, 0)
    self.sizes.append((step, len(x)))
    x = jnp.tanh(x @ variables['params'][f'step_{step}'])
    return {'x': jnp.moveaxis(x, 0, self.batch_axis)}, 3 * x[:, :CLASSES]


VARIABLES = {
  'params': {
    f'step_{k}': np.random.default_rng(k).normal(size=(6, 6)).astype('f4')
    for k in range(EXITS)
  },
  'batch_stats': {},
}
IMAGES = np.random.default_rng(9).integers(0, 256, (100, 2, 3, 1), 'u1')
TEMPERATURES = (1.0, 0.5, 2.0, 1.5)


@pytest.fixture(params=[0, 1])
def steps(request):
  return early_exit.CompiledSteps(Toy(request.param), VARIABLES, MEAN, STD)


def _logits(images):
  """The logits of all exits, (exits, images, classes)."""
  x = (images.reshape(len(images), -1) / 255.0 - 0.5) / 0.25
  found = []
  for k in range(EXITS):
    x = np.tanh(x @ VARIABLES['params'][f'step_{k}'])
    found.append(3 * x[:, :CLASSES])
  return np.stack(found)


def test_docstrings():
  assert doctest.testmod(early_exit).attempted > 0
  assert doctest.testmod(early_exit).failed == 0


def test_buckets_are_few_and_waste_a_third_at_most():
  found = [early_exit.bucket(count, 256) for count in range(1, 257)]
  assert len(set(found)) == 16
  for count, size in enumerate(found, start=1):
    assert count <= size <= max(count * 3 / 2, 2)
    assert early_exit.bucket(size, 256) == size
  assert early_exit.bucket(250, 250) == 250


@pytest.mark.parametrize('batch_size', [1, 7, 64, 250])
def test_all_exits(steps, batch_size):
  found = steps.logits(IMAGES, batch_size)
  np.testing.assert_allclose(found, _logits(IMAGES), rtol=1e-4, atol=1e-4)
  assert found.shape == (EXITS, 100, CLASSES)


@pytest.mark.parametrize('batch_size', [1, 32, 250])
@pytest.mark.parametrize('last', [0, 2, 3])
def test_images_leave_at_the_first_exit_that_is_sure(steps, batch_size, last):
  thresholds = (0.9, 0.95, 0.8, 0.99)[: last + 1]
  found, exits = steps.early_exits(
    IMAGES, thresholds, TEMPERATURES[: last + 1], batch_size
  )
  logits = _logits(IMAGES)[: last + 1]
  sure = special.softmax(
    logits / np.array(TEMPERATURES)[: last + 1, None, None], axis=-1
  )
  leaves = sure.max(-1) >= np.array(thresholds)[:, None]
  leaves[-1] = True
  expected = leaves.argmax(0)
  assert set(exits) == set(range(last + 1))
  np.testing.assert_array_equal(exits, expected)
  np.testing.assert_allclose(
    found, sure[expected, np.arange(100)], rtol=1e-4, atol=1e-5
  )


def test_it_agrees_with_the_rule_that_is_judged(steps):
  logits = steps.logits(IMAGES, 250)
  labels = np.arange(100) % CLASSES
  sure = special.softmax(
    logits.astype(np.float64) / np.array(TEMPERATURES)[:, None, None], axis=-1
  )
  solved = budgets.solve_thresholds(
    sure.max(-1), budgets.exit_fractions(0.8, EXITS)
  )
  # They are confidences of images, which smaller batches round in another way.
  thresholds = tuple(threshold - 1e-6 for threshold in solved)
  accuracy, macs, fractions = budgets.apply_thresholds(
    sure.max(-1), logits.argmax(-1) == labels, [1, 3, 4, 9], thresholds
  )
  found, exits = steps.early_exits(IMAGES, thresholds, TEMPERATURES, 250)
  assert (found.argmax(-1) == labels).mean() == accuracy
  assert np.array([1, 3, 4, 9])[exits].mean() == macs
  np.testing.assert_allclose(np.bincount(exits) / 100, fractions)


def test_who_has_left_is_not_computed(steps):
  sure = special.softmax(_logits(IMAGES[:64])[0], axis=-1).max(-1)
  left = np.median(sure)
  steps.early_exits(IMAGES[:64], (left, 2, 2, 2), TEMPERATURES, 64)
  assert steps.network.sizes == [(0, 64), (1, 32), (2, 32), (3, 32)]


def test_no_step_is_taken_that_nobody_needs(steps):
  steps.early_exits(IMAGES[:4], (0.0, 2, 2, 2), TEMPERATURES, 64)
  assert steps.network.sizes == [(0, 4)]
  steps.early_exits(IMAGES[:4], (2.0, 2.0), TEMPERATURES[:2], 64)
  assert steps.network.sizes == [(0, 4), (1, 4)]


def test_no_images(steps):
  found, exits = steps.early_exits(IMAGES[:0], (0.5,), (1.0,), 64)
  assert found.shape == (0, CLASSES) and exits.shape == (0,)
