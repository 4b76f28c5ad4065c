"""The bilevel step on a problem that is small enough to be checked fully.

The model is y = tanh(x (w * exp(a))) + b with params (w, b) and alphas a, in
float64; the objective's gradient comes from finite differences of the whole
objective, from plain reverse mode through the lookahead, and from the
finite-difference form that DARTS uses.
"""

import functools
from typing import NamedTuple

import jax
from jax import flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.search import bilevel
from ms_ranas_jax.training import optimizers

RATE, MOMENTUM, DECAY = 0.3, 0.9, 0.05
EXAMPLES = 8


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _loss(params, alphas, batch_stats, batch):
  """Also keeps a running average, so that who writes it can be seen."""
  x, y = batch
  scaled = params['w'] * jnp.exp(alphas['a'])
  output = jnp.tanh(x @ scaled) + params['b'] + 0.1 * alphas['c']
  error = output - y
  updated = {'mean': 0.9 * batch_stats['mean'] + 0.1 * x.mean()}
  return jnp.mean(error**2), (updated, {'error': jnp.abs(error).max()})


def _batch(seed):
  rng = np.random.default_rng(seed)
  # The second half differs from the first, as batches on devices do.
  x = rng.normal(size=(EXAMPLES, 3)) + np.repeat([[0.0], [1.0]], 4, axis=0)
  return jnp.asarray(x), jnp.asarray(rng.normal(size=EXAMPLES))


TRAIN, VALID = 1, 2
OPTIMIZERS = {
  'sgd': optax.sgd(RATE),
  'darts': optimizers.sgd(RATE, MOMENTUM, DECAY, clip=0.0),
  'clipped': optimizers.sgd(RATE, MOMENTUM, DECAY, clip=0.1),
  'adam': optax.adam(RATE),
}


def _state(optimizer, alphas_optimizer=None):
  """After a few steps, so that no momentum is zero."""
  rng = np.random.default_rng(0)
  params = {'w': jnp.asarray(rng.normal(size=3)), 'b': jnp.asarray(0.3)}
  alphas = {'a': jnp.asarray(rng.normal(size=3)), 'c': jnp.asarray(-0.2)}
  state = bilevel.init_state(
    params,
    alphas,
    {'mean': jnp.asarray(0.5)},
    optimizer,
    # Its step is minus the gradient.
    alphas_optimizer or optax.sgd(1.0),
    jax.random.key(5),
  )
  history = state.params_opt_state
  for _ in range(2):
    past = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
    _, history = optimizer.update(past, history, params)
  return state.replace(params_opt_state=history)


def _gradient(state, order, optimizer, train=None, valid=None, **fields):
  """The alphas gradient, read off what a whole search step does."""
  after, _ = bilevel.search_step(
    state,
    _batch(TRAIN) if train is None else train,
    _batch(VALID) if valid is None else valid,
    loss=_loss,
    params_optimizer=optimizer,
    alphas_optimizer=optax.sgd(1.0),
    order=order,
    **fields,
  )
  return jax.tree.map(jnp.subtract, state.alphas, after.alphas)


def _value(params, alphas, batch):
  return _loss(params, alphas, {'mean': 0.0}, batch)[0]


def _lookahead(state, optimizer, alphas, train):
  gradient = jax.grad(_value)(state.params, alphas, train)
  updates, _ = optimizer.update(gradient, state.params_opt_state, state.params)
  return optax.apply_updates(state.params, updates)


def _objective(state, optimizer, order, alphas):
  """What the alphas step descends: the whole of it, as a function."""
  params = state.params
  if order == 2:
    params = _lookahead(state, optimizer, alphas, _batch(TRAIN))
  return _value(params, alphas, _batch(VALID))


def _central_differences(function, tree, step=1e-5):
  flat, unflatten = flatten_util.ravel_pytree(tree)
  function = jax.jit(function)
  slopes = [
    (function(unflatten(flat + d)) - function(unflatten(flat - d))) / (2 * step)
    for d in step * np.eye(flat.size)
  ]
  return unflatten(jnp.stack(slopes))


def _assert_close(actual, expected, rtol):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  actual, expected = (
    np.asarray(flatten_util.ravel_pytree(t)[0]) for t in (actual, expected)
  )
  scale = np.abs(expected).max()
  assert scale > 0.01
  np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * scale)


def _distance(first, second):
  """The largest difference over the largest entry."""
  first, second = (flatten_util.ravel_pytree(t)[0] for t in (first, second))
  return float(jnp.abs(first - second).max() / jnp.abs(second).max())


@pytest.mark.parametrize('name', list(OPTIMIZERS))
@pytest.mark.parametrize('order', [1, 2])
def test_gradient_agrees_with_differences_of_the_objective(order, name):
  optimizer = OPTIMIZERS[name]
  state = _state(optimizer)
  objective = functools.partial(_objective, state, optimizer, order)
  gradient = _gradient(state, order, optimizer)
  _assert_close(gradient, _central_differences(objective, state.alphas), 1e-8)
  _assert_close(gradient, jax.grad(objective)(state.alphas), 1e-11)


