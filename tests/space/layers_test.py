"""The modules that cells are put together from."""

from flax import errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.space import layers as layers_lib


def _random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_initializer_is_that_of_pytorch():
  # kaiming_uniform(a=sqrt(5)): the bound is 1 / sqrt(fan_in).
  kernel = layers_lib.uniform_fan_in(16)(jax.random.key(0), (100, 100))
  assert float(jnp.abs(kernel).max()) == pytest.approx(0.25, rel=1e-3)
  assert float(kernel.var()) == pytest.approx(1 / (3 * 16), rel=0.03)


def test_a_param_of_another_shape_is_refused(fill):
  module = layers_lib.ConvNorm(4)
  variables = fill(module, _random(2, 3, 3, 5), train=False)
  assert (
    module.apply(variables, _random(2, 3, 3, 5), train=False).shape[-1] == 4
  )
  with pytest.raises(errors.ScopeParamShapeError, match='kernel'):
    module.apply(variables, _random(2, 3, 3, 6), train=False)


def test_a_norm_writes_running_averages_only_when_they_are_mutable():
  x = _random(2, 3, 4, 5, 6)  # two edges
  norm = layers_lib.NormalizedSum()
  variables = norm.init(jax.random.key(0), (x,), train=True)
  stats = variables['batch_stats']
  np.testing.assert_array_equal(stats['mean'], np.zeros((2, 6)))
  np.testing.assert_array_equal(stats['var'], np.ones((2, 6)))
  np.testing.assert_array_equal(variables['params']['scale'], np.ones((2, 6)))
  np.testing.assert_array_equal(variables['params']['bias'], np.zeros((2, 6)))

  y, updates = norm.apply(variables, (x,), train=True, mutable=['batch_stats'])
  still = norm.apply(variables, (x,), train=True)
  np.testing.assert_array_equal(still, y)
  pixels = 3 * 4 * 5
  np.testing.assert_allclose(
    updates['batch_stats']['mean'], 0.1 * x.mean((1, 2, 3)), atol=1e-6
  )
  # PyTorch keeps the unbiased variance.
  unbiased = x.var((1, 2, 3)) * pixels / (pixels - 1)
  np.testing.assert_allclose(
    updates['batch_stats']['var'], 0.9 + 0.1 * unbiased, rtol=1e-5
  )

  alone = norm.apply({'params': variables['params']}, (x,), train=True)
  np.testing.assert_array_equal(alone, y)

  _, unchanged = norm.apply(
    variables, (x,), train=False, mutable=['batch_stats']
  )
  for name in ('mean', 'var'):
    np.testing.assert_array_equal(unchanged['batch_stats'][name], stats[name])


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('affine', [True, False])
def test_a_weighted_sum(train, affine, fill, reference):
  edges = 2
  terms = [_random(n, 3, 4, 5, 6, seed=n) for n in (edges, 1)]
  terms.append(_random(edges, 3, 4, 5, 6, seed=5))
  weights = np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]], np.float32)
  norm = layers_lib.NormalizedSum(affine=affine, num_normalized=2)
  variables = fill(norm, terms, weights, train=True)
  names = {'scale', 'bias'} if affine else set()
  assert set(variables.get('params', {})) == names
  # The rows of the statistics are those of the maps, the second of which has
  # one; those of scale and bias are of the outputs.
  assert variables['batch_stats']['mean'].shape == (3, 6)
  y = norm.apply(variables, terms, weights, train=train)
  for edge in range(edges):
    expected = weights[edge, 2] * terms[2][edge]
    for index, row in enumerate((edge, edges)):
      z = terms[index][edge if index == 0 else 0].astype(np.float64)
      fields = {}
      if affine:
        params = variables['params']
        of_output = index * edges + edge
        fields['scale'] = params['scale'][of_output]
        fields['bias'] = params['bias'][of_output]
      if not train:
        fields['mean'] = variables['batch_stats']['mean'][row]
        fields['variance'] = variables['batch_stats']['var'][row]
      expected = expected + weights[edge, index] * reference.batch_norm(
        z, **fields
      )
    np.testing.assert_allclose(y[edge], expected, rtol=1e-5, atol=1e-5)


