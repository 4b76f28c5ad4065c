"""What MSDNet costs: published figures, the forward pass, and by hand."""

import jax
import jax.numpy as jnp
import pytest

from ms_ranas_jax.baselines import msdnet
from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.costs import cost
from ms_ranas_jax.kernels import lowering

_IMAGENET = msdnet_plan.MSDNetSpec(
  channels=32,
  blocks=5,
  base=7,
  step=7,
  growth=16,
  scales=4,
  growth_factors=(1, 2, 4, 4),
  bottleneck_factors=(1, 2, 4, 4),
  stem='imagenet',
  image_shape=(224, 224, 3),
  num_classes=1000,
)
_CIFAR10 = msdnet_plan.MSDNetSpec(channels=32, blocks=10, base=4, step=2)


def _cost(spec):
  return cost.network_cost(msdnet.build_msdnet(spec))


# What the op counter of the public code gives, operations and params.
_COUNTED = {
  'imagenet': (
    _IMAGENET,
    (615692968, 1436392016, 2283210200, 2967421456, 3253794488),
    (8759240, 20154896, 31730040, 41860288, 62314472),
  ),
  'cifar10': (
    _CIFAR10,
    (
      *(26609930, 39519764, 54346526, 72644904, 83932722),
      *(96990012, 111816774, 125413968, 135976794, 148014180),
    ),
    (
      *(583434, 1097300, 1673086, 2176228, 2657790),
      *(3201560, 3807538, 4324308, 4847294, 5434792),
    ),
  ),
  'eleven blocks': (
    msdnet_plan.MSDNetSpec(16, 11, 4, 2),
    (
      *(15128842, 25482772, 37753630, 52015400, 62123570, 74001212),
      *(87648326, 99946064, 110017370, 121563236, 134583662),
    ),
    (
      *(422266, 853572, 1346798, 1781396, 2221486, 2723784),
      *(3288290, 3772068, 4273550, 4839544, 5470050),
    ),
  ),
}


@pytest.mark.parametrize('name', _COUNTED)
def test_counts_are_those_of_the_public_code(name):
  spec, operations, params = _COUNTED[name]
  found = _cost(spec)
  assert tuple(e.flops_msdnet for e in found.exits) == operations
  assert tuple(e.params for e in found.exits) == params
  assert found.params == params[-1]


def test_imagenet_counts_are_those_published():
  exits = _cost(_IMAGENET).exits
  operations = [f'{e.flops_msdnet / 1e6:.2f}' for e in exits]
  assert operations == ['615.69', '1436.39', '2283.21', '2967.42', '3253.79']
  params = [f'{e.params / 1e6:.2f}' for e in exits]
  assert params == ['8.76', '20.15', '31.73', '41.86', '62.31']


_SMALL = {
  'max': msdnet_plan.MSDNetSpec(4, 3, 2, 1, image_shape=(17, 16, 1)),
  'min, lin_grow': msdnet_plan.MSDNetSpec(
    3, 3, 1, 1, 'lin_grow', growth=2, prune='min', image_shape=(8, 8, 3)
  ),
  'no bottlenecks': msdnet_plan.MSDNetSpec(
    4, 2, 2, 2, bottleneck_factors=(0, 0, 2), image_shape=(8, 8, 3)
  ),
  'imagenet': msdnet_plan.MSDNetSpec(
    2, 2, 1, 2, scales=2, stem='imagenet', image_shape=(33, 32, 3)
  ),
}


@pytest.mark.parametrize('name', _SMALL)
def test_macs_and_params_are_those_of_the_network(
  name, count_macs, params_count
):
  network = msdnet.build_msdnet(_SMALL[name], lowering=lowering.CONV)
  images = jnp.zeros((1, *network.plan.spec.image_shape))
  variables = jax.eval_shape(
    lambda: network.init(jax.random.key(0), images, train=False)
  )
  found = cost.network_cost(network)
  for exit_ in found.exits:
    assert exit_.macs == count_macs(
      lambda v, last=exit_.exit: network.apply(
        v, images, train=False, last_exit=last
      ),
      variables,
    )
    assert exit_.total_params == found.params
  assert found.params == params_count(variables)


def test_params_of_an_exit_are_those_that_its_forward_pass_has(params_count):
  network = msdnet.build_msdnet(_SMALL['max'], lowering=lowering.CONV)
  images = jnp.zeros((1, *network.plan.spec.image_shape))
  for exit_ in cost.network_cost(network).exits:
    variables = jax.eval_shape(
      lambda last=exit_.exit: network.init(
        jax.random.key(0), images, train=False, last_exit=last
      )
    )
    assert exit_.params == params_count(variables)


@pytest.mark.parametrize('name', _SMALL)
def test_rows_come_step_after_step_and_read_what_is_there(name):
  network = msdnet.build_msdnet(_SMALL[name])
  rows, tensors = network.cost_rows(), network.tensors()
  steps = [row.step for row in rows]
  assert steps == sorted(steps)
  made = {'images'}
  for row in rows:
    for source in row.inputs:
      assert set(tensors.get(source, (source,))) <= made
    assert row.output not in made
    made.add(row.output)


def test_one_layer_by_hand():
  spec = msdnet_plan.MSDNetSpec(
    4, 1, 1, 1, growth=2, scales=1, image_shape=(8, 8, 1), num_classes=3
  )
  (exit_,) = _cost(spec).exits
  stem = 9 * 4
  inner, new = 4 * 2, 9 * 2 * 2  # a 1x1 to two channels, a 3x3 to two
  heads = 9 * 6 * 128, 9 * 128 * 128
  assert exit_.macs == (
    64 * (stem + inner + new) + 16 * heads[0] + 4 * heads[1] + 128 * 3
  )
  norms = 2 * (4 + 2 + 2 + 128 + 128)
  assert exit_.params == stem + inner + new + sum(heads) + norms + 128 * 3 + 3
  relus = 64 * (4 + 2 + 2) + (16 + 4) * 128
  assert exit_.flops_msdnet == exit_.macs + relus + 4 * 128 + 3
  # Both convolutions of the head beside the features that it reads.
  assert exit_.peak_activation_bytes == 4 * (64 * 6 + (16 + 4) * 128)
