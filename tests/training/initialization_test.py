"""The first params of a network."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import genotype
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.training import initialization

SPEC = grid.NetworkSpec(
  channels=8,
  layers=1,
  nodes=1,
  exits='last',
  image_shape=(6, 6, 2),
  num_classes=3,
)
FEW = {
  name: ops.PRIMITIVES[name]
  for name in ('none', 'skip_connect', 'dil_conv_3x3')
}
EDGES = (('skip_connect', 0), ('dil_conv_3x3', 1))
CELLS = genotype.Genotype(EDGES, (2,), EDGES, (2,))

pytestmark = pytest.mark.usefixtures('nothing_compiled')


@pytest.fixture(scope='module')
def nothing_compiled():
  """What other tests compiled is rounded as their options were."""
  jax.clear_caches()


@pytest.fixture(scope='module')
def searched():
  network = network_lib.search_network(SPEC, FEW)
  alphas = alphas_lib.init_alphas(jax.random.key(1), 1, len(FEW))
  weights = edges_lib.softmax_weights(alphas)
  return network, weights


@pytest.fixture(scope='module')
def derived():
  return network_lib.derived_network(SPEC, CELLS)


def _shapes(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype), dict(tree))


def test_a_search_network_has_the_variables_of_its_init(searched):
  network, weights = searched
  variables = initialization.init_variables(network, jax.random.key(0), weights)
  expected = jax.eval_shape(
    lambda w: network.init(
      jax.random.key(0), jnp.zeros((1, 6, 6, 2)), w, train=True
    ),
    weights,
  )
  assert set(variables) == {'params', 'batch_stats'}
  for collection in ('params', 'batch_stats'):
    assert _shapes(variables[collection]) == _shapes(expected[collection])


def test_the_values_are_those_that_flax_draws(derived):
  key = jax.random.key(2)
  variables = initialization.init_variables(derived, key)
  images = jax.ShapeDtypeStruct((1, 6, 6, 2), jnp.float32)
  with jax.threefry_partitionable(False):
    expected = derived.lazy_init(key, images, train=True)
  jax.tree.map(np.testing.assert_array_equal, variables, dict(expected))


def test_params_are_drawn_as_pytorch_draws_them(derived):
  params = initialization.init_variables(derived, jax.random.key(0))['params']
  kernels = {
    'stem': (params['stem_0']['kernel'], 9 * 2),
    'input': (params['cell_0_0_input_0']['horizontal']['kernel'], 24),
    'depthwise': (
      params['cell_0_0']['state_1']['dil_conv_3x3_depthwise_0'],
      9,
    ),
    'exit': (params['exit_0']['kernel'], 16),
    'exit bias': (params['exit_0']['bias'], 16),
  }
  for name, (kernel, fan_in) in kernels.items():
    kernel, bound = np.asarray(kernel), fan_in**-0.5
    assert np.abs(kernel).max() <= bound, name
    if kernel.size > 40:
      assert np.abs(kernel).max() > 0.9 * bound, name
      # Uniform: the deviation is the bound over the root of 3.
      assert abs(kernel.std() / (bound / 3**0.5) - 1) < 0.15, name
  norm = params['stem_0']['norm']
  np.testing.assert_array_equal(norm['scale'], np.ones((1, 24)))
  np.testing.assert_array_equal(norm['bias'], np.zeros((1, 24)))


def test_running_averages_start_at_zero_and_one(derived):
  variables = initialization.init_variables(derived, jax.random.key(0))
  leaves = jax.tree_util.tree_leaves_with_path(variables['batch_stats'])
  assert leaves
  for path, leaf in leaves:
    value = {'mean': 0.0, 'var': 1.0}[path[-1].key]
    np.testing.assert_array_equal(leaf, np.full(leaf.shape, value))


def test_params_follow_the_key(derived):
  first, same, other = (
    initialization.init_variables(derived, jax.random.key(seed))['params']
    for seed in (0, 0, 1)
  )
  jax.tree.map(np.testing.assert_array_equal, first, same)
  assert (first['stem_0']['kernel'] != other['stem_0']['kernel']).any()
  # No two modules draw the same numbers.
  inputs = [first[f'cell_0_0_input_{i}']['horizontal'] for i in (0, 1)]
  assert (inputs[0]['kernel'] != inputs[1]['kernel']).any()


def test_the_device_axis_changes_nothing(derived):
  variables, sharded = (
    initialization.init_variables(
      derived.clone(axis_name=axis), jax.random.key(0)
    )
    for axis in (None, 'devices')
  )
  jax.tree.map(np.testing.assert_array_equal, variables, sharded)


@dataclasses.dataclass(frozen=True)
class _Plan:
  spec: grid.NetworkSpec


class _Bare(nn.Module):
  """A network without BN, of another family."""

  plan: _Plan
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images, weights=None, *, train):
    del weights, train
    return nn.Dense(3)(images.reshape(images.shape[0], -1))[None]


def test_a_network_without_running_averages():
  network = _Bare(_Plan(SPEC))
  variables = initialization.init_variables(network, jax.random.key(0))
  assert variables['batch_stats'] == {}
  assert variables['params']['Dense_0']['kernel'].shape == (6 * 6 * 2, 3)


def test_the_generator_is_as_it_was_afterwards(derived):
  before = jax.config.jax_threefry_partitionable
  initialization.init_variables(derived, jax.random.key(0))
  assert jax.config.jax_threefry_partitionable == before
