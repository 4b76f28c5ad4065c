"""The rule against a plain formula, and over two devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.kernels import normalization

EDGES, CHANNELS = 3, 4
# Per edge, shared by the edges; the first two are normalised.
LEADS = (EDGES, 1, EDGES, 1)
NORMALIZED = 2


def _spread(per_channel):
  return per_channel[:, None, None, None, :]


def _plain_moments(maps):
  z = jnp.concatenate(maps)
  mean = jnp.mean(z, (1, 2, 3))
  return mean, jnp.mean((z - _spread(mean)) ** 2, (1, 2, 3))


def _plain(terms, scales, bias):
  total = 0.0
  for index, (z, scale) in enumerate(zip(terms, scales, strict=True)):
    if index < NORMALIZED:
      mean, variance = _plain_moments([z])
      z = (z - _spread(mean)) / _spread(jnp.sqrt(variance + 1e-5))
    total = total + z * _spread(scale)
  return total + _spread(bias)


def _inputs(batch, size, seed=0):
  rng = np.random.default_rng(seed)
  terms = [
    rng.normal(loc=0.5, scale=2.0, size=(lead, batch, *size, CHANNELS))
    for lead in LEADS
  ]
  scales = rng.normal(size=(len(LEADS), EDGES, CHANNELS))
  bias = rng.normal(size=(EDGES, CHANNELS))
  return terms, scales, bias


def _value_and_gradients(rule, *args):
  total, pull = jax.vjp(rule, *args)
  return total, pull(jnp.cos(total))


def _rule(terms, scales, bias):
  return normalization.normalized_sum(terms, scales, bias, NORMALIZED)[0]


def _assert_close(actual, expected, relative):
  for a, b in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=0, atol=relative * np.abs(b).max())


@pytest.mark.parametrize(('batch', 'size'), [(2, (5, 6)), (1, (3, 3))])
def test_sum_and_gradients_equal_the_plain_formula(batch, size):
  args = _inputs(batch, size)

  @jax.jit
  def compute(args):
    return [_value_and_gradients(rule, *args) for rule in (_rule, _plain)]

  with jax.enable_x64(True):
    rule, plain = compute(args)
    assert rule[0].dtype == np.float64
  _assert_close(rule, plain, 1e-9)
  rule, plain = compute(jax.tree.map(np.float32, args))
  assert rule[0].dtype == np.float32
  _assert_close(rule, plain, 1e-4)


def test_one_term_is_a_batch_normalisation_without_a_bias(reference):
  (z, *_), (scale, *_), _ = _inputs(2, (4, 3))
  with jax.enable_x64(True):
    total, (mean, variance) = normalization.normalized_sum(
      (jnp.array(z),), jnp.array(scale)[None]
    )
  for edge in range(EDGES):
    np.testing.assert_allclose(
      total[edge], reference.batch_norm(z[edge], scale[edge]), atol=1e-10
    )
  np.testing.assert_allclose(mean, z.mean((1, 2, 3)), atol=1e-12)
  np.testing.assert_allclose(variance, z.var((1, 2, 3)), atol=1e-12)


def test_statistics_are_those_of_the_normalised_terms_and_carry_no_gradient():
  terms, scales, bias = jax.tree.map(np.float32, _inputs(2, (4, 3)))

  @jax.jit
  def compute(terms):
    def read(terms):
      _, statistics = normalization.normalized_sum(
        terms, scales, bias, NORMALIZED
      )
      return sum(jnp.sum(s) for s in jax.tree.leaves(statistics)), statistics

    return jax.grad(read, has_aux=True)(terms)

  gradient, statistics = compute(terms)
  expected = _plain_moments(terms[:NORMALIZED])
  for statistic, value in zip(statistics, expected, strict=True):
    assert statistic.shape == (EDGES + 1, CHANNELS)
    np.testing.assert_allclose(statistic, value, rtol=1e-4, atol=1e-5)
  for leaf in jax.tree.leaves(gradient):
    assert not np.any(leaf)


def test_variance_of_a_constant_is_not_negative():
  z = jnp.full((1, 2, 5, 5, 2), 1000.1)
  _, variance = normalization.moments((z,))
  assert np.all(np.asarray(variance) >= 0)


def test_apply_moments(reference):
  (z, *_), (scale, *_), bias = _inputs(2, (4, 3))
  rng = np.random.default_rng(3)
  mean = rng.normal(size=(EDGES, CHANNELS))
  variance = rng.uniform(0.5, 2, size=(EDGES, CHANNELS))
  with jax.enable_x64(True):
    with_bias, without = (
      normalization.apply_moments(
        (jnp.asarray(z),), jnp.array(scale)[None], b, (mean, variance)
      )
      for b in (bias, None)
    )
  for e in range(EDGES):
    expected = reference.batch_norm(z[e], scale[e], 0, mean[e], variance[e])
    np.testing.assert_allclose(without[e], expected, atol=1e-10)
    np.testing.assert_allclose(with_bias[e], expected + bias[e], atol=1e-10)


def test_two_devices_give_the_statistics_and_the_gradients_of_one():
  if jax.local_device_count() < 2:
    pytest.skip('one device only')
  terms, scales, bias = _inputs(4, (3, 4))
  gains = np.random.default_rng(1).normal(size=len(terms))

  def loss(params, terms, axis_name):
    gains, scales, bias = params
    # The gains stand for params of earlier layers.
    terms = [gain * jnp.sin(z) for gain, z in zip(gains, terms)]
    total, statistics = normalization.normalized_sum(
      terms, scales, bias, NORMALIZED, axis_name
    )
    return jnp.mean(jnp.cos(total)), statistics

  def gradients(params, terms, axis_name=None):
    result = jax.value_and_grad(loss, has_aux=True)(params, terms, axis_name)
    (value, statistics), gradient = result
    if axis_name is not None:
      value, gradient = jax.lax.pmean((value, gradient), axis_name)
    return value, statistics, gradient

  params = (list(gains), scales, bias)
  with jax.enable_x64(True):
    one = jax.jit(gradients)(params, terms)
    shards = [
      np.stack(np.split(z, 2, axis=1)) for z in terms
    ]  # (device, lead, batch / 2, ...)
    two = jax.pmap(
      lambda params, terms: gradients(params, terms, 'devices'),
      axis_name='devices',
      in_axes=(None, 0),
      devices=jax.local_devices()[:2],
    )(params, shards)
    two = jax.tree.map(np.asarray, two)
  for a, b in zip(jax.tree.leaves(two), jax.tree.leaves(one), strict=True):
    assert a.shape == (2, *b.shape)
    np.testing.assert_allclose(a[0], b, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(a[1], b, rtol=1e-9, atol=1e-12)


def test_bfloat16_keeps_its_statistics_in_float32():
  z = jnp.full((1, 1, 40, 40, 1), 0.1, jnp.bfloat16)
  scale = jnp.ones((1, 1, 1))
  total, (mean, _) = normalization.normalized_sum((z,), scale)
  assert total.dtype == jnp.bfloat16
  assert mean.dtype == jnp.float32
  # A sum of 1600 terms in bfloat16 would stop at 25.
  np.testing.assert_allclose(mean, [[float(z[0, 0, 0, 0, 0])]], rtol=1e-5)


def test_moments_and_their_gradient():
  maps, _, _ = _inputs(2, (5, 6))
  maps = maps[:2]

  @jax.jit
  def compute(maps):
    def value(rule, maps):
      mean, variance = rule(maps)
      return jnp.sum(jnp.sin(mean) * jnp.cos(variance))

    return [
      (rule(maps), jax.grad(value, 1)(rule, maps))
      for rule in (normalization.moments, _plain_moments)
    ]

  with jax.enable_x64(True):
    rule, plain = compute(maps)
  _assert_close(rule, plain, 1e-9)
  rule, plain = compute(jax.tree.map(np.float32, maps))
  _assert_close(rule, plain, 1e-4)
