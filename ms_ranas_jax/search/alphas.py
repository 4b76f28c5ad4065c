"""Alphas at the start, and the genotype that weights stand for and back.

For their layout, and the weights that they give, see `space.edges`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space.genotype import Edge
from ms_ranas_jax.space.genotype import Genotype

Alphas = edges_lib.PerKind
_INITIAL_DEVIATION = 1e-3


def init_alphas(
  key: jax.Array,
  nodes: int,
  num_operations: int,
  edge_normalization: bool = False,
) -> dict[str, jax.Array]:
  """Draws alphas from 1e-3 * N(0, 1), as DARTS does.

  Args:
    key: random key.
    nodes: nodes per cell.
    num_operations: operations on every edge.
    edge_normalization: draw logits of edges as well, in the same way.

  Returns:
    The alphas, float32.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> alphas = mr.init_alphas(jax.random.key(0), 4, len(mr.PRIMITIVES))
    >>> {kind: table.shape for kind, table in alphas.items()}
    {'normal': (14, 8), 'reduction': (14, 8)}
  """
  edges = edges_lib.num_edges(nodes)
  keys = dict(zip(edges_lib.KINDS, jax.random.split(key), strict=True))
  alphas = {
    kind: _INITIAL_DEVIATION
    * jax.random.normal(subkey, (edges, num_operations), jnp.float32)
    for kind, subkey in keys.items()
  }
  if edge_normalization:
    for kind, subkey in keys.items():
      draws = jax.random.normal(
        jax.random.fold_in(subkey, 1), (edges,), jnp.float32
      )
      alphas[edges_lib.logits_key(kind)] = _INITIAL_DEVIATION * draws
  return alphas


def derive_genotype(
  weights: edges_lib.PerKind,
  primitives: ops.Primitives = ops.PRIMITIVES,
) -> Genotype:
  """Returns the genotype that weights stand for, as DARTS derives it.

  Per node, the two edges whose strongest operation (other than none) weighs
  most, in the order of that weight; on each, that operation.

  Args:
    weights: {'normal': (edges, operations), 'reduction': ...}.
    primitives: name -> operation, in the order of the columns.

  Returns:
    The genotype; all nodes are concatenated.

  Raises:
    UsageError: the shapes do not belong to a cell, they are no weights, see
      `edges.check_weights`, or all operations are none.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> alphas = mr.init_alphas(jax.random.key(0), 4, len(mr.PRIMITIVES))
    >>> genotype = mr.derive_genotype(mr.softmax_weights(alphas))
    >>> genotype.nodes, len(genotype.normal)
    (4, 8)
  """
  names = list(primitives)
  real = edges_lib.real_columns(primitives)
  if not real:
    raise UsageError('the primitives hold no operation other than none.')

  def edges_of(kind: str) -> tuple[Edge, ...]:
    table = np.asarray(weights[kind])
    if table.ndim != 2 or table.shape[1] != len(names):
      raise UsageError(
        f'weights["{kind}"] has shape {table.shape}; its columns must be the '
        f'{len(names)} primitives.'
      )
    try:
      nodes = edges_lib.node_rows(len(table)) if len(table) else []
    except UsageError as error:
      raise UsageError(
        f'weights["{kind}"] has {len(table)} rows, which is no whole number '
        'of nodes.'
      ) from error
    if nodes:
      edges_lib.check_table(table, kind)
    edges: list[Edge] = []
    for rows in nodes:
      block = table[rows][:, real]
      # A stable order, so that ties go to the earlier state.
      strongest = np.argsort(-block.max(axis=1), kind='stable')
      for state in strongest[: edges_lib.EDGES_PER_NODE]:
        edges.append((names[real[int(block[state].argmax())]], int(state)))
    return tuple(edges)

  return whole_genotype({kind: edges_of(kind) for kind in edges_lib.KINDS})


def whole_genotype(cells: Mapping[str, Sequence[Edge]]) -> Genotype:
  """Returns the genotype of these edges, all nodes concatenated.

  Args:
    cells: {'normal': two (operation, state) per node, 'reduction': ...}.
  """
  normal, reduction = (tuple(cells[kind]) for kind in edges_lib.KINDS)
  normal_concat, reduction_concat = (
    edges_lib.all_nodes(len(edges) // edges_lib.EDGES_PER_NODE)
    for edges in (normal, reduction)
  )
  return Genotype(normal, normal_concat, reduction, reduction_concat)


def none_column(primitives: ops.Primitives) -> int:
  """Returns the column of `none`, or -1 where there is no such operation.

  Args:
    primitives: name -> operation, in the order of the columns.
  """
  real = edges_lib.real_columns(primitives)
  return next((c for c in range(len(primitives)) if c not in real), -1)


def one_hot_weights(
  genotype: Genotype, primitives: ops.Primitives = ops.PRIMITIVES
) -> dict[str, np.ndarray]:
  """Returns the weights with which a search network computes a genotype.

  Args:
    genotype: of operations among the primitives; all nodes concatenated.
    primitives: name -> operation, in the order of the columns.

  Returns:
    {'normal': (edges, operations), 'reduction': ...} float32: on the genotype's
    edges one on their operation, on others one on `none`; zeros where there is
    no such operation.

  Raises:
    UsageError: the genotype is not of that form.

  Example:
    >>> import ms_ranas_jax as mr
    >>> (genotype,) = mr.random_genotypes(seed=0, count=1, nodes=2)
    >>> weights = mr.one_hot_weights(genotype)
    >>> weights['normal'].sum(axis=1).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
  """
  none = none_column(primitives)
  tables = {}
  for kind in edges_lib.KINDS:
    chosen = getattr(genotype, kind)
    concat = getattr(genotype, f'{kind}_concat')
    if set(concat) != set(edges_lib.all_nodes(genotype.nodes)):
      raise UsageError(
        f'the {kind} cell does not concatenate all of its nodes, as search '
        'networks do; give a genotype of a search.'
      )
    rows = edges_lib.genotype_rows(chosen)
    for index, (operation, state) in enumerate(chosen):
      if operation not in primitives or rows[index] in rows[:index]:
        raise UsageError(
          f'the {kind} cell has "{operation}" of state {state}, which is not '
          'among the primitives, or a second operation on one edge; give a '
          'genotype of a search.'
        )
    tables[kind] = edges_lib.one_hot(chosen, primitives).astype(np.float32)
    if none >= 0:
      tables[kind][~tables[kind].any(axis=1), none] = 1
  return tables
