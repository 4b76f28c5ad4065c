"""MSDNet's names; `tests/convert_test.py` has answers of the public code."""

import numpy as np
import pytest

from ms_ranas_jax.baselines import msdnet
from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.baselines import msdnet_weights
from ms_ranas_jax.baselines import torch_places

_SPECS = {
  'max': msdnet_plan.MSDNetSpec(4, 4, 2, 1, growth=2),
  'min': msdnet_plan.MSDNetSpec(4, 3, 1, 1, 'lin_grow', 2, prune='min'),
  'a 1x1 at one scale': msdnet_plan.MSDNetSpec(
    4, 2, 1, 1, growth=2, scales=2, bottleneck_factors=(0, 2)
  ),
  'imagenet': msdnet_plan.MSDNetSpec(
    4, 2, 1, 1, growth=2, scales=2, stem='imagenet'
  ),
}


def _shapes(spec):
  network = msdnet.build_msdnet(spec)
  shapes = torch_places.variable_shapes(network)
  places = msdnet_weights.places(network.plan)
  return {n: p.shape(shapes[p.path]) for n, p in places.items()}


@pytest.mark.parametrize('name', _SPECS)
def test_together_they_are_all_variables_each_once(name):
  network = msdnet.build_msdnet(_SPECS[name])
  filled = {
    path: np.zeros(shape, int)
    for path, shape in torch_places.variable_shapes(network).items()
  }
  for place in msdnet_weights.places(network.plan).values():
    filled[place.path][place.index] += 1
  assert all((count == 1).all() for count in filled.values())


def test_names_follow_the_blocks():
  found = _shapes(_SPECS['max'])
  assert found['blocks.0.0.layers.2.net.0.weight'] == (16, 8, 3, 3)
  # The first layer has no finer scale above its finest.
  assert found['blocks.0.1.layers.0.conv_normal.net.0.weight'] == (2, 4, 1, 1)
  assert found['blocks.0.1.layers.1.conv_down.net.3.weight'] == (2, 2, 3, 3)
  # Layer 2, the first of the second block, drops a scale: transitions follow.
  assert 'blocks.1.0.layers.2.conv_normal.net.0.weight' not in found
  assert found['blocks.1.0.layers.0.conv_down.net.1.bias'] == (2,)
  assert found['blocks.1.1.m.1.net.0.weight'] == (20, 40, 1, 1)
  # Layer 4 drops another: 4, 6, 8, 10 / 2, 7, 9 // 2 channels, times 4.
  assert found['classifier.3.m.0.net.0.weight'] == (128, 16, 3, 3)
  assert found['classifier.3.linear.weight'] == (10, 128)


def test_a_stem_for_imagenet_has_a_bias():
  found = _shapes(_SPECS['imagenet'])
  assert found['blocks.0.0.layers.0.0.weight'] == (4, 3, 7, 7)
  assert found['blocks.0.0.layers.0.0.bias'] == (4,)
  assert found['blocks.0.0.layers.0.1.running_mean'] == (4,)


def test_without_a_1x1_convolution_the_3x3_one_is_the_first():
  found = _shapes(_SPECS['a 1x1 at one scale'])
  assert found['blocks.0.1.layers.0.conv_normal.net.0.weight'] == (2, 4, 3, 3)
  assert found['blocks.0.1.layers.0.conv_normal.net.1.weight'] == (2,)
