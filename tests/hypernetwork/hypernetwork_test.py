"""Hypernetworks against plain formulas and against the networks they make.

The reference below is written from the equations, node by node.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ms_ranas_jax as mr
from ms_ranas_jax.hypernetwork import graph
from ms_ranas_jax.hypernetwork import head as head_lib
from ms_ranas_jax.hypernetwork import hypernetwork as hypernetwork_lib
from ms_ranas_jax.search import random_search
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.training import losses

SPEC = mr.NetworkSpec(
  channels=4, layers=3, nodes=2, scales=2, image_shape=(8, 8, 3), num_classes=5
)
FEW = {
  name: ops.OPERATIONS[name]
  for name in ('none', 'skip_connect', 'max_pool_3x3', 'sep_conv_3x3')
}


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def _message(params, h):
  mlp = params['message']
  hidden = np.maximum(h @ mlp['kernel_0'] + mlp['bias_0'], 0)
  return hidden @ mlp['kernel_1'] + mlp['bias_1']


def _update(params, h, m):
  gru, width = params['gru'], len(h)
  gates = m @ gru['message_kernel'] + gru['bias'], h @ gru['state_kernel']
  (mr_, mz, mn), (hr, hz, hn) = (g.reshape(3, width) for g in gates)
  reset, update = _sigmoid(mr_ + hr), _sigmoid(mz + hz)
  new = np.tanh(mn + reset * (hn + gru['state_bias']))
  return (1 - update) * new + update * h


def _reference(hypernetwork, params, genotype):
  """Returns the states of all nodes, by dictionaries and loops."""
  codes, spec = params['codes'], hypernetwork.spec
  names = graph.operators(hypernetwork.primitives)

  def start(name, scale, level=None):
    code = codes['operators'][names.index(name)] + codes['scales'][scale]
    return code if level is None else code + codes['levels'][level]

  stems = []
  for scale in range(spec.scales):
    heard = _message(params, stems[-1]) if stems else np.zeros(_width(params))
    stems.append(_update(params, start('stem', scale), heard))
  means = {(-1, scale): stem for scale, stem in enumerate(stems)}
  cells = {}
  level = 0
  for layer in range(spec.layers):
    reduction = layer in {spec.layers // 3, 2 * spec.layers // 3}
    before_reduced = layer - 1 in {spec.layers // 3, 2 * spec.layers // 3}
    for scale in range(spec.scales):
      # By their names: what each reads, and its first state.
      reads = {'input0': [], 'input1': []}
      kind = 'joined' if scale else 'horizontal'
      h = {
        'input0': start(kind + '_halved' * before_reduced, scale, level),
        'input1': start(kind, scale, level),
      }
      outside = {}
      for place, source in enumerate((layer - 2, layer - 1)):
        rows = [scale, scale - 1] if scale else [scale]
        outside[f'input{place}'] = sum(
          _message(params, means[max(source, -1), row]) for row in rows
        )
      states = ['input0', 'input1']
      edges = genotype.edges(reduction)
      for node in range(spec.nodes):
        pair = []
        for place in range(2):
          operation, state = edges[2 * node + place]
          name = f'edge{node}{place}'
          reads[name] = [states[state]]
          h[name] = start(operation, scale, level)
          pair.append(name)
        reads[f'sum{node}'] = pair
        h[f'sum{node}'] = start('sum', scale, level)
        states.append(f'sum{node}')
      reads['output'] = states[2:]
      h['output'] = start('output', scale, level)
      for _ in range(hypernetwork.rounds):
        for name in reads:
          m = outside.get(name, 0) + sum(
            _message(params, h[u]) for u in reads[name]
          )
          h[name] = _update(params, h[name], m)
        for name in reversed(reads):
          m = sum(
            (
              _message(params, h[v])
              for v in reads
              for u in reads[v]
              if u == name
            ),
            start=np.zeros(_width(params)),
          )
          h[name] = _update(params, h[name], m)
      cells[layer, scale] = list(h.values())
      means[layer, scale] = np.mean(list(h.values()), axis=0)
    level += reduction
  exits = [
    _update(
      params,
      start('exit', spec.scales - 1),
      _message(params, means[exit_.layer, spec.scales - 1]),
    )
    for exit_ in hypernetwork.plan.exits
  ]
  return stems, cells, exits


def _width(params):
  return params['codes']['scales'].shape[1]


def _hypernetwork(spec, rounds=2):
  return hypernetwork_lib.Hypernetwork(
    spec, FEW, rounds=rounds, width=6, hidden=8, tile=3
  )


def _params(hypernetwork):
  found = hypernetwork_lib.init_params(hypernetwork, jax.random.key(0))
  # Biases start at zero, which would hide where they are left out.
  leaves, tree = jax.tree.flatten(found)
  random = np.random.default_rng(1)
  return jax.tree.unflatten(
    tree,
    [x + 0.3 * random.normal(size=x.shape).astype(np.float32) for x in leaves],
  )


@pytest.fixture(scope='module')
def hypernetwork():
  return _hypernetwork(SPEC)


@pytest.fixture(scope='module')
def params(hypernetwork):
  return _params(hypernetwork)


@pytest.fixture(scope='module')
def genotypes():
  return random_search.random_genotypes(0, 50, SPEC.nodes, FEW)


def _wires(genotype):
  return graph.wires_of(mr.one_hot_weights(genotype, FEW), FEW)


@pytest.fixture(scope='module')
def images():
  return jax.random.normal(jax.random.key(2), (4, *SPEC.image_shape))


@pytest.fixture(scope='module')
def apply(hypernetwork):
  return jax.jit(
    lambda params, wires, images: hypernetwork_lib.apply(
      hypernetwork, params, wires, images
    )
  )


def _by_states(genotype):
  """Returns the genotype with the edges of a node by their states, as wires."""

  def ordered(edges):
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return sum((tuple(sorted(p, key=lambda e: e[1])) for p in pairs), ())

  return mr.Genotype(
    ordered(genotype.normal),
    genotype.normal_concat,
    ordered(genotype.reduction),
    genotype.reduction_concat,
  )


def test_messages_are_those_of_the_equations(hypernetwork, params, genotypes):
  plain = jax.tree.map(np.asarray, params)
  for genotype in genotypes[:4]:
    ordered = _by_states(genotype)
    stems, cells, exits = _reference(hypernetwork, plain, ordered)
    found = hypernetwork.embed(params, _wires(genotype))
    np.testing.assert_allclose(found.stems, stems, atol=1e-5)
    np.testing.assert_allclose(found.exits, exits, atol=1e-5)
    for cell in hypernetwork.plan.cells:
      place = cell.output.layer, cell.output.scale
      np.testing.assert_allclose(
        found.cells[place], cells[place], atol=1e-5, err_msg=str(place)
      )


def test_no_round_leaves_what_nodes_are(params, genotypes):
  still = _hypernetwork(SPEC, rounds=0)
  found = still.embed(params, _wires(genotypes[0]))
  codes = params['codes']
  names = graph.operators(FEW)
  np.testing.assert_allclose(
    found.cells[2, 1, -1],
    codes['operators'][names.index('output')]
    + codes['scales'][1]
    + codes['levels'][1],
    rtol=1e-5,
  )


def test_gradients_are_finite_differences(genotypes):
  """Of what is made, in a direction of all params."""
  with jax.enable_x64(True):
    hypernetwork = _hypernetwork(SPEC)
    params = jax.tree.map(np.float64, _params(hypernetwork))
    wires = _wires(genotypes[3])
    random = np.random.default_rng(4)
    direction = jax.tree.map(lambda x: random.normal(size=x.shape), params)
    leaves = hypernetwork.head.leaves
    mixing = [random.normal(size=leaf.shape) for leaf in leaves]

    @jax.jit
    def value(params):
      states = hypernetwork.embed(params, wires)
      state = jnp.concatenate(
        [x.reshape(-1, x.shape[-1]) for x in states]
      ).mean(axis=0)
      made = hypernetwork.head.make(params['head'], state, leaves)
      return sum((x * y).sum() for x, y in zip(made, mixing, strict=True))

    gradient = jax.grad(value)(params)
    slope = sum(
      (g * d).sum()
      for g, d in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True
      )
    )
    step = 1e-6

    def along(distance):
      return value(
        jax.tree.map(lambda x, d: x + distance * d, params, direction)
      )

    np.testing.assert_allclose(
      (along(step) - along(-step)) / (2 * step), slope, rtol=1e-6
    )


@pytest.mark.parametrize(
  ('path', 'shape', 'of_exit', 'kind'),
  [
    (('kernel',), (3, 3, 5, 7), False, head_lib.KERNEL),
    (('reduce', 'kernel'), (2, 1, 4, 2), False, head_lib.KERNEL),
    (('depthwise_0',), (1, 5, 5, 7), False, head_lib.DEPTHWISE),
    (('norm', 'scale'), (1, 7), False, head_lib.SCALE),
    (('norm', 'bias'), (1, 7), False, head_lib.BIAS),
    (('kernel',), (7, 5), True, head_lib.CLASSIFIER),
    (('bias',), (5,), True, head_lib.CLASSIFIER_BIAS),
  ],
)
def test_a_param_is_made_of_tiles(path, shape, of_exit, kind):
  """Entry by entry, from the layers of the head."""
  leaf = head_lib.leaf(path, shape, of_exit)
  assert leaf.kind == kind
  wider = head_lib.leaf(('depthwise_1',), (1, 7, 7, 8), False)
  head = head_lib.Head((wider, leaf), 4, 6, 3, 5)
  random = np.random.default_rng(0)
  params = {
    name: random.normal(size=shape).astype(np.float32)
    for name, (shape, _) in head.params().items()
  }
  state = random.normal(size=4).astype(np.float32)
  (found,) = head.make(params, state, (leaf,))
  assert found.shape == shape
  ways_in = shape[-2] if kind in (head_lib.KERNEL, head_lib.CLASSIFIER) else 1
  matrices = np.asarray(found).reshape(-1, ways_in, shape[-1])
  shared = state @ params['kernel'] + params['bias']
  classes = kind in (head_lib.CLASSIFIER, head_lib.CLASSIFIER_BIAS)
  rows, columns = 3 if ways_in > 1 else 1, 5 if classes else 3
  layer = params[f'make_{kind}'].reshape(6, -1, rows, columns)
  slot = params['slot_codes'][head.slots.index('/'.join(path))]
  for (tap, i, o), value in np.ndenumerate(matrices):
    hidden = np.maximum(
      shared
      + slot
      + params['in_codes'][i // rows]
      + params['out_codes'][o // columns],
      0,
    )
    x = hidden @ layer[:, tap, i % rows, o % columns]
    if kind == head_lib.SCALE:
      x = 2 * _sigmoid(x / 2)
    elif kind in (head_lib.BIAS, head_lib.CLASSIFIER_BIAS):
      x = np.tanh(x / 5)
    else:
      x = x / np.sqrt(len(matrices) * ways_in)
    np.testing.assert_allclose(value, x, rtol=1e-4, atol=1e-5)


def test_a_param_of_another_kind_is_refused():
  with pytest.raises(mr.UsageError, match='makes no param "gamma" of shape'):
    head_lib.leaf(('gamma',), (7,), of_exit=False)


def _made_logits(hypernetwork, params, genotype, images):
  """Returns those of the derived network with the params made for it."""
  made = hypernetwork_lib.make_params(hypernetwork, params, genotype)
  network = mr.derived_network(
    hypernetwork.spec, genotype, hypernetwork.primitives
  )
  return network.apply({'params': made}, images, train=True)


def test_the_traced_network_is_the_derived_one(
  hypernetwork, params, genotypes, images, apply
):
  for genotype in genotypes[:3]:
    np.testing.assert_allclose(
      apply(params, _wires(genotype), images),
      _made_logits(hypernetwork, params, genotype, images),
      atol=2e-4,
      rtol=1e-4,
    )


def test_operations_with_modules_of_their_own(images):
  """Two of them on one state, which has one module for each."""
  edges = (
    ('conv_7x1_1x7', 0),
    ('dil_conv_5x5', 1),
    ('conv_7x1_1x7', 1),
    ('conv_7x1_1x7', 0),
  )
  genotype = mr.Genotype(edges, (2, 3), edges, (2, 3))
  names = ('conv_7x1_1x7', 'dil_conv_5x5')
  hypernetwork = hypernetwork_lib.Hypernetwork(
    dataclasses.replace(SPEC, layers=1, scales=1),
    ops.named(names),
    rounds=1,
    width=6,
    hidden=8,
    tile=3,
  )
  params = _params(hypernetwork)
  wires = graph.wires_of(
    mr.one_hot_weights(genotype, hypernetwork.primitives),
    hypernetwork.primitives,
  )
  np.testing.assert_allclose(
    hypernetwork_lib.apply(hypernetwork, params, wires, images),
    _made_logits(hypernetwork, params, genotype, images),
    atol=2e-4,
    rtol=1e-4,
  )


def test_made_params_are_all_that_a_network_has(
  hypernetwork, params, genotypes
):
  for genotype in genotypes[:2]:
    made = hypernetwork_lib.make_params(hypernetwork, params, genotype)
    network = mr.derived_network(SPEC, genotype, FEW)
    expected = jax.eval_shape(
      lambda network=network: mr.init_variables(network, jax.random.key(0))
    )['params']
    chex.assert_trees_all_equal_shapes_and_dtypes(made, expected)


@pytest.mark.parametrize(
  ('edges', 'concat', 'message'),
  [
    # Both edges of a node on one state, as some published cells have them.
    ((('skip_connect', 0),) * 4, (2, 3), 'each of which reads two'),
    ((('skip_connect', 0), ('skip_connect', 1)), (2,), 'one of 2 nodes'),
    ((('skip_connect', 0), ('skip_connect', 1)) * 2, (3,), 'concatenated'),
    (
      (('skip_connect', 0), ('sep_conv_5x5', 1)) * 2,
      (2, 3),
      'uses the operation "sep_conv_5x5"',
    ),
  ],
)
def test_a_genotype_of_another_space_is_refused(
  hypernetwork, params, edges, concat, message
):
  genotype = mr.Genotype(edges, concat, edges, concat)
  with pytest.raises(mr.UsageError, match=message):
    hypernetwork_lib.make_params(hypernetwork, params, genotype)


def test_gradients_are_those_through_the_derived_network(genotypes, images):
  """The rule of a traced cell against autodiff without it."""
  hypernetwork = _hypernetwork(dataclasses.replace(SPEC, scales=1))
  params = _params(hypernetwork)
  labels = jnp.arange(len(images)) % SPEC.num_classes

  def loss(logits):
    return losses.weighted_loss(logits, labels, (1.0,) * len(logits))

  genotype = genotypes[1]
  traced = jax.jit(
    jax.grad(
      lambda params, wires: loss(
        hypernetwork_lib.apply(hypernetwork, params, wires, images)
      )
    )
  )(params, _wires(genotype))
  plain = jax.jit(
    jax.grad(
      lambda params: loss(_made_logits(hypernetwork, params, genotype, images))
    )
  )(params)
  scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(plain))
  chex.assert_trees_all_close(traced, plain, atol=1e-4 * scale, rtol=1e-3)


def test_two_equal_edges_exchanged_change_nothing(
  hypernetwork, params, genotypes, images, apply
):
  def exchanged(edges):
    return edges[1], edges[0], *edges[2:]

  genotype = genotypes[0]
  other = mr.Genotype(
    exchanged(genotype.normal),
    genotype.normal_concat,
    exchanged(genotype.reduction),
    genotype.reduction_concat,
  )
  np.testing.assert_array_equal(
    apply(params, _wires(genotype), images),
    apply(params, _wires(other), images),
  )
  # As wires too, which need not be in the order of states.
  wires = {
    kind: graph.Wires(*(x[:, ::-1] for x in cell))
    for kind, cell in _wires(genotype).items()
  }
  np.testing.assert_allclose(
    apply(params, wires, images),
    apply(params, _wires(genotype), images),
    atol=2e-4,
    rtol=1e-4,
  )


def test_what_is_not_chosen_is_not_made(hypernetwork, params, images, apply):
  edges = (('max_pool_3x3', 0), ('max_pool_3x3', 1)) * 2
  genotype = mr.Genotype(edges, (2, 3), edges, (2, 3))
  layer = params['head'][f'make_{head_lib.DEPTHWISE}']
  spoiled = {
    **params,
    'head': {
      **params['head'],
      f'make_{head_lib.DEPTHWISE}': jnp.full_like(layer, jnp.nan),
    },
  }
  wires = _wires(genotype)
  np.testing.assert_array_equal(
    apply(params, wires, images), apply(spoiled, wires, images)
  )


def test_one_program_serves_fifty_genotypes(
  hypernetwork, params, genotypes, images
):
  @jax.jit
  @chex.assert_max_traces(n=1)
  def logits(params, wires, images):
    return hypernetwork_lib.apply(hypernetwork, params, wires, images)

  found = [logits(params, _wires(g), images) for g in genotypes]
  assert len(found) == 50
  assert logits._cache_size() == 1
  # All of them differ by more than the order of two edges.
  different = len({_by_states(genotype) for genotype in genotypes})
  assert len({float(x.sum()) for x in found}) == different == 50


def test_two_devices_share_the_statistics_of_one(
  hypernetwork, params, genotypes, images, apply
):
  wires = _wires(genotypes[2])
  both = jax.pmap(
    lambda images: hypernetwork_lib.apply(
      hypernetwork, params, wires, images, axis_name='devices'
    ),
    axis_name='devices',
    devices=jax.local_devices()[:2],
  )(images.reshape(2, 2, *images.shape[1:]))
  np.testing.assert_allclose(
    jnp.concatenate(list(both), axis=1),
    apply(params, wires, images),
    atol=2e-4,
    rtol=1e-4,
  )


def test_wires_are_those_of_the_genotype(genotypes):
  names = list(graph.real_primitives(FEW))
  for genotype in genotypes:
    wires = _wires(genotype)
    for kind in edges_lib.KINDS:
      edges = getattr(genotype, kind)
      found = [
        (names[int(operation)], int(state))
        for states, operations in zip(*wires[kind], strict=True)
        for state, operation in zip(states, operations, strict=True)
      ]
      assert sorted(found[:2]) == sorted(edges[:2])
      assert sorted(found[2:]) == sorted(edges[2:])