@pytest.mark.parametrize('name', list(OPTIMIZERS))
def test_the_orders_differ(name):
  optimizer = OPTIMIZERS[name]
  state = _state(optimizer)
  first, second = (_gradient(state, order, optimizer) for order in (1, 2))
  assert _distance(first, second) > 0.05


def _momentum(state):
  """The heavy ball's buffer, found by its type, as a tree like params."""
  traces = []
  jax.tree.map(
    lambda s: traces.append(s) if isinstance(s, optax.TraceState) else None,
    state.params_opt_state,
    is_leaf=lambda s: isinstance(s, optax.TraceState),
  )
  (trace,) = traces
  _, unflatten = flatten_util.ravel_pytree(state.params)
  return unflatten(trace.trace)


def test_the_lookahead_is_the_one_of_darts():
  # params - rate (0.9 momentum + gradient + decay params), without the clip
  # that the params step has.
  state = _state(OPTIMIZERS['clipped'])
  buffer = _momentum(state)

  def objective(alphas):
    gradient = jax.grad(_value)(state.params, alphas, _batch(TRAIN))
    ahead = jax.tree.map(
      lambda p, m, g: p - RATE * (MOMENTUM * m + g + DECAY * p),
      state.params,
      buffer,
      gradient,
    )
    return _value(ahead, alphas, _batch(VALID))

  optimizer = OPTIMIZERS['clipped']
  gradient = _gradient(
    state, 2, optimizer, lookahead_optimizer=OPTIMIZERS['darts']
  )
  _assert_close(gradient, _central_differences(objective, state.alphas), 1e-8)
  # The clip would show: it is far below this gradient's norm.
  assert _distance(_gradient(state, 2, optimizer), gradient) > 0.01


def test_agrees_with_the_finite_difference_form_of_darts():
  optimizer = OPTIMIZERS['darts']
  state = _state(optimizer)
  ahead = _lookahead(state, optimizer, state.alphas, _batch(TRAIN))
  along, direct = jax.grad(_value, (0, 1))(ahead, state.alphas, _batch(VALID))
  epsilon = 0.01 / optax.tree.norm(along)

  def train_gradient(sign):
    params = jax.tree.map(
      lambda p, v: p + sign * epsilon * v, state.params, along
    )
    return jax.grad(_value, 1)(params, state.alphas, _batch(TRAIN))

  expected = jax.tree.map(
    lambda d, plus, minus: d - RATE * (plus - minus) / (2 * epsilon),
    direct,
    train_gradient(1),
    train_gradient(-1),
  )
  _assert_close(_gradient(state, 2, optimizer), expected, 1e-3)


def _on_devices(batch):
  return jax.tree.map(
    lambda x: x.reshape(2, EXAMPLES // 2, *x.shape[1:]), batch
  )


def _on_two(function):
  return jax.pmap(
    function, axis_name='devices', devices=jax.local_devices()[:2]
  )


def _copy_of(tree, device):
  return jax.tree.map(lambda x: x[device], tree)


@pytest.mark.parametrize('name', list(OPTIMIZERS))
@pytest.mark.parametrize('order', [1, 2])
def test_two_devices_give_the_gradient_of_one(order, name):
  optimizer = OPTIMIZERS[name]
  state = _state(optimizer)

  @_on_two
  def on_two(train, valid):
    return _gradient(state, order, optimizer, train, valid, axis_name='devices')

  both = on_two(*map(_on_devices, (_batch(TRAIN), _batch(VALID))))
  expected = _gradient(state, order, optimizer)
  for device in range(2):
    _assert_close(_copy_of(both, device), expected, 1e-12)


def test_leaving_a_mean_out_would_be_noticed():
  # What the test above guards against: the result is averaged, but one of the
  # means inside is left out.
  optimizer = OPTIMIZERS['darts']
  state = _state(optimizer)
  expected = _gradient(state, 2, optimizer)

  def pmean(tree):
    return jax.lax.pmean(tree, 'devices')

  def own_lookaheads(train, valid):
    return pmean(_gradient(state, 2, optimizer, train, valid))

  def by_hand(mean_of_direction, train, valid):
    gradient = pmean(jax.grad(_value)(state.params, state.alphas, train))
    updates, _ = optimizer.update(
      gradient, state.params_opt_state, state.params
    )
    ahead = optax.apply_updates(state.params, updates)
    along, direct = jax.grad(_value, (0, 1))(ahead, state.alphas, valid)
    along = jax.tree.map(lambda v: -RATE * v, mean_of_direction(along))
    _, mixed = jax.jvp(
      lambda p: jax.grad(_value, 1)(p, state.alphas, train),
      (state.params,),
      (along,),
    )
    return pmean(jax.tree.map(jnp.add, direct, mixed))

  def result(function):
    both = _on_two(function)(*map(_on_devices, (_batch(TRAIN), _batch(VALID))))
    return _copy_of(both, 0)

  own_directions = functools.partial(by_hand, lambda tree: tree)
  right = functools.partial(by_hand, pmean)
  assert _distance(result(own_lookaheads), expected) > 0.01
  assert _distance(result(own_directions), expected) > 0.01
  _assert_close(result(right), expected, 1e-12)


@pytest.mark.parametrize('order', [1, 2])
def test_a_whole_step_on_two_devices_is_the_step_of_one(order):
  optimizer = OPTIMIZERS['clipped']
  alphas_optimizer = optax.adam(0.1)
  state = _state(optimizer, alphas_optimizer)
  step = functools.partial(
    bilevel.search_step,
    loss=_loss,
    params_optimizer=optimizer,
    alphas_optimizer=alphas_optimizer,
    order=order,
  )
  one, metrics = step(state, _batch(TRAIN), _batch(VALID))
  both, both_metrics = _on_two(functools.partial(step, axis_name='devices'))(
    jax.tree.map(lambda x: jnp.stack([x, x]), state),
    *map(_on_devices, (_batch(TRAIN), _batch(VALID))),
  )
  one, both = (s.replace(rng=jax.random.key_data(s.rng)) for s in (one, both))
  for device in range(2):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-9),
      _copy_of(both, device),
      one,
    )
  assert set(metrics) == set(both_metrics)
  for name in ('train_loss', 'valid_loss'):
    np.testing.assert_allclose(both_metrics[name][1], metrics[name], rtol=1e-9)


