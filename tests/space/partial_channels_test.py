"""Partial channels of mixed cells, against PC-DARTS edge by edge."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.baselines import cells
from ms_ranas_jax.costs import cost
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.space import cell as cell_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops

CHANNELS, K, NODES = 8, 4, 2
FEW = {
  name: ops.PRIMITIVES[name]
  for name in ('none', 'avg_pool_3x3', 'skip_connect', 'dil_conv_3x3')
}


def _cell(reduction, **fields):
  return cell_lib.Cell(
    cell_lib.mixed_wiring(NODES, tuple(FEW)),
    FEW,
    CHANNELS,
    reduction=reduction,
    partial_channels=K,
    **fields,
  )


def _norm(z):
  mean = jnp.mean(z, (0, 1, 2), keepdims=True)
  variance = jnp.mean((z - mean) ** 2, (0, 1, 2), keepdims=True)
  return (z - mean) / jnp.sqrt(variance + 1e-5)


def _convolution(x, kernel, stride=1, padding=0, dilation=1, groups=1):
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    [(padding, padding)] * 2,
    rhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
  )


def _mixture(x, weights, params, edge, stride):
  """Plain operations of one edge, weighted; x has 1/K of the channels."""
  window = jnp.ones((3, 3, 1, x.shape[-1]))
  sums, counts = (
    _convolution(z, window, stride, 1, groups=x.shape[-1])
    for z in (x, jnp.ones_like(x))
  )
  skip = x
  if stride == 2:
    kernels = params['skip_connect_reduce']['kernel'][:, edge]
    halves = [
      _convolution(
        _relu(x)[:, offset:, offset:], kernels[offset][None, None], 2
      )
      for offset in (0, 1)
    ]
    skip = _norm(jnp.concatenate(halves, -1))
  depthwise = params['dil_conv_3x3_depthwise_0'][edge]
  dilated = _convolution(
    _relu(x), depthwise[:, :, None], stride, 2, 2, x.shape[-1]
  )
  dilated = dilated @ params['dil_conv_3x3_pointwise_0'][edge]
  terms = [_norm(sums / counts), skip, _norm(dilated)]
  return sum(w * z for w, z in zip(weights[1:], terms, strict=True))


def _relu(x):
  """max(x, 0)."""
  return jnp.maximum(x, 0)


def _edge(x, weights, share, params, edge, stride):
  """MixedOp of PC-DARTS: mix 1/K, put the rest beside it, shuffle, weigh."""
  part = CHANNELS // K
  mixed = _mixture(x[..., :part], weights, params, edge, stride)
  rest = x[..., part:]
  if stride == 2:
    rest = lax.reduce_window(
      rest, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID'
    )
  y = jnp.concatenate([mixed, rest], -1)
  order = [g * part + i for i in range(part) for g in range(K)]
  return share * y[..., np.array(order)]


def _reference(params, inputs, weights, shares, reduction):
  states = list(inputs)
  row = 0
  for node in range(NODES):
    total = 0
    for state in range(2 + node):
      stride = 2 if reduction and state < 2 else 1
      # Variables of the edges that leave a state are stacked by node.
      edge = node - max(state - 1, 0)
      own = params[f'state_{state}']
      total += _edge(
        states[state], weights[row], shares[row], own, edge, stride
      )
      row += 1
    states.append(total)
  return jnp.concatenate(states[2:], -1)


@pytest.mark.parametrize('reduction', [False, True])
def test_values_and_gradients_are_those_of_pc_darts(reduction, fill, mixing):
  rng = np.random.default_rng(0)
  inputs = tuple(
    rng.normal(size=(2, 6, 4, CHANNELS)).astype(np.float32) for _ in range(2)
  )
  weights = mixing(5, len(FEW))
  shares = np.float32([0.3, 0.7, 0.2, 0.5, 0.3])
  module = _cell(reduction)
  params = fill(module, inputs, weights, train=True)['params']
  pull = rng.normal(
    size=(2, *((3, 2) if reduction else (6, 4)), NODES * CHANNELS)
  ).astype(np.float32)

  def ours(params, inputs, weights, shares):
    y = module.apply(
      {'params': params}, inputs, weights * shares[:, None], train=True
    )
    return jnp.sum(y * pull), y

  def plain(params, inputs, weights, shares):
    y = _reference(params, inputs, weights, shares, reduction)
    return jnp.sum(y * pull), y

  found, expected = (
    jax.jit(jax.grad(f, (0, 1, 2, 3), has_aux=True))(
      params, inputs, weights, shares
    )
    for f in (ours, plain)
  )
  # What goes past an edge counts as much as its row sums to, so the gradient
  # in the weights has that of the sum besides; a softmax takes it out.
  found, expected = (
    ((g[0], g[1], g[2] - g[2].mean(1, keepdims=True), g[3]), y)
    for g, y in (found, expected)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4),
    found,
    expected,
  )
  assert np.abs(expected[0][3]).min() > 1e-2


def test_all_channels_is_the_cell_without_partial_channels(fill, mixing):
  inputs = (np.ones((1, 3, 3, CHANNELS), np.float32),) * 2
  weights = mixing(5, len(FEW))
  shapes = [
    jax.eval_shape(
      lambda m=m: m.init(jax.random.key(0), inputs, weights, train=True)
    )
    for m in (
      _cell(False).clone(partial_channels=1),
      cell_lib.Cell(cell_lib.mixed_wiring(NODES, tuple(FEW)), FEW, CHANNELS),
    )
  ]
  assert shapes[0] == shapes[1]


def test_odd_sizes_end_with_windows_that_stick_out(fill, mixing):
  inputs = (np.ones((1, 5, 3, CHANNELS), np.float32),) * 2
  module = _cell(True)
  weights = mixing(5, len(FEW))
  variables = fill(module, inputs, weights, train=True)
  y = jax.jit(lambda v: module.apply(v, inputs, weights, train=False))(
    variables
  )
  assert y.shape == (1, 3, 2, NODES * CHANNELS)
  assert np.isfinite(y).all()


def test_a_step_takes_less_memory():
  """A gradient of a cell of 16 channels, as compiled."""
  shape = (8, 16, 16, 16)
  inputs = (jax.ShapeDtypeStruct(shape, jnp.float32),) * 2
  weights = jax.ShapeDtypeStruct((5, len(FEW)), jnp.float32)

  def memory(count):
    module = cell_lib.Cell(
      cell_lib.mixed_wiring(NODES, tuple(FEW)),
      FEW,
      shape[-1],
      partial_channels=count,
    )

    def total(params, inputs, weights):
      y = module.apply({'params': params}, inputs, weights, train=True)
      return jnp.sum(y**2)

    params = jax.eval_shape(
      lambda x, w: module.init(jax.random.key(0), x, w, train=True),
      inputs,
      weights,
    )['params']
    compiled = jax.jit(jax.grad(total)).lower(params, inputs, weights).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert memory(4) < 0.7 * memory(1)


@pytest.mark.parametrize('name', ['one scale', 'two scales, odd'])
def test_the_cost_model_counts_partial_channels(name, count_macs, params_count):
  spec = {
    'one scale': grid.NetworkSpec(8, 4, 2),
    'two scales, odd': grid.NetworkSpec(4, 3, 2, 2, image_shape=(9, 8, 1)),
  }[name]
  network = network_lib.search_network(
    spec, partial_channels=2, lowering=lowering.CONV
  )
  images = jnp.zeros((1, *spec.image_shape))
  weights = dict.fromkeys(('normal', 'reduction'), jnp.full((5, 8), 1 / 8))
  variables = jax.eval_shape(
    lambda: network.init(jax.random.key(0), images, weights, train=False)
  )
  found = cost.network_cost(network)
  assert found.params == params_count(variables)
  assert found.macs == count_macs(
    lambda v: network.apply(v, images, weights, train=False), variables
  )
  whole = cost.network_cost(network_lib.search_network(spec))
  assert found.macs < 0.7 * whole.macs
  assert (
    found.exits[-1].peak_activation_bytes
    <= whole.exits[-1].peak_activation_bytes
  )


def test_the_pool_past_a_reduction_counts_once_for_a_state():
  """A network of one reduction cell with no operation but the identity."""
  spec = grid.NetworkSpec(4, 1, 1, image_shape=(4, 4, 1))
  pool_only = {'none': ops.Zero(), 'avg_pool_3x3': ops.Pool('average')}
  whole, half = (
    cost.network_cost(
      network_lib.search_network(spec, pool_only, partial_channels=k)
    )
    for k in (1, 2)
  )
  # 8 channels, 4x4 -> 2x2, two edges. Of each state 4 channels are pooled 2x2
  # past the mixtures, and 4 not 3x3.
  pixels = 2 * 2
  assert whole.flops_msdnet - half.flops_msdnet == (
    2 * pixels * 4 * 9 - 2 * pixels * 4 * 4
  )
  assert whole.macs == half.macs


def test_partial_channels_that_cannot_be_are_refused(fill, mixing):
  inputs = (np.ones((1, 4, 4, CHANNELS), np.float32),) * 2
  weights = mixing(5, len(FEW))
  for count in (0, 3):
    with pytest.raises(UsageError, match=f'partial_channels = {count} must'):
      fill(
        _cell(False).clone(partial_channels=count), inputs, weights, train=True
      )
  fixed = cell_lib.Cell(
    cell_lib.fixed_wiring(cells.DARTS_V2, False),
    ops.OPERATIONS,
    CHANNELS,
    partial_channels=2,
  )
  with pytest.raises(UsageError, match='a derived cell uses all channels'):
    fill(fixed, inputs, train=True)
