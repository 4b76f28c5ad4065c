"""Mixed and fixed cells against the numpy reference and each other."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.baselines import cells
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.kernels import recompute
from ms_ranas_jax.space import cell as cell_lib
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import genotype
from ms_ranas_jax.space import layer_cost
from ms_ranas_jax.space import operations

CHANNELS = 4
SMALL = genotype.Genotype(
  normal=(
    ('sep_conv_3x3', 0),
    ('max_pool_3x3', 1),
    ('skip_connect', 0),
    ('dil_conv_5x5', 2),
  ),
  normal_concat=(2, 3),
  reduction=(
    ('skip_connect', 1),
    ('dil_conv_3x3', 0),
    ('avg_pool_3x3', 0),
    ('sep_conv_5x5', 2),
  ),
  reduction_concat=(2, 3),
)


def _inputs(size, batch=2, seed=0):
  rng = np.random.default_rng(seed)
  return tuple(
    rng.normal(size=(batch, *size, CHANNELS)).astype(np.float32)
    for _ in range(2)
  )


def _fixed(cell, reduction, search=False, primitives=operations.OPERATIONS):
  return cell_lib.Cell(
    cell_lib.fixed_wiring(cell, reduction),
    primitives,
    CHANNELS,
    reduction=reduction,
    search=search,
  )


def _mixed(nodes, reduction, primitives=operations.PRIMITIVES, **fields):
  return cell_lib.Cell(
    cell_lib.mixed_wiring(nodes, tuple(primitives)),
    primitives,
    CHANNELS,
    reduction=reduction,
    **fields,
  )


def _both_modes(module, jit=jax.jit):
  """Compiles the cell with the batch's and with running statistics."""
  return jit(
    lambda *args: [module.apply(*args, train=train) for train in (True, False)]
  )


def _expected(reference, module, variables, inputs, train, weights=None):
  wiring = module.wiring
  return reference.cell(
    variables,
    [(e.state, e.node, e.operations) for e in wiring.edges],
    wiring.concat,
    [x.astype(np.float64) for x in inputs],
    module.reduction,
    train=train,
    search=wiring.mixed if module.search is None else module.search,
    weights=weights,
  )


def test_mixed_wiring():
  wiring = cell_lib.mixed_wiring(3, ('a', 'b'))
  assert [(e.node, e.state) for e in wiring.edges] == [
    (0, 0),
    (0, 1),
    (1, 0),
    (1, 1),
    (1, 2),
    (2, 0),
    (2, 1),
    (2, 2),
    (2, 3),
  ]
  assert {e.operations for e in wiring.edges} == {('a', 'b')}
  assert wiring.concat == (2, 3, 4)
  assert wiring.mixed


@pytest.mark.parametrize(('nodes', 'edges'), [(1, 2), (2, 5), (4, 14)])
def test_number_of_edges(nodes, edges):
  assert edges_lib.num_edges(nodes) == edges
  assert len(cell_lib.mixed_wiring(nodes, ('a',)).edges) == edges


def test_fixed_wiring():
  wiring = cell_lib.fixed_wiring(cells.NASNET, reduction=True)
  assert wiring.nodes == 5
  assert wiring.concat == (4, 5, 6)
  assert not wiring.mixed
  assert [(e.node, e.state, e.operations) for e in wiring.edges[4:8]] == [
    (2, 1, ('avg_pool_3x3',)),
    (2, 0, ('sep_conv_5x5',)),
    (3, 3, ('skip_connect',)),
    (3, 2, ('avg_pool_3x3',)),
  ]


@pytest.mark.parametrize(
  ('published', 'reduction', 'size'),
  [
    (cells.DARTS_V2, False, (6, 6)),
    (cells.DARTS_V2, False, (5, 7)),
    (cells.DARTS_V2, True, (8, 6)),
    (cells.DARTS_V2, True, (7, 5)),
    (cells.AMOEBANET, True, (6, 5)),
    (cells.NASNET, False, (4, 4)),
  ],
  ids=['V2', 'V2 odd', 'V2 reduction', 'V2 reduction odd', 'Amoeba', 'NASNet'],
)
def test_a_fixed_cell_equals_the_reference(
  published, reduction, size, fill, reference
):
  module = _fixed(published, reduction)
  inputs = _inputs(size)
  variables = fill(module, inputs, train=True)
  outputs = _both_modes(module)(variables, inputs)
  for train, output in zip((True, False), outputs):
    expected = _expected(reference, module, variables, inputs, train)
    assert output.shape == expected.shape
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('reduction', 'size'), [(False, (5, 6)), (True, (6, 7))]
)
def test_a_mixed_cell_equals_the_reference(
  reduction, size, fill, mixing, reference
):
  module = _mixed(2, reduction)
  inputs = _inputs(size)
  weights = mixing(5, 8)
  variables = fill(module, inputs, weights, train=True)
  outputs = _both_modes(module)(variables, inputs, weights)
  for train, output in zip((True, False), outputs):
    expected = _expected(reference, module, variables, inputs, train, weights)
    assert output.shape == expected.shape
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)


