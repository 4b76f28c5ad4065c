"""The tables of costs against derived networks and by hand."""

import jax
import numpy as np
import pytest

from ms_ranas_jax.costs import cost
from ms_ranas_jax.costs import linear_cost
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import genotype
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import layer_cost
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations


def _random_genotype(rng, nodes, primitives):
  """As the search derives them: two different states per node."""
  names = [name for name in primitives if name != 'none']

  def edges():
    return [
      (str(rng.choice(names)), int(state))
      for node in range(nodes)
      for state in rng.choice(2 + node, 2, replace=False)
    ]

  concat = range(2, 2 + nodes)
  return genotype.Genotype(edges(), [*concat], edges(), [*concat])


def _one_hot(cells, primitives):
  weights = {}
  columns = list(primitives)
  for kind in ('normal', 'reduction'):
    rows = [
      (node, state) for node in range(cells.nodes) for state in range(2 + node)
    ]
    table = np.zeros((len(rows), len(columns)))
    table[:, columns.index('none')] = 1
    for index, (name, state) in enumerate(getattr(cells, kind)):
      row = rows.index((index // 2, state))
      table[row] = 0
      table[row, columns.index(name)] = 1
    weights[kind] = table
  return weights


MINE = operations.Custom(
  make=lambda channels, stride, affine: None,
  layers=lambda channels, stride, height, width, search: (
    layer_cost.Layer(
      macs=height * width * channels,
      flops_msdnet=stride,
      params=1 if search else 3,
    ),
  ),
)
WITH_MINE = {**operations.PRIMITIVES, 'mine': MINE}


@pytest.mark.parametrize(
  ('spec', 'primitives'),
  [
    (grid.NetworkSpec(4, 6, 4), operations.PRIMITIVES),
    (
      grid.NetworkSpec(16, 7, 2, scales=3, image_shape=(31, 32, 3)),
      operations.PRIMITIVES,
    ),
    (grid.NetworkSpec(4, 5, 3, scales=2, exits=(0, 2)), WITH_MINE),
  ],
  ids=['one scale', 'three scales', 'an operation of ones own'],
)
def test_expected_cost_at_one_hot_weights_is_the_derived_networks(
  spec, primitives
):
  rng = np.random.default_rng(0)
  num_exits = len(grid.exit_layers(spec.exits, spec.layers))
  drawn = [_random_genotype(rng, spec.nodes, primitives) for _ in range(4)]
  found = [
    cost.network_cost(network_lib.derived_network(spec, cells, primitives))
    for cells in drawn
  ]
  for metric in linear_cost.METRICS:
    for exit_index in (None, *range(num_exits)):
      tables = linear_cost.cost_tables(spec, primitives, metric, exit_index)
      for cells, costs in zip(drawn, found, strict=True):
        exit_ = costs.exits[-1 if exit_index is None else exit_index]
        exact = 4 * exit_.params
        if metric != linear_cost.WEIGHT_BYTES:
          exact = getattr(exit_, metric)
        assert tables.of_genotype(cells, primitives) == exact
        if metric == linear_cost.PEAK and exit_index is not None:
          continue  # Every exit would compile programs of its own.
        weights = _one_hot(cells, primitives)
        with jax.enable_x64(True):
          expected = linear_cost.expected_cost(weights, tables)
        assert float(expected) == exact
        single = jax.tree.map(np.float32, weights)
        assert float(
          linear_cost.expected_cost(single, tables)
        ) == pytest.approx(exact, rel=1e-6)


def test_a_table_holds_an_operations_cost_in_all_cells_of_its_kind():
  spec = grid.NetworkSpec(4, 3, 1, image_shape=(8, 8, 3), exits='last')
  tables = linear_cost.cost_tables(spec, operations.PRIMITIVES, 'macs')
  columns = list(operations.PRIMITIVES)

  def separable(channels, pixels):
    return 2 * pixels * (9 * channels + channels**2)

  # Layer 0 is normal, 4 channels at 8x8; layers 1 and 2 reduce to 8 and 16.
  sep = columns.index('sep_conv_3x3')
  assert tables.normal[0, sep] == separable(4, 64)
  assert tables.reduction[1, sep] == separable(8, 16) + separable(16, 4)
  skip = columns.index('skip_connect')
  assert tables.normal[1, skip] == 0
  assert tables.reduction[0, skip] == 16 * 8 * 8 + 4 * 16 * 16
  assert not tables.normal[:, columns.index('none')].any()
  assert tables.normal.shape == tables.reduction.shape == (2, 8)
  one = linear_cost.cost_tables(spec, WITH_MINE, 'params')
  assert one.normal[0, -1] == 3 and one.reduction[1, -1] == 6


@pytest.mark.parametrize('metric', ['flops_msdnet', linear_cost.PEAK])
def test_expected_cost_has_the_gradient_of_finite_differences(metric):
  spec = grid.NetworkSpec(4, 4, 2, scales=2)
  tables = linear_cost.cost_tables(spec, operations.PRIMITIVES, metric)
  rng = np.random.default_rng(0)
  alphas = {kind: rng.normal(size=(5, 8)) for kind in ('normal', 'reduction')}
  direction = {kind: rng.normal(size=(5, 8)) for kind in alphas}

  def of_alphas(alphas):
    weights = jax.tree.map(lambda a: jax.nn.softmax(a, axis=-1), alphas)
    return linear_cost.expected_cost(weights, tables) / 1e5

  with jax.enable_x64(True):
    value = jax.jit(of_alphas)
    gradient = jax.jit(jax.grad(of_alphas))(alphas)
    step = 1e-4
    moved = [
      float(value(jax.tree.map(lambda a, d, s=s: a + s * d, alphas, direction)))
      for s in (step, -step)
    ]
  numeric = (moved[0] - moved[1]) / (2 * step)
  along = sum(np.sum(np.asarray(gradient[k]) * direction[k]) for k in alphas)
  assert abs(numeric) > 1e-3
  assert along == pytest.approx(numeric, rel=1e-6)


def test_an_unknown_metric_is_refused():
  with pytest.raises(UsageError, match='"seconds".*macs'):
    linear_cost.cost_tables(grid.NetworkSpec(4, 3, 1), metric='seconds')


def test_an_exit_that_is_not_there_is_refused():
  for bad in (-1, 2):
    with pytest.raises(UsageError, match=f'exit.*{bad}'):
      linear_cost.cost_tables(grid.NetworkSpec(4, 3, 1), exit_index=bad)
