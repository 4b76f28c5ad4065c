"""ResNet8: the counts of MLPerf Tiny, and the forward pass by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.baselines import resnet8
from ms_ranas_jax.costs import cost
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.kernels import lowering

# Odd sizes, so that a halved one is rounded up.
_SMALL = resnet8.ResNet8Spec(2, (0,), (5, 6, 1), 3)


def _network(spec=_SMALL, **fields):
  return resnet8.build_resnet8(spec, **{'lowering': lowering.CONV, **fields})


def test_counts_are_those_of_mlperf_tiny():
  (exit_,) = cost.network_cost(_network(resnet8.ResNet8Spec())).exits
  assert exit_.macs == 12_501_632
  assert exit_.params_deployed == 77_706
  # A scale more for each channel of a BN: a bias of ours is that of the BN.
  assert exit_.params == 77_706 + 3 * 16 + 2 * 32 + 2 * 64
  # Of the first stack: its input, and what both convolutions make.
  assert exit_.peak_activation_bytes == 4 * 3 * 32 * 32 * 16
  relus = 3 * 16 * 32**2 + 2 * 32 * 16**2 + 2 * 64 * 8**2
  assert exit_.flops_msdnet == exit_.macs + relus + 8 * 8 * 64 + 10


def test_costs_are_those_of_the_network(count_macs, params_count):
  network = _network()
  images = jnp.zeros((1, *_SMALL.image_shape))
  exits = cost.network_cost(network).exits
  assert [exit_.layer for exit_ in exits] == [0, 2]
  for exit_ in exits:

    def forward(variables, last=exit_.exit):
      return network.apply(variables, images, train=False, last_exit=last)

    variables = jax.eval_shape(
      lambda last=exit_.exit: network.init(
        jax.random.key(0), images, train=False, last_exit=last
      )
    )
    assert exit_.macs == count_macs(forward, variables)
    assert exit_.params == params_count(variables)
  assert exits[0].total_params == exits[1].params


def _plain(reference, variables, images, train):
  """The logits of exits after stacks 0 and 2, in float64."""
  params = variables['params']

  def conv_norm(x, path, stride=1):
    place = params
    for name in path:
      place = place[name]
    x = reference.convolution(x, place['kernel'], (stride, stride))
    return reference.norm(x, variables, (*path, 'norm'), train=train)

  x, logits = images.astype(float), []
  x = reference.relu(conv_norm(x, ('stem',)))
  for layer, stride in enumerate((1, 2, 2)):
    name = f'stack_{layer}'
    y = reference.relu(conv_norm(x, (name, 'conv_0'), stride))
    y = conv_norm(y, (name, 'conv_1'))
    if stride > 1:
      x = x[:, ::2, ::2] @ params[name]['shortcut'][0, 0]
      x = x + params[name]['shortcut_bias']
    x = reference.relu(x + y)
    if layer != 1:
      dense = params[f'exit_{layer}']
      logits.append(x.mean((1, 2)) @ dense['kernel'] + dense['bias'])
  return np.stack(logits)


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('choice', [lowering.CONV, lowering.TAPS])
def test_the_forward_pass(train, choice, fill, reference):
  network = _network(lowering=choice)
  images = np.random.default_rng(0).normal(size=(3, *_SMALL.image_shape))
  images = images.astype(np.float32)
  variables = fill(network, images, train=train)
  found = jax.jit(lambda v, x: network.apply(v, x, train=train))(
    variables, images
  )
  expected = _plain(reference, variables, images, train)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_two_devices_compute_what_one_does(fill):
  """The statistics of all BNs are shared."""
  network = _network()
  images = np.random.default_rng(0).normal(size=(4, *_SMALL.image_shape))
  images = images.astype(np.float32)
  variables = fill(network, images, train=True)

  def train(network, images):
    return network.apply(variables, images, train=True, mutable='batch_stats')

  wanted, averages = jax.jit(lambda x: train(network, x))(images)
  shared = network.clone(axis_name='devices')
  # A vmap with a named axis stands for devices: the same collectives.
  found, of_devices = jax.jit(
    jax.vmap(lambda x: train(shared, x), axis_name='devices')
  )(images.reshape(2, 2, *_SMALL.image_shape))
  found = np.concatenate(found, axis=1)
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=1e-5),
    of_devices,
    averages,
  )


def test_the_computation_can_be_bfloat16_and_logits_stay_float32():
  network = _network(dtype='bfloat16')
  images = jnp.zeros((2, *_SMALL.image_shape))
  variables = jax.eval_shape(
    lambda: network.init(jax.random.key(0), images, train=False)
  )
  carried, logits = jax.eval_shape(
    lambda v: network.apply(
      v, {'images': images}, step=0, train=False, method='advance'
    ),
    variables,
  )
  assert (str(carried['stack_0'].dtype), str(logits.dtype)) == (
    'bfloat16',
    'float32',
  )


@pytest.mark.parametrize(
  ('exits', 'layers'),
  [('last', [2]), ('all_but_first', [1, 2]), ((1, 0), [0, 1, 2])],
)
def test_exits(exits, layers):
  plan = resnet8.build_plan(resnet8.ResNet8Spec(exits=exits))
  assert [exit_.layer for exit_ in plan.exits] == layers
  for feature in plan.features:
    needed_by = min(layer for layer in layers if layer >= feature.layer)
    assert layers[feature.step] == needed_by


@pytest.mark.parametrize(
  ('sizes', 'words'),
  [
    ({'channels': 0}, 'train.network.channels = 0: give a whole number'),
    ({'num_classes': True}, 'train.network.num_classes = True'),
    ({'exits': (3,)}, 'train.network.exits names layer 3'),
    ({'exits': 'first'}, "train.network.exits = 'first': give"),
  ],
)
def test_sizes_that_make_no_network_are_refused(sizes, words):
  with pytest.raises(UsageError, match=words):
    resnet8.build_plan(resnet8.ResNet8Spec(**sizes), 'train.network')


def test_other_images_are_refused():
  with pytest.raises(UsageError, match=r'\(5, 6, 1\)'):
    _network().init(jax.random.key(0), np.zeros((1, 6, 6, 1)), train=False)
