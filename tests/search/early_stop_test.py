"""The dominant eigenvalue of the Hessian in alphas, and when to stop."""

import jax
from jax import flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.search import bilevel
from ms_ranas_jax.search import early_stop


def _largest(matrix, steps):
  find = jax.jit(
    lambda m: early_stop.largest_eigenvalue(lambda v: m @ v, len(m), steps)
  )
  return float(find(jnp.asarray(matrix, jnp.float32)))


def _random(size):
  a = np.random.default_rng(size).normal(size=(size, size))
  return a + a.T


@pytest.mark.parametrize('size', [1, 2, 5, 40])
def test_as_many_products_as_rows_are_exact(size):
  for matrix in (_random(size), -_random(size) @ _random(size)):
    values = np.linalg.eigvalsh(matrix)
    np.testing.assert_allclose(
      _largest(matrix, size), values[-1], atol=1e-5 * np.abs(values).max()
    )


@pytest.mark.parametrize(
  ('matrix', 'expected'),
  [
    (np.zeros((6, 6)), 0.0),
    (3 * np.eye(6), 3.0),
    (-3 * np.eye(6), -3.0),
    (np.diag([2.0, 0, 0, 0, 0, -5.0]), 2.0),
  ],
  ids=['zero', 'one value', 'one value below zero', 'of low rank'],
)
def test_it_ends_where_the_space_of_the_products_does(matrix, expected):
  assert _largest(matrix, 6) == pytest.approx(expected, abs=1e-5)


def test_sixteen_products_find_a_value_that_stands_apart():
  """As those of a search do."""
  size = 112
  basis = np.linalg.qr(_random(size))[0]
  values = np.concatenate(
    [[1.0, 0.4], np.random.default_rng(0).uniform(-0.3, 0.3, size - 2)]
  )
  matrix = basis @ np.diag(values) @ basis.T
  assert _largest(matrix, 16) == pytest.approx(1.0, rel=1e-4)


def test_the_hessian_is_that_of_the_loss():
  rng = np.random.default_rng(0)
  params = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
  alphas = {
    'normal': jnp.asarray(rng.normal(size=(2, 3)), jnp.float32),
    'reduction': jnp.asarray(rng.normal(size=(3,)), jnp.float32),
  }

  def loss(params, alphas):
    weights = jax.nn.softmax(alphas['normal'])
    hidden = jnp.tanh(params @ weights.T) * alphas['reduction'][None, :2]
    return jnp.sum(hidden**2) + jnp.sum(jnp.cos(alphas['reduction']))

  flat, unflatten = flatten_util.ravel_pytree(alphas)
  hessian = jax.jit(jax.hessian(lambda f: loss(params, unflatten(f))))(flat)
  found = jax.jit(
    lambda p, a: early_stop.hessian_eigenvalue(loss, p, a, steps=9)
  )(params, alphas)
  np.testing.assert_allclose(found, np.linalg.eigvalsh(hessian)[-1], rtol=1e-5)


def test_it_stops_once_the_average_has_risen():
  flat = [1.0] * 5
  stop = early_stop.epoch_before_rise
  # A window of 5 against the one before: a mean of 1.3 is not above 1.3.
  assert stop([*flat, 1, 1, 1, 1, 2.5], 5, 1.3) is None
  assert stop([*flat, 1, 1, 1, 1, 2.51], 5, 1.3) == 4
  # Only the last two windows count.
  assert stop([9.0, *flat, 1, 1, 1, 1, 2.51], 5, 1.3) == 5
  assert stop([9.0] * 5 + flat, 5, 1.3) is None
  # There is no telling before two windows.
  assert stop([1.0, 1, 1, 1, 1, 9, 9, 9, 9], 5, 1.3) is None
  assert stop([], 5, 1.3) is None
  assert stop([1.0, 2.0], 1, 1.3) == 0


def test_the_first_epoch_that_stops_a_rising_search():
  """Fed one after the other, as a search does."""
  values = [1.0] * 10 + [1.2**n for n in range(1, 11)]
  kept = [
    early_stop.epoch_before_rise(values[:n], 5, 1.3)
    for n in range(1, len(values) + 1)
  ]
  first = next(n for n, epoch in enumerate(kept) if epoch is not None)
  # The mean of 1, 1.2, 1.44, ... first exceeds 1.3 times that of ones at
  # (1 + 1.2 + 1.44 + 1.728 + 2.0736) / 5 = 1.488; one before it is 1.274.
  assert first == 13
  assert kept[first] == 8
  assert values[kept[first]] == 1.0


def _overfitting_search(epochs):
  """A search on 25 noisy examples of a linear map, skip or matrix product.

  The map has nothing of the identity, so the product is right. Once its matrix
  fits the noise, the validation loss has alphas go over to the skip.

  Args:
    epochs: how many.

  Returns:
    After each epoch: the eigenvalue, the weight of the skip, and the validation
    loss of the product alone.
  """
  size, rng = 20, np.random.default_rng(0)
  target = rng.normal(size=(size, size)) / np.sqrt(size)
  target -= np.trace(target) / size * np.eye(size)

  def draw(count):
    x = rng.normal(size=(count, size))
    y = x @ target.T + 0.7 * rng.normal(size=x.shape)
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)

  train, valid = draw(25), draw(500)

  def loss(params, alphas, batch_stats, batch):
    x, y = batch
    weights = jax.nn.softmax(alphas['normal'])[0]
    output = weights[0] * x + weights[1] * (x @ params)
    return jnp.mean((output - y) ** 2), (batch_stats, {})

  sgd, adam = optax.sgd(0.4), optax.adam(0.005)
  state = bilevel.init_state(
    jnp.zeros((size, size)),
    {'normal': jnp.zeros((1, 2))},
    {},
    sgd,
    adam,
    jax.random.key(0),
  )

  @jax.jit
  def epoch(state):
    state = jax.lax.fori_loop(
      0,
      20,
      lambda _, s: bilevel.search_step(
        s,
        train,
        valid,
        loss=loss,
        params_optimizer=sgd,
        alphas_optimizer=adam,
      )[0],
      state,
    )
    eigenvalue = early_stop.hessian_eigenvalue(
      lambda p, a: loss(p, a, {}, valid)[0], state.params, state.alphas
    )
    alone = {'normal': jnp.asarray([[-50.0, 50.0]])}
    skip = jax.nn.softmax(state.alphas['normal'])[0, 0]
    return state, (eigenvalue, skip, loss(state.params, alone, {}, valid)[0])

  found = []
  for _ in range(epochs):
    state, values = epoch(state)
    found.append(values)
  return np.array(found).T


def test_on_a_search_that_collapses_it_keeps_the_better_operation():
  eigenvalues, skip, alone = _overfitting_search(40)
  assert skip[-1] > 0.6  # without it the genotype is the skip
  stops = (
    early_stop.epoch_before_rise(eigenvalues[:n], 5, 1.3) for n in range(41)
  )
  kept = next(epoch for epoch in stops if epoch is not None)
  assert skip[kept] < 0.4
  assert alone[kept] < alone[-1] / 2


def test_no_window_is_refused():
  with pytest.raises(UsageError, match='window = 0'):
    early_stop.epoch_before_rise([1.0], 0, 1.3)
