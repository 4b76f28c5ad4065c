"""The cost of the network to be derived, as a function of a search's weights.

All costs but the peak of the activations add up over edges and operations, so
one table per kind of cell holds them; for the peak see `peak_tables`.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.costs import cost
from ms_ranas_jax.costs import peak_cost
from ms_ranas_jax.costs.cost import BYTES_PER_FLOAT32
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space.genotype import Genotype

WEIGHT_BYTES, PEAK = 'weight_bytes', 'peak_activation_bytes'
# What a search can be aware of.
METRICS = (*cost.METRICS, WEIGHT_BYTES, PEAK)


@dataclasses.dataclass(frozen=True)
class CostTables:
  """The cost of a network as a linear function of a search's weights.

  Attributes:
    base: what does not depend on the weights.
    normal: (edges, operations), what an operation on an edge of the normal
      cell costs, summed over all normal cells.
    reduction: the same for the reduction cells.

  Example:
    >>> import ms_ranas_jax as mr
    >>> spec = mr.NetworkSpec(channels=4, layers=2, nodes=2)
    >>> tables = mr.cost_tables(spec)
    >>> tables.base, tables.reduction.shape
    (643392.0, (5, 8))
  """

  base: float
  normal: np.ndarray
  reduction: np.ndarray

  def expected(self, weights: network_lib.Weights) -> jax.Array:
    """Returns the cost under the weights, see `expected_cost`."""

    def of_cells(kind: str) -> jax.Array:
      shares = jnp.asarray(weights[kind])
      # The tables are float64, and would widen what they are multiplied with.
      wide = jnp.promote_types(shares.dtype, jnp.float32)
      return jnp.sum(shares * jnp.asarray(getattr(self, kind), wide))

    return (
      self.base + of_cells(edges_lib.NORMAL) + of_cells(edges_lib.REDUCTION)
    )

  def of_genotype(
    self, genotype: Genotype, primitives: ops.Primitives = ops.PRIMITIVES
  ) -> float:
    """Returns what the network that a genotype stands for costs.

    Args:
      genotype: of operations among the primitives; all nodes concatenated.
      primitives: name -> operation, in the order of the columns.
    """
    total = self.base
    for kind in edges_lib.KINDS:
      used = edges_lib.one_hot(getattr(genotype, kind), primitives)
      total += np.sum(used * getattr(self, kind))
    return float(total)


# Both give the `expected` cost and that `of_genotype`.
Tables = CostTables | peak_cost.PeakTables


def cost_tables(
  spec: grid.NetworkSpec,
  primitives: ops.Primitives = ops.PRIMITIVES,
  metric: str = 'macs',
  exit_index: int | None = None,
) -> Tables:
  """Returns the cost of the derived network for any choice of operations.

  Args:
    spec: the sizes of the network to be derived.
    primitives: name -> operation, in the order of the columns of the weights.
    metric: one of `METRICS`; bytes are of float32, and the peak that of the
      network cut off after the exit.
    exit_index: count up to this exit; None is the last.

  Returns:
    The tables.

  Raises:
    UsageError: there is no such metric.

  Example:
    >>> import ms_ranas_jax as mr
    >>> spec = mr.NetworkSpec(channels=4, layers=2, nodes=2)
    >>> tables = mr.cost_tables(spec, metric='params')
    >>> column = list(mr.PRIMITIVES).index('sep_conv_3x3')
    >>> tables.reduction[:, column].astype(int).tolist()
    [1168, 1168, 1168, 1168, 1168]
  """
  if metric not in METRICS:
    raise UsageError(f'cost metric "{metric}": give one of {METRICS}.')
  network = dataclasses.replace(
    network_lib.search_network(spec, primitives), search=False
  )
  last = len(network.plan.exits) - 1 if exit_index is None else exit_index
  if not 0 <= last < len(network.plan.exits):
    raise UsageError(
      f'exit_index = {last}: the network has exits 0 to '
      f'{len(network.plan.exits) - 1}.'
    )
  kinds = {c.output.name: c.reduction for c in network.plan.cells}
  columns = {name: column for column, name in enumerate(primitives)}
  rows = [row for row in network.cost_rows() if row.step <= last]
  if metric == PEAK:
    return peak_cost.peak_tables(
      rows,
      network.tensors(),
      {name for name, reduction in kinds.items() if reduction},
      edges_lib.num_edges(spec.nodes),
      columns,
      math.prod(spec.image_shape),
    )
  scale = 1
  if metric == WEIGHT_BYTES:
    metric, scale = 'params', BYTES_PER_FLOAT32
  shape = edges_lib.num_edges(spec.nodes), len(primitives)
  tables = {False: np.zeros(shape), True: np.zeros(shape)}
  base = 0
  for row in rows:
    total = scale * row.total(metric)
    if row.edge is None:
      base += total
    else:
      edge, operation = row.edge
      tables[kinds[row.where]][edge, columns[operation]] += total
  return CostTables(float(base), tables[False], tables[True])


def expected_cost(weights: network_lib.Weights, tables: Tables) -> jax.Array:
  """The expected cost under the weights; differentiable, exact at one-hot.

  An edge with weight one on `none` costs nothing, so that one-hot weights on
  the edges of a genotype and `none` elsewhere give the derived network's cost.

  Args:
    weights: {'normal': (edges, operations), 'reduction': ...}.
    tables: of the same primitives.

  Returns:
    A scalar in the unit of the tables.

  Raises:
    UsageError: they are no weights, see `edges.check_weights`.

  Example:
    >>> import ms_ranas_jax as mr
    >>> spec = mr.NetworkSpec(channels=4, layers=2, nodes=2)
    >>> (genotype,) = mr.random_genotypes(seed=0, count=1, nodes=2)
    >>> weights = mr.one_hot_weights(genotype)
    >>> expected = mr.expected_cost(weights, mr.cost_tables(spec))
    >>> network = mr.derived_network(spec, genotype)
    >>> int(expected) == mr.network_cost(network).macs
    True
  """
  edges_lib.check_weights(weights)
  return tables.expected(weights)
