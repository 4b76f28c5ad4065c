"""The gradient in alphas of a real search network, in float64.

Two scales, two exits, all kinds of operations: what the cells' own gradient
rules return is compared with finite differences of the whole objective, and
two devices, which share the statistics of their BNs, with one.
"""

import functools

import jax
from jax import flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ms_ranas_jax.search import bilevel
from ms_ranas_jax.search import early_stop
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.training import initialization

SPEC = grid.NetworkSpec(
  channels=4,
  layers=2,
  nodes=1,
  scales=2,
  exits=(0, 1),
  image_shape=(8, 8, 1),
  num_classes=3,
)
FEW = {
  name: ops.PRIMITIVES[name]
  for name in ('none', 'avg_pool_3x3', 'skip_connect', 'sep_conv_3x3')
}
EXAMPLES = 8


@pytest.fixture(scope='module', autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _loss(axis_name, params, alphas, batch):
  network = network_lib.search_network(
    SPEC, FEW, dtype='float64', axis_name=axis_name
  )
  images, labels = batch
  logits = network.apply(
    {'params': params}, images, edges_lib.softmax_weights(alphas), train=True
  )
  return optax.softmax_cross_entropy_with_integer_labels(
    logits, jnp.stack([labels] * network.num_exits)
  ).mean()


def _batch(seed):
  rng = np.random.default_rng(seed)
  images = rng.normal(size=(EXAMPLES, *SPEC.image_shape))
  # Devices whose images differ, so that their statistics do.
  images[EXAMPLES // 2 :] *= 2
  return jnp.asarray(images), jnp.asarray(rng.integers(0, 3, EXAMPLES))


@pytest.fixture(scope='module')
def point(_float64):
  """Params, alphas, a training and a validation batch, all random."""
  rng = np.random.default_rng(0)
  edges = len(network_lib.search_network(SPEC, FEW).normal.edges)
  alphas = {
    kind: jnp.asarray(rng.normal(size=(edges, len(FEW))))
    for kind in ('normal', 'reduction')
  }
  shapes = jax.eval_shape(
    lambda: initialization.init_variables(
      network_lib.search_network(SPEC, FEW),
      jax.random.key(0),
      edges_lib.softmax_weights(alphas),
    )
  )['params']
  params = jax.tree.map(
    lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape)), shapes
  )
  return params, alphas, _batch(1), _batch(2)


def _gradient(axis_name, params, alphas, train, valid):
  """Of order 2, which holds the gradient of order 1 as one of two terms."""
  loss = functools.partial(_loss, axis_name)
  return bilevel.alphas_gradient(
    lambda p, a: loss(p, a, train),
    lambda p, a: (loss(p, a, valid), ()),
    params,
    alphas,
    lambda gradient: _lookahead(params, gradient),
    axis_name,
  )[0]


def _lookahead(params, gradient):
  return jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient)


@pytest.fixture(scope='module')
def gradients():
  """(params, alphas, batch) -> the loss and its gradients in both."""
  return jax.jit(jax.value_and_grad(functools.partial(_loss, None), (0, 1)))


@pytest.fixture(scope='module')
def gradient(point):
  """Of order 2, on one device."""
  return jax.jit(functools.partial(_gradient, None))(*point)


@pytest.mark.slow
def test_agrees_with_differences_of_the_objective(point, gradients, gradient):
  params, alphas, train, valid = point
  flat, unflatten = flatten_util.ravel_pytree(alphas)
  lookahead = jax.jit(_lookahead)

  def objective(order, flat):
    ahead = params
    if order == 2:
      ahead = lookahead(params, gradients(params, unflatten(flat), train)[1][0])
    return gradients(ahead, unflatten(flat), valid)[0]

  rng = np.random.default_rng(3)
  first_order = gradients(params, alphas, valid)[1][1]
  for order, tree in ((1, first_order), (2, gradient)):
    # Both layers of a network of two are reductions, so nothing reads these.
    assert not np.any(tree['normal'])
    expected = flatten_util.ravel_pytree(tree)[0]
    for _ in range(2):
      # Small, so that few ReLUs change sides between the two points; not
      # smaller, as the network averages over pixels in float32.
      step = 2e-5 * rng.normal(size=flat.size)
      change = objective(order, flat + step) - objective(order, flat - step)
      tolerance = 1e-2 * np.linalg.norm(expected) * np.linalg.norm(step)
      np.testing.assert_allclose(
        change / 2, expected @ step, rtol=0, atol=tolerance
      )
  orders = (flatten_util.ravel_pytree(t)[0] for t in (first_order, gradient))
  first, second = map(np.asarray, orders)
  assert np.linalg.norm(first - second) > 0.1 * np.linalg.norm(second)


@pytest.mark.slow
def test_the_eigenvalue_agrees_with_differences_of_gradients(point, gradients):
  """The whole Hessian in alphas, column by column."""
  params, alphas, _, valid = point
  loss = functools.partial(_loss, None)
  flat, unflatten = flatten_util.ravel_pytree(alphas)

  def gradient_at(flat):
    _, (_, tree) = gradients(params, unflatten(flat), valid)
    return flatten_util.ravel_pytree(tree)[0]

  columns = [
    (gradient_at(flat + d) - gradient_at(flat - d)) / 2e-4
    for d in 1e-4 * np.eye(flat.size)
  ]
  hessian = np.stack(columns)
  expected = np.linalg.eigvalsh((hessian + hessian.T) / 2)[-1]
  found = jax.jit(
    lambda p, a: early_stop.hessian_eigenvalue(
      lambda p, a: loss(p, a, valid), p, a
    )
  )(params, alphas)
  assert expected > 0
  np.testing.assert_allclose(found, expected, rtol=1e-2)


@pytest.mark.slow
def test_two_devices_give_the_gradient_of_one(point, gradient):
  params, alphas, *batches = point
  both = jax.pmap(
    functools.partial(_gradient, 'devices'),
    axis_name='devices',
    in_axes=(None, None, 0, 0),
    devices=jax.local_devices()[:2],
  )(
    params,
    alphas,
    *jax.tree.map(lambda x: x.reshape(2, EXAMPLES // 2, *x.shape[1:]), batches),
  )
  scale = np.abs(gradient['reduction']).max()
  assert scale > 1e-3
  for kind, value in both.items():
    for device in range(2):
      np.testing.assert_allclose(
        value[device], gradient[kind], rtol=0, atol=1e-5 * scale
      )
