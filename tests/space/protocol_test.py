"""Networks step by step: what every family has to keep to."""

import jax
import numpy as np
import pytest

from ms_ranas_jax.baselines import msdnet
from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.baselines import resnet8
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import genotype
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import protocol

SHAPE = (8, 8, 2)
EDGES = (('sep_conv_3x3', 0), ('skip_connect', 1))
CELLS = genotype.Genotype(EDGES, (2,), EDGES, (2,))


def _grid(**fields):
  sizes = {'channels': 4, 'layers': 4, 'nodes': 1, 'image_shape': SHAPE}
  return network_lib.derived_network(
    grid.NetworkSpec(**(sizes | fields)), CELLS, lowering='conv'
  )


def _msdnet(**fields):
  sizes = {'channels': 4, 'blocks': 3, 'base': 2, 'step': 1, 'scales': 2}
  sizes |= {'growth': 2, 'image_shape': SHAPE}
  return msdnet.build_msdnet(
    msdnet_plan.MSDNetSpec(**(sizes | fields)), lowering='conv'
  )


def _resnet8(**fields):
  sizes = {'channels': 4, 'exits': (0, 1), 'image_shape': SHAPE}
  return resnet8.build_resnet8(
    resnet8.ResNet8Spec(**(sizes | fields)), lowering='conv'
  )


NETWORKS = {
  'one scale': _grid(),
  'two scales': _grid(scales=2),
  'three scales, late exits': _grid(
    scales=3, exits=(2,), image_shape=(16, 16, 2)
  ),
  'one exit': _grid(exits='last', scales=2),
  'two scales that add up': _grid(scales=2, boosting=0.5),
  'separable links': _grid(scales=2, links='separable'),
  'a stem of stride 2': _grid(stem='stride2'),
  'imagenet stem': _grid(scales=2, stem='imagenet', image_shape=(64, 48, 2)),
  'msdnet': _msdnet(),
  'msdnet that adds up': _msdnet(boosting=0.25),
  'msdnet, pruned from the start': _msdnet(prune='min', base=3),
  'msdnet, imagenet stem': _msdnet(
    stem='imagenet', image_shape=(32, 32, 2), bottleneck_factors=(0, 1)
  ),
  'resnet8': _resnet8(),
  'resnet8 that adds up': _resnet8(boosting=0.5),
}


@pytest.fixture(params=NETWORKS, ids=str)
def network(request):
  return NETWORKS[request.param]


def _images(network, count):
  shape = (count, *network.plan.spec.image_shape)
  return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def _advance(network, step):
  return lambda variables, carried: network.apply(
    variables, carried, step=step, train=False, method='advance'
  )


def _whole(network):
  return jax.jit(lambda v, x: network.apply(v, x, train=False))


def _of_step(network, variables, step):
  """The variables of the modules that a step says it computes with."""
  names = network.modules_of_step(step)
  return {
    collection: {n: v for n, v in entries.items() if n in names}
    for collection, entries in variables.items()
  }


@pytest.mark.usefixtures('as_users_compile')
def test_steps_one_after_another_are_the_network(network, fill):
  images = _images(network, 3)
  variables = fill(network, images, train=False)
  whole = _whole(network)(variables, images)
  carried, found = {protocol.IMAGES: images}, []
  for step in range(network.num_exits):
    needed = _of_step(network, variables, step)
    carried, logits = jax.jit(_advance(network, step))(needed, carried)
    found.append(logits)
    for value in carried.values():
      assert value.shape[network.batch_axis] == 3
  assert carried == {}  # nobody reads on
  np.testing.assert_allclose(np.stack(found), whole, rtol=1e-6, atol=1e-6)


def test_every_module_belongs_to_one_step(network):
  variables = jax.eval_shape(
    lambda: network.init(jax.random.key(0), _images(network, 1), train=False)
  )
  steps = [network.modules_of_step(k) for k in range(network.num_exits)]
  assert sum(map(len, steps)) == len(frozenset().union(*steps))
  assert frozenset().union(*steps) == set(variables['params'])


