"""The optimizer and the schedule of params against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ms_ranas_jax.training import optimizers

PARAMS = {'a': np.array([1.0, -2.0]), 'b': np.array([[0.5]])}


def _gradients(steps, size=1.0):
  rng = np.random.default_rng(0)
  return [
    {k: size * rng.normal(size=v.shape) for k, v in PARAMS.items()}
    for _ in range(steps)
  ]


def _run(optimizer, gradients):
  params = jax.tree.map(jnp.asarray, PARAMS)
  state = optimizer.init(params)
  for gradient in gradients:
    gradient = jax.tree.map(jnp.asarray, gradient)
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  return params


def _norm(tree):
  return np.sqrt(sum((v**2).sum() for v in tree.values()))


@pytest.mark.parametrize('clip', [0.0, 0.7, 100.0])
def test_clip_decay_momentum_and_rate_in_that_order(clip):
  momentum, decay, rates = 0.9, 0.3, [0.1, 0.1, 0.05, 0.05]
  gradients = _gradients(4)
  params, buffers = dict(PARAMS), {k: 0.0 for k in PARAMS}
  for rate, gradient in zip(rates, gradients):
    # The norm is over all params together, and that of the loss alone.
    norm = _norm(gradient)
    factor = clip / norm if clip and norm > clip else 1.0
    for name, g in gradient.items():
      g = factor * g + decay * params[name]
      # The heavy ball; the rate does not enter the buffer.
      buffers[name] = momentum * buffers[name] + g
      params[name] = params[name] - rate * buffers[name]
  with jax.enable_x64(True):
    schedule = optax.piecewise_constant_schedule(0.1, {2: 0.5})
    actual = _run(optimizers.sgd(schedule, momentum, decay, clip), gradients)
  for name in PARAMS:
    np.testing.assert_allclose(actual[name], params[name], rtol=1e-6)


def test_nesterov_looks_ahead():
  gradients = _gradients(3)
  params, buffers = dict(PARAMS), {k: 0.0 for k in PARAMS}
  for gradient in gradients:
    for name, g in gradient.items():
      g = g + 0.3 * params[name]
      buffers[name] = 0.9 * buffers[name] + g
      params[name] = params[name] - 0.1 * (g + 0.9 * buffers[name])
  with jax.enable_x64(True):
    actual = _run(optimizers.sgd(0.1, 0.9, 0.3, 0.0, nesterov=True), gradients)
  for name in PARAMS:
    np.testing.assert_allclose(actual[name], params[name], rtol=1e-6)


@pytest.mark.parametrize('clip', [0.0, 0.7])
def test_the_decay_of_adamw_is_apart_from_its_gradient(clip):
  rate, decay, gradients = 0.1, 0.3, _gradients(3)
  params = dict(PARAMS)
  first, second = ({k: 0.0 for k in PARAMS} for _ in range(2))
  for step, gradient in enumerate(gradients, 1):
    norm = _norm(gradient)
    factor = clip / norm if clip and norm > clip else 1.0
    for name, g in gradient.items():
      g = factor * g
      first[name] = 0.9 * first[name] + 0.1 * g
      second[name] = 0.999 * second[name] + 0.001 * g**2
      mean, square = first[name] / (1 - 0.9**step), second[name]
      update = mean / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
      params[name] = params[name] - rate * (update + decay * params[name])
  with jax.enable_x64(True):
    actual = _run(optimizers.adamw(rate, decay, clip), gradients)
  for name in PARAMS:
    np.testing.assert_allclose(actual[name], params[name], rtol=1e-6)


def test_a_rate_rises_first():
  plain = optimizers.epoch_cosine(0.4, 0.0, epochs=4, steps_per_epoch=5)
  found = optimizers.with_warmup(plain, 4)
  rates = [float(found(jnp.int32(step))) for step in range(20)]
  np.testing.assert_allclose(rates[:4], [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
  expected = [float(plain(jnp.int32(step))) for step in range(4, 20)]
  np.testing.assert_allclose(rates[4:], expected, rtol=1e-6)
  assert optimizers.with_warmup(plain, 0) is plain


@pytest.mark.parametrize(('rise', 'top'), [(0, 30), (50, 50)])
def test_one_cycle_goes_up_and_down(rise, top):
  schedule = optimizers.one_cycle(0.5, 100, rise)
  rates = np.array([float(schedule(jnp.int32(step))) for step in range(101)])
  np.testing.assert_allclose(
    rates[[0, top, 100]], [0.5 / 25, 0.5, 0.5 / 25 / 1e4], rtol=1e-4
  )
  # Half way up a cosine is half way.
  np.testing.assert_allclose(rates[top // 2], (0.5 + 0.02) / 2, rtol=1e-4)
  assert rates.argmax() == top
  assert (np.diff(rates[: top + 1]) > 0).all() and (
    np.diff(rates[top:]) < 0
  ).all()


def test_the_decay_is_not_clipped():
  gradient = {k: 1e-6 * np.ones_like(v) for k, v in PARAMS.items()}
  params = _run(optimizers.sgd(0.1, 0.9, 2.0, clip=0.01), [gradient])
  for name, value in PARAMS.items():
    np.testing.assert_allclose(params[name], 0.8 * value, rtol=1e-5)


def test_one_may_look_ahead_with_the_state_of_the_other():
  params = jax.tree.map(jnp.asarray, PARAMS)
  clipped, free = (optimizers.sgd(0.1, 0.9, 0.1, c) for c in (0.01, 0.0))
  first, second = jax.tree.map(jnp.asarray, _gradients(2))
  _, state = clipped.update(first, clipped.init(params), params)
  updates, _ = free.update(second, state, params)
  factor = 0.01 / _norm(first)
  for name, value in PARAMS.items():
    buffer = factor * first[name] + 0.1 * value
    expected = -0.1 * (0.9 * buffer + second[name] + 0.1 * value)
    np.testing.assert_allclose(updates[name], expected, rtol=1e-4)
  assert jax.tree.structure(free.init(params)) == jax.tree.structure(state)


def test_the_cosine_moves_once_an_epoch():
  epochs, steps, start, end = 5, 7, 0.4, 0.1
  schedule = optimizers.epoch_cosine(start, end, epochs, steps)
  rates = np.array([schedule(jnp.int32(s)) for s in range(epochs * steps)])
  expected = [
    end + (start - end) * (1 + np.cos(np.pi * e / epochs)) / 2
    for e in range(epochs)
  ]
  np.testing.assert_allclose(rates, np.repeat(expected, steps), rtol=1e-6)


def test_the_cosine_starts_and_ends_where_it_should():
  schedule = optimizers.epoch_cosine(0.4, 0.1, 5, 7)
  np.testing.assert_allclose(schedule(jnp.int32(0)), 0.4, rtol=1e-6)
  # Reached after the last epoch, and kept.
  for step in (35, 36, 1000):
    np.testing.assert_allclose(schedule(jnp.int32(step)), 0.1, rtol=1e-6)
  # Half way, half of both.
  schedule = optimizers.epoch_cosine(0.4, 0.1, 4, 10)
  np.testing.assert_allclose(schedule(jnp.int32(20)), 0.25, rtol=1e-6)


def test_the_schedule_reaches_the_optimizer():
  schedule = optimizers.epoch_cosine(0.4, 0.0, 2, 2)
  gradients = [{k: np.ones_like(v) for k, v in PARAMS.items()}] * 5
  params = _run(optimizers.sgd(schedule, 0.0, 0.0, 0.0), gradients)
  # Two steps of 0.4, two of 0.2, and none after the end.
  for name, value in PARAMS.items():
    np.testing.assert_allclose(params[name], value - 1.2, rtol=1e-5, atol=1e-6)


def test_msdnets_schedule_falls_at_a_half_and_three_quarters():
  schedule = optimizers.epoch_steps(0.1, 300, 7)
  rates = [float(schedule(jnp.int32(7 * e + 6))) for e in (0, 149, 150, 224)]
  assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01])
  rates = [float(schedule(jnp.int32(step))) for step in (7 * 225, 7 * 300)]
  assert rates == pytest.approx([0.001, 0.001])
  # Of five epochs the first three, 0 to 2.5, keep the whole rate.
  odd = optimizers.epoch_steps(1.0, 5, 1)
  rates = [float(odd(jnp.int32(epoch))) for epoch in range(5)]
  assert rates == pytest.approx([1.0, 1.0, 1.0, 0.1, 0.01])
