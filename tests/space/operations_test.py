"""Every operation against the numpy reference, and what it costs."""

import jax
import numpy as np
import pytest

from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.space import cell as cell_lib
from ms_ranas_jax.space import operations

CHANNELS = 4
NAMES = tuple(n for n in operations.OPERATIONS if n != 'none')


def test_the_primitives_are_those_of_darts_in_their_order():
  assert list(operations.PRIMITIVES) == [
    'none',
    'max_pool_3x3',
    'avg_pool_3x3',
    'skip_connect',
    'sep_conv_3x3',
    'sep_conv_5x5',
    'dil_conv_3x3',
    'dil_conv_5x5',
  ]
  assert list(operations.OPERATIONS) == [
    *operations.PRIMITIVES,
    'sep_conv_7x7',
    'conv_7x1_1x7',
  ]
  with pytest.raises(TypeError):
    operations.PRIMITIVES['mine'] = operations.Zero()


def _edges(names, edges, stride, search=False, **fields):
  return cell_lib.StateEdges(
    groups=tuple((n, operations.OPERATIONS[n], edges) for n in names),
    channels=CHANNELS,
    stride=stride,
    search=search,
    mixed=False,
    **fields,
  )


@pytest.mark.parametrize(
  ('stride', 'size', 'search'),
  [
    (1, (6, 5), False),
    (2, (6, 8), False),
    (2, (5, 7), False),
    (2, (5, 7), True),
  ],
  ids=str,
)
def test_operations_equal_the_reference(stride, size, search, fill, reference):
  """Each of them on two edges, that read the same state, train and not."""
  edges = 2
  x = np.random.default_rng(0).normal(size=(2, *size, CHANNELS))
  x = x.astype(np.float32)
  module = _edges(NAMES, edges, stride, search)
  variables = fill(module, x, None, train=True)
  compute = jax.jit(
    lambda v, x: [module.apply(v, x, None, train) for train in (True, False)]
  )
  for train, outputs in zip((True, False), compute(variables, x)):
    for name, of_edges in zip(NAMES, outputs, strict=True):
      assert len(of_edges) == edges
      for edge, output in enumerate(of_edges):
        expected = reference.operation(
          name,
          x.astype(np.float64),
          variables,
          (),
          edge,
          stride,
          [(n, edges) for n in NAMES],
          train=train,
          search=search,
          mixed=False,
        )
        np.testing.assert_allclose(
          output, expected, rtol=1e-5, atol=1e-5, err_msg=f'{name} {train}'
        )


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('name', NAMES)
def test_costs_are_those_of_the_module(name, stride, params_count, count_macs):
  height, width = 7, 6
  x = np.zeros((1, height, width, CHANNELS), np.float32)
  for search in (False, True):
    module = _edges((name,), 1, stride, search)
    layers = operations.OPERATIONS[name].layers(
      CHANNELS, stride, height, width, search
    )
    with lowering.using(lowering.CONV):
      shapes = jax.eval_shape(
        lambda x, m=module: m.init(jax.random.key(0), x, None, train=False), x
      )
      macs = count_macs(
        lambda v, x, m=module: m.apply(v, x, None, train=False), shapes, x
      )
    assert sum(layer.params for layer in layers) == params_count(shapes)
    assert sum(layer.macs for layer in layers) == macs
    if layers:
      out = -(-height // stride) * -(-width // stride) * CHANNELS
      assert layers[-1].elements == out


def test_nothing_costs_nothing():
  assert operations.Zero().layers(4, 1, 8, 8, True) == ()


def test_params_deployed_have_every_bn_folded_that_can_be():
  def deployed(name, search):
    layers = operations.OPERATIONS[name].layers(4, 2, 8, 8, search)
    return sum(layer.params_deployed for layer in layers)

  assert deployed('max_pool_3x3', search=False) == 0
  # Of the BN after the pool, a factor and a shift.
  assert deployed('max_pool_3x3', search=True) == 2 * 4
  for search in False, True:
    assert deployed('skip_connect', search) == 4 * 4 + 4
    assert deployed('sep_conv_3x3', search) == 2 * (9 * 4 + 4 + 4 * 4 + 4)


def test_flops_of_msdnet_count_relus_and_pools():
  """As published: a ReLU's elements, nine operations per pixel of a pool."""

  def flops(name, stride, search=False):
    layers = operations.OPERATIONS[name].layers(4, stride, 8, 8, search)
    return sum(layer.flops_msdnet for layer in layers)

  assert flops('max_pool_3x3', 1) == 8 * 8 * 4 * 9
  assert flops('avg_pool_3x3', 2, search=True) == 4 * 4 * 4 * 9
  assert flops('skip_connect', 1) == 0
  assert flops('skip_connect', 2) == 8 * 8 * 4 + 4 * 4 * 4 * 4
  # ReLU on 8x8, depthwise and pointwise to 4x4, and again on 4x4.
  once = 4 * 4 * (9 * 4 + 4 * 4)
  assert flops('dil_conv_3x3', 2) == 8 * 8 * 4 + once
  assert flops('sep_conv_3x3', 2) == 8 * 8 * 4 + once + 4 * 4 * 4 + once
