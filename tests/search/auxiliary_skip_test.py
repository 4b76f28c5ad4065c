"""The auxiliary skip: what a cell computes with it, and how it fades."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.search import auxiliary_skip
from ms_ranas_jax.space import cell as cell_lib
from ms_ranas_jax.space import operations as ops

CHANNELS = 4
FEW = {
  name: ops.PRIMITIVES[name]
  for name in ('none', 'avg_pool_3x3', 'skip_connect')
}
WITH = auxiliary_skip.with_auxiliary_skip(FEW)


def _cell(primitives, reduction):
  """Of one node, so that its output is the sum of two mixtures."""
  return cell_lib.Cell(
    cell_lib.mixed_wiring(1, tuple(primitives)),
    primitives,
    CHANNELS,
    reduction=reduction,
  )


def _inputs(size=(6, 4)):
  rng = np.random.default_rng(0)
  return tuple(
    rng.normal(size=(2, *size, CHANNELS)).astype(np.float32) for _ in range(2)
  )


def _weights():
  odds = np.random.default_rng(1).uniform(0.2, 1, (2, len(FEW)))
  table = jnp.asarray(odds / odds.sum(1, keepdims=True), jnp.float32)
  return {'normal': table}


def _variables(reduction):
  """Of the cell with an auxiliary skip, and of the plain one in it."""
  module = _cell(WITH, reduction)
  weights = auxiliary_skip.with_auxiliary_weights(_weights(), 1.0)['normal']
  init = jax.jit(lambda k: module.init(k, _inputs(), weights, train=True))
  params = init(jax.random.key(0)).get('params', {})
  plain = {
    state: {k: v for k, v in own.items() if not k.startswith('auxiliary')}
    for state, own in params.items()
  }
  return params, plain


def _gradients(module, params, weights):
  """Of a weighted sum of the output, and the output."""

  def total(params, inputs, weights):
    y = module.apply({'params': params}, inputs, weights, train=True)
    return jnp.sum(y * jnp.sin(jnp.arange(y.size).reshape(y.shape))), y

  return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(
    params, _inputs(), weights
  )


def _reduced(x, kernels):
  """A factorized reduce in numpy, with the BN of a batch."""
  x = np.maximum(x, 0)
  z = np.concatenate(
    [x[:, i::2, i::2] @ kernels[i, 0] for i in (0, 1)], axis=-1
  )
  return (z - z.mean((0, 1, 2))) / np.sqrt(z.var((0, 1, 2)) + 1e-5)


@pytest.mark.parametrize('reduction', [False, True])
def test_a_mixture_is_that_without_it_plus_the_factor_times_the_skip(reduction):
  params, plain = _variables(reduction)
  beta = 0.7
  _, without = _gradients(_cell(FEW, reduction), plain, _weights()['normal'])
  _, found = _gradients(
    _cell(WITH, reduction),
    params,
    auxiliary_skip.with_auxiliary_weights(_weights(), beta)['normal'],
  )
  skips = _inputs()
  if reduction:
    own = 'auxiliary_skip_reduce'
    # Each edge has a factorized reduce of its own, not that of its operation.
    skips = [
      _reduced(x, np.asarray(params[f'state_{s}'][own]['kernel']))
      for s, x in enumerate(skips)
    ]
    other = params['state_0']['skip_connect_reduce']['kernel']
    assert (params['state_0'][own]['kernel'] != other).all()
  np.testing.assert_allclose(
    found, without + beta * sum(skips), rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize('reduction', [False, True])
def test_at_factor_zero_it_is_the_plain_cell_to_the_bit(reduction):
  params, plain = _variables(reduction)
  weights = auxiliary_skip.with_auxiliary_weights(_weights(), 0.0)['normal']
  (of_params, *of_others), found = _gradients(
    _cell(WITH, reduction), params, weights
  )
  (of_plain, *of_plain_others), expected = _gradients(
    _cell(FEW, reduction), plain, _weights()['normal']
  )
  np.testing.assert_array_equal(found, expected)
  of_others[1] = of_others[1][:, :-1]  # the factor is not learned
  jax.tree.map(np.testing.assert_array_equal, of_others, of_plain_others)
  for state, own in of_params.items():
    for name, value in own.items():
      if name.startswith('auxiliary'):
        assert not np.any(value['kernel'])
      else:
        jax.tree.map(
          np.testing.assert_array_equal, value, of_plain[state][name]
        )


def test_an_edges_share_scales_the_whole_mixture():
  share = jnp.asarray([[0.25], [0.5]])
  weights = jax.tree.map(lambda t: t * share, _weights())
  found = auxiliary_skip.with_auxiliary_weights(weights, 0.8)['normal']
  np.testing.assert_array_equal(found[:, :-1], weights['normal'])
  np.testing.assert_allclose(found[:, -1], 0.8 * share[:, 0], rtol=1e-6)


@pytest.mark.parametrize(
  ('decay', 'expected'),
  [
    ('linear', [2.0, 1.5, 1.0, 0.5, 0.0]),
    ('cosine', [2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5, 0.0]),
  ],
)
def test_the_factor_fades_to_zero(decay, expected):
  found = auxiliary_skip.factor_at(np.arange(5), 2.0, 5, decay)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  # Exactly, so that the last epoch is that of the plain network.
  for epochs in (2, 3, 7, 50):
    first, last = auxiliary_skip.factor_at(
      np.array([0, epochs - 1]), 0.1, epochs, decay
    )
    assert first == np.float32(0.1) and last == 0


def test_impossible_decays_are_refused():
  with pytest.raises(UsageError, match="'steep'.*linear"):
    auxiliary_skip.factor_at(0, 1.0, 5, 'steep')
  with pytest.raises(UsageError, match='two epochs'):
    auxiliary_skip.factor_at(0, 1.0, 1)