def _one_hot(cell, reduction):
  wiring = cell_lib.mixed_wiring(cell.nodes, tuple(operations.PRIMITIVES))
  columns = list(operations.PRIMITIVES)
  rows = {(e.node, e.state): r for r, e in enumerate(wiring.edges)}
  weights = np.zeros((len(wiring.edges), len(columns)), np.float32)
  weights[:, columns.index('none')] = 1
  for index, (name, state) in enumerate(cell.edges(reduction)):
    row = rows[index // 2, state]
    weights[row] = 0
    weights[row, columns.index(name)] = 1
  return weights


def _derived_variables(cell, reduction, mixed_variables, shapes, reference):
  """Picks the variables of the chosen edges out of those of a mixed cell."""
  edges = cell.edges(reduction)

  def chosen(name, number):
    # In the mixed cell, edges that leave a state are stacked by node, from the
    # first node that can read it on.
    first = max(number - 1, 0)
    return [
      index // 2 - first
      for index, edge in enumerate(edges)
      if edge == (name, number)
    ]

  def pick(path, shape):
    collection, state, *rest = (key.key for key in path)
    number = int(state.removeprefix('state_'))
    leaf = mixed_variables[collection][state]
    last, between = reference.norm_rows(
      [(n, 2 - max(number - 1, 0)) for n in operations.PRIMITIVES],
      2 if reduction and number < 2 else 1,
    )
    if rest[0].startswith('separable_norm'):
      rows = [
        first + edge
        for name, first in between.items()
        for edge in chosen(name, number)
      ]
    else:
      name = next(n for n in operations.PRIMITIVES if rest[0].startswith(n))
      rows = chosen(name, number)
      if rest[0] == f'{name}_norm':
        rest = ['norm', rest[1]]
        rows = [0] if 'pool' in name else rows
        rows = [last[name] + row for row in rows]
    for key in rest:
      leaf = leaf[key]
    leaf = np.take(leaf, rows, axis=1 if rest[-1] == 'kernel' else 0)
    assert leaf.shape == shape.shape
    return leaf

  return jax.tree_util.tree_map_with_path(pick, shapes)


@pytest.mark.parametrize('reduction', [False, True])
def test_a_one_hot_mixed_cell_equals_the_derived_cell(
  reduction, fill, reference
):
  inputs = _inputs((6, 5))
  weights = _one_hot(SMALL, reduction)
  mixed = _mixed(2, reduction)
  fixed = _fixed(SMALL, reduction, search=True)
  variables = fill(mixed, inputs, weights, train=True)
  of_fixed = _derived_variables(
    SMALL,
    reduction,
    variables,
    fill(fixed, inputs, train=True),
    reference,
  )
  for one_hot, derived in zip(
    _both_modes(mixed)(variables, inputs, weights),
    _both_modes(fixed)(of_fixed, inputs),
    strict=True,
  ):
    np.testing.assert_allclose(one_hot, derived, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_lowerings_and_remat_give_the_same_gradients(fill, mixing):
  """Of a whole mixed cell, in params, weights and inputs."""
  inputs = _inputs((5, 6))
  primitives = {
    name: operations.PRIMITIVES[name]
    for name in (
      'none',
      'max_pool_3x3',
      'avg_pool_3x3',
      'skip_connect',
      'sep_conv_3x3',
      'dil_conv_5x5',
    )
  }
  weights = mixing(5, len(primitives))
  variables = fill(_mixed(2, True, primitives), inputs, weights, train=True)

  def gradients(params, weights, inputs):
    def loss(params, weights, inputs, choice, remat):
      module = _mixed(2, True, primitives)
      with lowering.using(choice), recompute.using(remat):
        output = module.apply(
          {'params': params},
          inputs,
          weights,
          train=True,
          mutable=['batch_stats'],
        )[0]
      return jnp.sum(jnp.cos(output))

    return [
      jax.grad(loss, (0, 1, 2))(params, weights, inputs, choice, remat)
      for choice, remat in (
        (lowering.CONV, False),
        (lowering.TAPS, False),
        (lowering.TAPS, True),
        (lowering.FUSED, False),
      )
    ]

  args = jax.tree.map(np.float64, (variables['params'], weights, inputs))
  with jax.enable_x64(True):
    plain, *others = jax.jit(gradients)(*args)
  for other in others:
    for a, b in zip(
      jax.tree.leaves(other), jax.tree.leaves(plain), strict=True
    ):
      assert a.dtype == b.dtype == np.float64
      tolerance = 1e-9 * np.abs(b).max() + 1e-12
      np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
  # `none` weighs nothing.
  assert not np.any(plain[1][:, 0])
  assert np.all(plain[1][:, 1:])


def test_weights_may_be_numpy_arrays(fill, mixing):
  module = _mixed(1, False, {'skip_connect': operations.Skip()})
  inputs = _inputs((2, 2))
  weights = mixing(2, 1)
  y = jax.jit(lambda x: module.apply({}, x, weights, train=True))(inputs)
  np.testing.assert_allclose(y, inputs[0] + inputs[1], rtol=1e-6)


def test_an_input_that_no_node_reads_needs_nothing(fill):
  dead = genotype.Genotype(
    normal=(('skip_connect', 1), ('max_pool_3x3', 1)),
    normal_concat=(2,),
    reduction=(('skip_connect', 1), ('max_pool_3x3', 1)),
    reduction_concat=(2,),
  )
  module = _fixed(dead, reduction=False)
  first, second = _inputs((4, 4))
  variables = fill(module, (first, second), train=True)
  assert not jax.tree.leaves(variables)
  y = module.apply(variables, (first * np.nan, second), train=True)
  assert y.shape == second.shape and np.all(np.isfinite(y))


def test_drop_path_drops_all_but_the_identity_image_by_image():
  cell = genotype.Genotype(
    normal=(('skip_connect', 0), ('max_pool_3x3', 1)),
    normal_concat=(2,),
    reduction=(('max_pool_3x3', 0), ('max_pool_3x3', 1)),
    reduction_concat=(2,),
  )
  module = _fixed(cell, reduction=False)
  first, second = _inputs((4, 4), batch=64)
  pooled = module.apply({}, (first * 0, second), train=True)

  def apply(rate, train=True):
    return np.asarray(
      module.apply(
        {},
        (first, second),
        train=train,
        drop_path=rate,
        rngs={'drop_path': jax.random.key(0)},
      )
    )

  np.testing.assert_array_equal(apply(0.9999), first)
  np.testing.assert_array_equal(apply(0.0), first + pooled)
  np.testing.assert_array_equal(apply(0.9, train=False), first + pooled)
  rest = apply(0.5) - first
  kept = np.abs(rest).max((1, 2, 3)) > 0
  assert 16 < kept.sum() < 48
  # What is kept makes up for what is dropped.
  np.testing.assert_allclose(rest[kept], 2 * pooled[kept], atol=1e-5)


def test_drop_path_of_one_drops_and_does_not_divide_by_zero():
  cell = genotype.Genotype(
    normal=(('skip_connect', 0), ('max_pool_3x3', 1)),
    normal_concat=(2,),
    reduction=(('max_pool_3x3', 0), ('max_pool_3x3', 1)),
    reduction_concat=(2,),
  )
  first, second = _inputs((4, 4))

  @jax.jit
  def apply(rate):
    return _fixed(cell, reduction=False).apply(
      {},
      (first, second),
      train=True,
      drop_path=rate,
      rngs={'drop_path': jax.random.key(0)},
    )

  np.testing.assert_array_equal(apply(1.0), first)


def test_bad_calls_are_refused(mixing):
  good = _inputs((4, 4))
  mixed = _mixed(1, False)

  def init(module, inputs, weights=None):
    return jax.eval_shape(
      lambda: module.init(jax.random.key(0), inputs, weights, train=True)
    )

  with pytest.raises(UsageError, match=r'input 1 .*\(2, 4, 4, 3\).*, 4\)'):
    init(mixed, (good[0], good[1][..., :3]), mixing(2, 8))
  with pytest.raises(UsageError, match=r'\(2, 8\), not None'):
    init(mixed, good)
  with pytest.raises(UsageError, match=r'\(2, 8\), not \(5, 8\)'):
    init(mixed, good, mixing(5, 8))
  with pytest.raises(UsageError, match='"sep_conv_7x7"'):
    init(_fixed(cells.NASNET, True, primitives=operations.PRIMITIVES), good)


class _Affine(nn.Module):
  """An operation of a user's own: 1x1 convolution of every stride-th pixel."""

  channels: int
  stride: int
  affine: bool

  @nn.compact
  def __call__(self, x, train):
    del train
    x = x[:, :: self.stride, :: self.stride]
    return nn.Dense(self.channels, use_bias=self.affine, name='dense')(x)


MINE = operations.Custom(
  _Affine,
  lambda channels, stride, height, width, search: (
    layer_cost.convolution(
      -(-height // stride), -(-width // stride), channels, channels, (1, 1)
    ),
  ),
)


@pytest.mark.parametrize('reduction', [False, True])
def test_an_operation_of_ones_own_in_a_mixed_cell(reduction, fill, mixing):
  primitives = {'mine': MINE, 'skip_connect': operations.Skip()}
  module = _mixed(1, reduction, primitives)
  inputs = _inputs((5, 4))
  weights = mixing(2, 2)
  variables = fill(module, inputs, weights, train=True)
  stride = 2 if reduction else 1
  expected = 0
  for state in range(2):
    params = variables['params'][f'state_{state}']
    x = inputs[state][:, ::stride, ::stride]
    # In the search an operation has no scale and bias of its own.
    assert set(params['mine_0']['dense']) == {'kernel'}
    expected = (
      expected + weights[state, 0] * x @ params['mine_0']['dense']['kernel']
    )
  weights[:, 1] = 0
  y = module.apply(variables, inputs, weights, train=False)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_an_operation_of_ones_own_in_a_fixed_cell(fill):
  cell = genotype.Genotype(
    normal=(('mine', 0), ('mine', 1), ('mine', 0), ('skip_connect', 2)),
    normal_concat=(2, 3),
    reduction=(('mine', 0), ('mine', 1), ('mine', 0), ('skip_connect', 2)),
    reduction_concat=(2, 3),
  )
  module = _fixed(
    cell, False, primitives={**operations.OPERATIONS, 'mine': MINE}
  )
  inputs = _inputs((3, 4))
  variables = fill(module, inputs, train=True)

  def mine(state, edge):
    dense = variables['params'][f'state_{state}'][f'mine_{edge}']['dense']
    return inputs[state] @ dense['kernel'] + dense['bias']

  node = mine(0, 0) + mine(1, 0)
  expected = np.concatenate([node, mine(0, 1) + node], axis=-1)
  y = module.apply(variables, inputs, train=False)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  'name', ['sep_conv_3x3', 'skip_connect', 'conv_7x1_1x7']
)
def test_statistics_of_every_operation_are_shared_over_devices(name, fill):
  cell = genotype.Genotype(
    normal=((name, 0), (name, 1)),
    normal_concat=(2,),
    reduction=((name, 0), (name, 1)),
    reduction_concat=(2,),
  )
  module = _fixed(cell, reduction=True)
  inputs = _inputs((4, 4))
  variables = fill(module, inputs, train=True)

  def apply(module, inputs):
    return module.apply(variables, inputs, train=True, mutable=['batch_stats'])

  whole, stats = jax.jit(lambda x: apply(module, x))(inputs)
  shards = tuple(np.stack(np.split(x, 2)) for x in inputs)
  sharing = module.clone(axis_name='devices')
  y, shared = jax.jit(
    jax.vmap(lambda x: apply(sharing, x), axis_name='devices')
  )(shards)
  np.testing.assert_allclose(
    np.concatenate(list(y)), whole, rtol=1e-4, atol=1e-4
  )
  for a, b in zip(jax.tree.leaves(shared), jax.tree.leaves(stats), strict=True):
    np.testing.assert_allclose(a, np.stack([b, b]), rtol=1e-4, atol=1e-5)


def test_a_derived_cell_with_an_edge_of_none_is_refused():
  """Left out, its place would go to the next operation's edges."""
  wiring = cell_lib.Wiring(
    nodes=1,
    edges=(
      cell_lib.Edge(0, 0, ('none',)),
      cell_lib.Edge(0, 0, ('skip_connect',)),
    ),
    concat=(2,),
    mixed=False,
  )
  module = cell_lib.Cell(wiring, operations.OPERATIONS, channels=2)
  x = jnp.zeros((1, 2, 2, 2))
  with pytest.raises(UsageError, match='"none"'):
    module.apply({}, (x, x), train=True)
