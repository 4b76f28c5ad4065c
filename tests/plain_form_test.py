"""Plain layers: parts of one's own, and what has no plain form."""

import dataclasses

import jax
import numpy as np
import pytest

from ms_ranas_jax import families
from ms_ranas_jax import plain_form
from ms_ranas_jax.baselines import cells
from ms_ranas_jax.baselines import msdnet
from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.baselines import resnet8
from ms_ranas_jax.costs import cost
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.plain_forms import grid as grid_form
from ms_ranas_jax.space import genotype
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import layers
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops

SHAPE = (7, 6, 2)
EDGES = (('mine', 0), ('mine', 1))
CELLS = genotype.Genotype(EDGES, (2,), EDGES, (2,))


def _translate(builder, x, stride, module):
  return builder.convolution(
    builder.relu(x),
    module.params['kernel'],
    module.norm_of_one(),
    stride=(stride, stride),
  )


MINE = ops.Custom(
  lambda channels, stride, affine: layers.ConvNorm(
    channels, stride=stride, affine=affine
  ),
  lambda channels, stride, height, width, search: layers.conv_norm_layers(
    channels, channels, height, width, stride=stride, affine=not search
  ),
  _translate,
)


def _network(operation):
  spec = grid.NetworkSpec(
    channels=4,
    layers=3,
    nodes=1,
    scales=2,
    image_shape=SHAPE,
    num_classes=5,
  )
  return network_lib.derived_network(spec, CELLS, {'mine': operation})


@pytest.fixture(scope='module')
def network():
  return _network(MINE)


@pytest.fixture(scope='module')
def variables(network, fill):
  return fill(network, np.zeros((1, *SHAPE), np.float32), train=False)


def test_an_operation_of_one_s_own(network, variables):
  images = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype('float32')
  expected = jax.jit(lambda x: network.apply(variables, x, train=False))(images)
  form = grid_form.build(network, variables)

  @jax.jit
  def run(images):
    carried, found = {plain_form.IMAGES: images}, []
    for step in form.steps:
      carried, logits = plain_form.run_step(step, carried)
      found.append(logits)
    return found

  off = np.abs(np.stack(run(images)) - expected).max()
  assert off <= 1e-5 * np.abs(expected).max()


_DRAWN = genotype.Genotype(
  (('sep_conv_3x3', 0), ('dil_conv_5x5', 1), ('skip_connect', 0), ('mine', 2)),
  (2, 3),
  (('skip_connect', 0), ('conv_7x1_1x7', 1), ('max_pool_3x3', 0), ('mine', 2)),
  (2, 3),
)
_FAMILIES = {
  'grid': network_lib.derived_network(
    grid.NetworkSpec(4, 4, 2, scales=2, image_shape=SHAPE),
    _DRAWN,
    {**ops.OPERATIONS, 'mine': MINE},
  ),
  'grid, a published cell': network_lib.derived_network(
    grid.NetworkSpec(2, 5, 4), cells.DARTS_V2
  ),
  'msdnet': msdnet.build_msdnet(
    msdnet_plan.MSDNetSpec(4, 4, 2, 1, prune='min')
  ),
  'msdnet, imagenet stem': msdnet.build_msdnet(
    msdnet_plan.MSDNetSpec(
      4, 2, 2, 1, scales=2, stem='imagenet', image_shape=(24, 20, 3)
    )
  ),
  'resnet8': resnet8.build_resnet8(resnet8.ResNet8Spec(exits=(0, 1))),
}


@pytest.mark.parametrize('name', _FAMILIES)
def test_params_deployed_are_what_the_plain_form_holds(name, fill):
  network = _FAMILIES[name]
  images = np.zeros((1, *network.plan.spec.image_shape), np.float32)
  variables = fill(network, images, train=False)
  value = {'family': name.partition(',')[0]}
  form = families.plain_form(value, network, variables)
  held, expected = 0, []
  for step in form.steps:
    for node in step.nodes:
      if isinstance(node.layer, plain_form.Convolution | plain_form.Classifier):
        held += node.layer.kernel.size + node.layer.bias.size
    expected.append(held)
  found = cost.network_cost(network)
  assert [exit_.params_deployed for exit_ in found.exits] == expected
  assert found.params_deployed == held


def test_steps_carry_what_later_ones_read(network, variables):
  form = grid_form.build(network, variables)
  assert form.steps[0].inputs == (plain_form.IMAGES,)
  for step, after in zip(form.steps, form.steps[1:], strict=False):
    assert set(after.inputs) <= set(step.carried)
  assert form.steps[-1].carried == ()
  # Nothing is computed that nobody reads.
  for step in form.steps:
    read = {name for node in step.nodes for name in node.inputs}
    for node in step.nodes:
      assert node.output in {*read, *step.carried, step.logits}


def test_a_batch_norm_is_an_affine_map():
  rng = np.random.default_rng(0)
  mean, bias, scale = rng.normal(size=(3, 6))
  var = rng.uniform(0.1, 2, 6)
  x = rng.normal(size=(20, 6))
  factor, shift = plain_form.fold(
    {'mean': mean, 'var': var}, {'scale': scale, 'bias': bias}
  )
  expected = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
  np.testing.assert_allclose(x * factor + shift, expected, rtol=1e-5, atol=1e-5)
  factor, shift = plain_form.fold({'mean': mean, 'var': var})
  expected = (x - mean) / np.sqrt(var + 1e-5)
  np.testing.assert_allclose(x * factor + shift, expected, rtol=1e-5, atol=1e-5)


def test_what_has_no_plain_form_is_refused(variables):
  without = _network(dataclasses.replace(MINE, plain=None))
  with pytest.raises(UsageError, match='operation "mine" has no plain form'):
    grid_form.build(without, variables)
  searched = network_lib.search_network(without.plan.spec)
  with pytest.raises(UsageError, match='derive a genotype from its alphas'):
    grid_form.build(searched, variables)


def test_a_family_without_a_plain_form_is_refused(monkeypatch, network):
  family = dataclasses.replace(families.FAMILIES['grid'], plain_form=None)
  monkeypatch.setattr(families, 'FAMILIES', {'grid': family})
  with pytest.raises(UsageError, match="the family 'grid' has no plain form"):
    families.plain_form({'family': 'grid'}, network, {})