def test_nothing_is_carried_that_no_step_reads(network):
  """The gradient of the rest in it is not zero throughout."""
  variables = jax.eval_shape(
    lambda: network.init(jax.random.key(0), _images(network, 1), train=False)
  )
  carried = {protocol.IMAGES: _images(network, 1)}
  shapes = jax.eval_shape(_advance(network, 0), variables, carried)[0]
  for step in range(1, network.num_exits):
    jaxpr = jax.make_jaxpr(_advance(network, step))(variables, shapes).jaxpr
    read = {id(v) for equation in jaxpr.eqns for v in equation.invars}
    after = jax.eval_shape(_advance(network, step), variables, shapes)[0]
    leaves = jax.tree.leaves(variables)
    inputs = jaxpr.invars[len(leaves) :]
    for name, variable in zip(sorted(shapes), inputs, strict=True):
      assert id(variable) in read or name in after, name
    shapes = after


@pytest.mark.parametrize('name', ['two scales', 'msdnet'])
def test_steps_take_no_more_operations_than_the_network(name, fill):
  network = NETWORKS[name]
  images = _images(network, 1)
  variables = fill(network, images, train=False)

  def flops(function, *args):
    compiled = jax.jit(function).lower(*args).compile()
    return compiled.cost_analysis()['flops']

  carried, total = {protocol.IMAGES: images}, 0
  for step in range(network.num_exits):
    needed = _of_step(network, variables, step)
    total += flops(_advance(network, step), needed, carried)
    carried = jax.eval_shape(_advance(network, step), needed, carried)[0]
  whole = flops(
    lambda v, x: network.apply(v, x, train=False), variables, images
  )
  assert whole > 0 and total <= 1.01 * whole


@pytest.mark.parametrize('make', [_grid, _msdnet, _resnet8])
def test_exits_that_add_up(make, fill):
  plain, boosted = make(), make(boosting=0.5)
  images = _images(plain, 3)
  variables = fill(plain, images, train=False)
  own = np.asarray(_whole(plain)(variables, images))
  found = np.asarray(_whole(boosted)(variables, images))
  expected = [own[0]]
  for logits in own[1:]:
    expected.append(logits + 0.5 * expected[-1])
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

  def last(params):
    return boosted.apply({**variables, 'params': params}, images, train=False)[
      -1
    ].sum()

  # The exits before are corrected, and not trained for it.
  gradient = jax.jit(jax.grad(last))(variables['params'])
  for exit_ in boosted.plan.exits[:-1]:
    for value in jax.tree.leaves(gradient[exit_.name]):
      np.testing.assert_array_equal(value, 0)
  for value in jax.tree.leaves(gradient[boosted.plan.exits[-1].name]):
    assert np.abs(value).max() > 0


@pytest.mark.parametrize('make', [_grid, _msdnet, _resnet8])
def test_one_exit_has_nothing_to_add_to(make):
  one = {'blocks': 1} if make is _msdnet else {'exits': 'last'}
  with pytest.raises(UsageError, match='boosting = 0.5, but there is one exit'):
    make(boosting=0.5, **one)


@pytest.mark.parametrize('make', [_grid, _msdnet, _resnet8])
def test_in_equilibrium_an_exit_has_its_share_of_what_is_below(make, fill):
  """The first exit's loss, whose ways back all go through what it reads."""
  plain = make()
  images = _images(plain, 3)
  variables = fill(plain, images, train=False)

  def gradient(network, exit_):
    def loss(params):
      return network.apply(
        {**variables, 'params': params},
        images,
        train=True,
        last_exit=exit_,
        mutable=['batch_stats'],
      )[0][exit_].sum()

    return jax.jit(jax.grad(loss))(variables['params'])

  shares = []
  for network in plain, plain.clone(gradient_equilibrium=True):
    shares.append(gradient(network, 0))
  expected, found = shares
  name = plain.plan.exits[0].name
  for module, values in found.items():
    share = 1 if module == name else 1 / plain.num_exits
    jax.tree.map(
      lambda x, y, s=share: np.testing.assert_allclose(
        x, s * y, rtol=1e-4, atol=1e-5
      ),
      values,
      expected[module],
    )
