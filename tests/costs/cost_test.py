"""The cost model by hand, and against jaxprs and XLA."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from ms_ranas_jax.baselines import cells as published_cells
from ms_ranas_jax.costs import cost
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.space import genotype
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import layer_cost
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations


def test_darts_v2_costs_what_the_reference_code_counts():
  network = network_lib.derived_network(
    grid.NetworkSpec(36, 20, 4, exits='last'), published_cells.DARTS_V2
  )
  found = cost.network_cost(network)
  assert found.macs == 528_359_040
  assert found.params == 3_349_342


def test_darts_search_network():
  network = network_lib.search_network(grid.NetworkSpec(16, 8, 4, exits='last'))
  assert cost.network_cost(network).params == 1_930_618


@pytest.mark.parametrize(
  ('nodes', 'multiplier', 'params', 'macs', 'first'),
  [
    (2, 0, 4_745_356, 103_019_776, 15_320_320),
    (4, 0, 9_390_732, 197_863_936, 24_234_496),
    (2, 3, 5_017_004, 133_002_496, 42_288_384),
  ],
)
def test_the_paper_s_network(nodes, multiplier, params, macs, first):
  """Sections 4.3 and 4.4: 4.8 M params, and 12 % of the macs at first."""
  edges = tuple(
    ('sep_conv_3x3', state) for n in range(nodes) for state in (n, n + 1)
  )
  concat = tuple(range(2, 2 + nodes))
  spec = grid.NetworkSpec(16, 7, nodes, scales=3, stem_multiplier=multiplier)
  cells = genotype.Genotype(edges, concat, edges, concat)
  found = cost.network_cost(network_lib.derived_network(spec, cells))
  assert (found.params, found.macs) == (params, macs)
  assert found.exits[0].macs == first


def test_a_network_of_one_cell_by_hand():
  cells = genotype.Genotype(
    normal=(('max_pool_3x3', 0), ('skip_connect', 1)),
    normal_concat=(2,),
    reduction=(('max_pool_3x3', 0), ('skip_connect', 1)),
    reduction_concat=(2,),
  )
  network = network_lib.derived_network(
    grid.NetworkSpec(2, 1, 1, image_shape=(4, 4, 1)), cells
  )
  found = cost.network_cost(network)
  # The only layer is a reduction: 4 channels, 4x4 -> 2x2.
  stem = 9 * 1 * 6
  inputs = 6 * 4  # each
  skip = 4 * 4  # the two halves of a factorized reduce
  assert found.params == (
    (stem + 2 * 6) + 2 * (inputs + 2 * 4) + (skip + 2 * 4) + (4 * 10 + 10)
  )
  assert found.macs == stem * 16 + 2 * inputs * 16 + skip * 4 + 4 * 10
  relus = 2 * 16 * 6 + 16 * 4
  pools = 2 * 2 * 4 * 9 + 2 * 2 * 4
  assert found.flops_msdnet == found.macs + relus + pools + 10
  # Most is alive when the second input is made: the stem and both inputs.
  (exit_,) = found.exits
  assert exit_.peak_activation_bytes == 4 * (16 * 6 + 16 * 4 + 16 * 4)
  # A bias in place of every BN's scale and bias.
  assert found.params_deployed == found.params - (6 + 2 * 4 + 4)
  assert exit_ == cost.ExitCost(
    exit=0,
    layer=0,
    macs=found.macs,
    flops_msdnet=found.flops_msdnet,
    params=found.params,
    total_params=found.params,
    peak_activation_bytes=exit_.peak_activation_bytes,
    params_deployed=found.params_deployed,
  )


def test_peak_activation_by_hand():
  cells = genotype.Genotype(
    normal=(
      ('sep_conv_3x3', 0),
      ('sep_conv_3x3', 1),
      ('max_pool_3x3', 0),
      ('sep_conv_3x3', 2),
    ),
    normal_concat=(2, 3),
    reduction=(
      ('max_pool_3x3', 0),
      ('max_pool_3x3', 1),
      ('max_pool_3x3', 0),
      ('max_pool_3x3', 1),
    ),
    reduction_concat=(2, 3),
  )
  network = network_lib.derived_network(
    grid.NetworkSpec(2, 3, 2, exits=(0,), image_shape=(4, 4, 1)), cells
  )
  first, last = cost.network_cost(network).exits
  stem, state = 16 * 6, 16 * 2
  # Cut off after layer 0, the stem is freed once both inputs are made, and the
  # peak stands there, or in node 0: both inputs, node 0 as made from the first,
  # and the depthwise and pointwise outputs of the second.
  assert first.peak_activation_bytes == 4 * (stem + 2 * state)
  assert first.peak_activation_bytes == 4 * (3 * state + 2 * state)
  # For layer 1 the stem has to stay.
  assert last.peak_activation_bytes == 4 * (stem + 5 * state)


SPECS = {
  'DARTS_V2': (
    grid.NetworkSpec(4, 4, 4, exits='last'),
    published_cells.DARTS_V2,
  ),
  'NASNet, odd': (
    grid.NetworkSpec(4, 3, 5, image_shape=(15, 17, 3)),
    published_cells.NASNET,
  ),
  'AmoebaNet, two scales': (
    grid.NetworkSpec(4, 4, 5, scales=2, exits=(1,)),
    published_cells.AMOEBANET,
  ),
  'three scales': (
    grid.NetworkSpec(4, 5, 4, scales=3, image_shape=(33, 32, 1)),
    published_cells.DARTS_V1,
  ),
  'separable links': (
    grid.NetworkSpec(
      4, 4, 4, scales=3, image_shape=(18, 17, 1), links='separable'
    ),
    published_cells.DARTS_V1,
  ),
  'search': (grid.NetworkSpec(4, 3, 2, scales=2, image_shape=(9, 8, 1)), None),
}


def _network(name, **fields):
  spec, cells = SPECS[name]
  if cells is None:
    return network_lib.search_network(spec, **fields)
  return network_lib.derived_network(spec, cells, **fields)


@pytest.mark.parametrize('name', SPECS)
def test_macs_are_those_of_the_forward_pass_up_to_every_exit(name, count_macs):
  network = _network(name, lowering=lowering.CONV)
  images = jnp.zeros((1, *network.plan.spec.image_shape))
  weights = None
  if network.search:
    shape = len(network.normal.edges), len(operations.PRIMITIVES)
    table = jnp.full(shape, 1 / shape[1])
    weights = dict.fromkeys(('normal', 'reduction'), table)

  def forward(variables, last_exit):
    return network.apply(
      variables, images, weights, train=False, last_exit=last_exit
    )

  variables = jax.eval_shape(
    lambda: network.init(jax.random.key(0), images, weights, train=False)
  )
  found = cost.network_cost(network)
  for exit_ in found.exits:
    assert exit_.macs == count_macs(
      lambda v, last=exit_.exit: forward(v, last), variables
    )
  assert found.macs == found.exits[-1].macs


@pytest.mark.parametrize('name', SPECS)
def test_costs_grow_from_exit_to_exit(name):
  network = _network(name)
  found = cost.network_cost(network)
  for exit_, planned in zip(found.exits, network.plan.exits, strict=True):
    assert (exit_.exit, exit_.layer) == (planned.index, planned.layer)
  for metric in cost.METRICS:
    values = [getattr(exit_, metric) for exit_ in found.exits]
    assert values == sorted(set(values)) and values[0] > 0
    assert getattr(found, metric) == values[-1]
  peaks = [exit_.peak_activation_bytes for exit_ in found.exits]
  assert peaks == sorted(peaks)


def _xla_flops(function, *args):
  analysis = jax.jit(function).lower(*args).compile().cost_analysis()
  return analysis['flops']


def test_xla_counts_two_per_multiply_add_of_products():
  """What both count the same: 1x1 convolutions and dense layers."""
  x = jnp.zeros((1, 6, 5, 8))
  w = jnp.zeros((8, 12))
  layer = layer_cost.convolution(6, 5, 8, 12, (1, 1))
  assert _xla_flops(lambda x, w: x @ w, x, w) == 2 * layer.macs
  layer = layer_cost.dense(8, 12)
  x, b = jnp.zeros((1, 8)), jnp.zeros((1, 12))
  assert _xla_flops(lambda x, w: x @ w, x, w) == 2 * layer.macs
  # The bias is an addition more, which flops_msdnet counts and macs do not.
  flops = _xla_flops(lambda x, w, b: x @ w + b, x, w, b)
  assert flops == 2 * layer.macs + 12
  assert layer.flops_msdnet == layer.macs + 12


def test_xla_leaves_padded_pixels_out():
  """Why larger windows differ: here a padded pixel counts as any other."""
  height, width, channels, features = 6, 5, 3, 4

  def convolution(x, w):
    return jax.lax.conv_general_dilated(
      x, w, (1, 1), [(1, 1)] * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  flops = _xla_flops(
    convolution,
    jnp.zeros((1, height, width, channels)),
    jnp.zeros((3, 3, channels, features)),
  )
  # Three taps per row and column of the image, less the two that stick out.
  within = (3 * height - 2) * (3 * width - 2)
  assert flops == 2 * within * channels * features
  layer = layer_cost.convolution(height, width, channels, features, (3, 3))
  assert layer.macs == 9 * height * width * channels * features


def test_the_form_that_describe_writes():
  found = cost.network_cost(_network('three scales'))
  value = json.loads(json.dumps(found.to_dict()))
  assert set(value) == {*cost.METRICS, 'exits'}
  assert value['params'] == found.params
  assert [set(exit_) for exit_ in value['exits']] == [
    {
      'exit',
      'layer',
      'macs',
      'flops_msdnet',
      'params',
      'total_params',
      'peak_activation_bytes',
      'params_deployed',
    }
  ] * 4
  assert value['exits'][1] == dataclasses.asdict(found.exits[1])