@pytest.mark.parametrize('order', [1, 2])
def test_a_step_updates_alphas_and_then_params(order):
  optimizer = OPTIMIZERS['sgd']
  state = _state(optimizer)
  after, metrics = bilevel.search_step(
    state,
    _batch(TRAIN),
    _batch(VALID),
    loss=_loss,
    params_optimizer=optimizer,
    alphas_optimizer=optax.sgd(0.7),
    order=order,
  )
  gradient = _gradient(state, order, optimizer)
  alphas = jax.tree.map(lambda a, g: a - 0.7 * g, state.alphas, gradient)
  _assert_close(after.alphas, alphas, 1e-12)

  def step_of_params(alphas):
    gradient = jax.grad(_value)(state.params, alphas, _batch(TRAIN))
    return jax.tree.map(lambda p, g: p - RATE * g, state.params, gradient)

  _assert_close(after.params, step_of_params(alphas), 1e-12)
  assert _distance(step_of_params(state.alphas), after.params) > 1e-3

  assert int(after.step) == int(state.step) + 1 == 1
  assert after.step.dtype == jnp.int32
  assert jax.random.key_data(after.rng).tolist() == (
    jax.random.key_data(state.rng).tolist()
  )
  # Each loss is the one that its own update descended.
  assert set(metrics) == {
    'train_loss',
    'train_error',
    'train_gradient_norm',
    'valid_loss',
    'valid_error',
    'valid_gradient_norm',
  }
  np.testing.assert_allclose(
    metrics['train_loss'], _value(state.params, alphas, _batch(TRAIN))
  )
  np.testing.assert_allclose(
    metrics['valid_loss'], _objective(state, optimizer, order, state.alphas)
  )


@pytest.mark.parametrize('order', [1, 2])
def test_only_the_params_step_writes_batch_stats(order):
  optimizer = OPTIMIZERS['sgd']
  state = _state(optimizer)
  calls = []

  def loss(params, alphas, batch_stats, batch):
    calls.append(batch_stats['mean'])
    return _loss(params, alphas, batch_stats, batch)

  after, _ = bilevel.search_step(
    state,
    _batch(TRAIN),
    _batch(VALID),
    loss=loss,
    params_optimizer=optimizer,
    alphas_optimizer=optax.sgd(1.0),
    order=order,
  )
  # One update, with the training batch, and every forward saw the old ones.
  np.testing.assert_allclose(
    after.batch_stats['mean'], 0.9 * 0.5 + 0.1 * _batch(TRAIN)[0].mean()
  )
  assert calls and all(value == 0.5 for value in calls)


@pytest.mark.parametrize('order', [0, 3, '1'])
def test_other_orders_are_refused(order):
  optimizer = OPTIMIZERS['sgd']
  with pytest.raises(UsageError, match=r'order = .*give one of \(1, 2\)'):
    _gradient(_state(optimizer), order, optimizer)


class _Pair(NamedTuple):
  scale: jax.Array
  shifts: tuple