def test_running_averages_over_a_device_axis_are_those_of_the_whole_batch():
  x = _random(1, 4, 3, 5, 2)
  norm = layers_lib.NormalizedSum()
  variables = norm.init(jax.random.key(0), (x,), train=True)
  y, whole = norm.apply(variables, (x,), train=True, mutable=['batch_stats'])

  def apply(shard):
    return layers_lib.NormalizedSum(axis_name='devices').apply(
      variables, (shard,), train=True, mutable=['batch_stats']
    )

  shards = np.stack(np.split(x, 2, axis=1))
  y_shards, parts_ = jax.vmap(apply, axis_name='devices')(shards)
  for device in range(2):
    np.testing.assert_allclose(
      y_shards[device], y[:, 2 * device : 2 * device + 2], atol=1e-5
    )
    for name in ('mean', 'var'):
      np.testing.assert_allclose(
        parts_['batch_stats'][name][device],
        whole['batch_stats'][name],
        rtol=1e-5,
        atol=1e-6,
      )


@pytest.mark.parametrize(
  ('kernel', 'stride', 'rectify', 'choice'),
  [
    (1, 1, True, 'taps'),
    (3, 1, False, 'taps'),
    (3, 2, True, 'taps'),
    (3, 2, True, 'conv'),
    (1, 2, True, 'taps'),
  ],
)
def test_conv_norm(kernel, stride, rectify, choice, fill, reference):
  x = _random(2, 5, 6, 3)
  module = layers_lib.ConvNorm(8, kernel=kernel, stride=stride, rectify=rectify)
  variables = fill(module, x, train=True)
  params = variables['params']
  z = x.astype(np.float64)
  z = reference.relu(z) if rectify else z
  z = reference.convolution(z, params['kernel'], (stride, stride))
  for train in (True, False):
    with lowering.using(choice):
      output = module.apply(variables, x, train=train)
    np.testing.assert_allclose(
      output,
      reference.norm(z, variables, ('norm',), train=train),
      rtol=1e-5,
      atol=1e-5,
    )
  layers = layers_lib.conv_norm_layers(
    3, 8, 5, 6, kernel=kernel, stride=stride, rectify=rectify
  )
  assert sum(layer.params for layer in layers) == sum(
    leaf.size for leaf in jax.tree.leaves(params)
  )
  assert layers[-1].elements == z[0].size


@pytest.mark.parametrize('size', [(6, 4), (5, 7), (1, 2)], ids=str)
@pytest.mark.parametrize('normalized', [True, False])
def test_factorized_reduce(size, normalized, fill, reference):
  x = _random(2, *size, 3)
  module = layers_lib.FactorizedReduce(8, edges=2, normalized=normalized)
  variables = fill(module, x, train=True)
  y = module.apply(variables, x, train=False)
  for edge in range(2):
    expected = reference.factorized_reduce(
      x.astype(np.float64), variables['params']['kernel'][:, edge]
    )
    if normalized:
      expected = reference.norm(
        expected, variables, ('norm',), edge, train=False
      )
    np.testing.assert_allclose(y[edge], expected, rtol=1e-5, atol=1e-5)
  if normalized:
    layers = layers_lib.factorized_reduce_layers(3, 8, *size, affine=True)
    assert 2 * sum(layer.params for layer in layers) == sum(
      leaf.size for leaf in jax.tree.leaves(variables['params'])
    )
    assert layers[-1].elements == y[0, 0].size


def test_norms_without_scale_and_bias_have_no_params():
  x = _random(2, 4, 4, 3)
  for module in (
    layers_lib.ConvNorm(4, affine=False),
    layers_lib.FactorizedReduce(4, affine=False),
  ):
    shapes = jax.eval_shape(
      lambda x, module=module: module.init(jax.random.key(0), x, train=True), x
    )
    assert set(shapes['params']) == {'kernel'}