@pytest.mark.parametrize('order', [1, 2])
def test_pytrees_and_a_loss_of_ones_own(order):
  params = _Pair(jnp.asarray([1.0, -2.0]), (jnp.asarray(0.5),))
  alphas = [jnp.asarray(0.3), {'gate': jnp.asarray([0.1, 0.2])}]

  def loss(params, alphas, batch_stats, batch):
    assert batch_stats == {}
    gate = jax.nn.sigmoid(alphas[0] + alphas[1]['gate'])
    output = batch['x'] * gate * params.scale + params.shifts[0]
    return jnp.mean((output - batch['y']) ** 2), ({}, {})

  train = {'x': jnp.asarray([1.0, 2.0]), 'y': jnp.asarray([0.0, 1.0])}
  valid = {'x': jnp.asarray([2.0, -1.0]), 'y': jnp.asarray([1.0, 1.0])}
  optimizer = optax.sgd(0.1)
  state = bilevel.init_state(
    params, alphas, {}, optimizer, optax.sgd(1.0), jax.random.key(0)
  )
  step = jax.jit(
    functools.partial(
      bilevel.search_step,
      loss=loss,
      params_optimizer=optimizer,
      alphas_optimizer=optax.sgd(1.0),
      order=order,
    )
  )
  after, metrics = step(state, train, valid)

  def objective(alphas):
    ahead = params
    if order == 2:
      gradient = jax.grad(lambda p: loss(p, alphas, {}, train)[0])(params)
      ahead = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    return loss(ahead, alphas, {}, valid)[0]

  gradient = jax.tree.map(jnp.subtract, alphas, after.alphas)
  _assert_close(gradient, _central_differences(objective, alphas), 1e-8)
  assert isinstance(after.params, _Pair)
  assert after.batch_stats == {}
  assert set(metrics) == {
    f'{half}_{name}'
    for half in ('train', 'valid')
    for name in ('loss', 'gradient_norm')
  }


def test_the_gradient_alone_returns_what_the_validation_loss_adds():
  optimizer = OPTIMIZERS['sgd']
  state = _state(optimizer)
  gradient, aux = bilevel.alphas_gradient(
    lambda p, a: _value(p, a, _batch(TRAIN)),
    lambda p, a: (_value(p, a, _batch(VALID)), {'w': p['w']}),
    state.params,
    state.alphas,
    lambda g: jax.tree.map(lambda p, d: p - RATE * d, state.params, g),
  )
  _assert_close(gradient, _gradient(state, 2, optimizer), 1e-12)
  # It was computed at the lookahead.
  ahead = _lookahead(state, optimizer, state.alphas, _batch(TRAIN))
  np.testing.assert_allclose(aux['w'], ahead['w'])


@pytest.mark.parametrize('name', ['sgd', 'clipped'])
def test_the_difference_is_near_the_exact_mixed_derivative(name):
  optimizer = OPTIMIZERS[name]
  state = _state(optimizer)
  exact = _gradient(state, 2, optimizer)
  near = _gradient(state, 2, optimizer, mixed_derivative='difference')
  first = _gradient(state, 1, optimizer)
  # The error goes with the square of the step, 0.01.
  assert 0 < _distance(near, exact) < 1e-3
  assert _distance(first, exact) > 10 * _distance(near, exact)
  _assert_close(near, exact, 1e-3)


def test_another_way_to_differentiate_is_refused():
  optimizer = OPTIMIZERS['sgd']
  with pytest.raises(UsageError, match="mixed_derivative = 'forward'"):
    _gradient(_state(optimizer), 2, optimizer, mixed_derivative='forward')


@pytest.mark.parametrize('order', [1, 2])
def test_a_penalty_is_added_to_the_alphas_loss(order):
  optimizer = OPTIMIZERS['sgd']
  state = _state(optimizer)
  state = state.replace(multiplier=jnp.float32(3))

  def penalty(alphas, multiplier):
    violation = jnp.sum(alphas['a']) - 1
    metrics = {'size': violation + 1}
    return multiplier * violation, (0.1 * violation, metrics)

  after, metrics = bilevel.search_step(
    state,
    _batch(TRAIN),
    _batch(VALID),
    loss=_loss,
    params_optimizer=optimizer,
    alphas_optimizer=optax.sgd(1.0),
    order=order,
    penalty=penalty,
  )
  without = _gradient(state, order, optimizer)
  found = jax.tree.map(jnp.subtract, state.alphas, after.alphas)
  np.testing.assert_allclose(found['a'], without['a'] + 3, rtol=1e-9)
  np.testing.assert_allclose(found['c'], without['c'], rtol=1e-9)
  size = jnp.sum(state.alphas['a'])
  np.testing.assert_allclose(metrics['size'], size)
  np.testing.assert_allclose(after.multiplier, 3 + 0.1 * (size - 1), rtol=1e-6)
