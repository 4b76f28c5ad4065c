"""Alphas, their weights, and the genotype that they stand for.

Alphas are architecture logits, a pytree of their own: {'normal': (edges,
operations), 'reduction': (edges, operations)}. Rows go node by node, node i
having an edge from each of the states 0 to 1 + i.

With edge normalisation (PC-DARTS, Xu et al. 2020, eq. 4) there are logits of
edges besides, {'normal_edges': (edges,), 'reduction_edges': (edges,)}: the
weights of an edge are multiplied with the softmax of these over the edges into
its node, so that the rows of a node sum to one together.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import cell
from ms_ranas_jax.space import network
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space.genotype import Edge
from ms_ranas_jax.space.genotype import Genotype

Alphas = Mapping[str, jax.Array]
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
  """
  edges = cell.num_edges(nodes)
  keys = dict(zip(network.KINDS, jax.random.split(key), strict=True))
  alphas = {
    kind: _INITIAL_DEVIATION
    * jax.random.normal(subkey, (edges, num_operations))
    for kind, subkey in keys.items()
  }
  if edge_normalization:
    for kind, subkey in keys.items():
      draws = jax.random.normal(jax.random.fold_in(subkey, 1), (edges,))
      alphas[edges_key(kind)] = _INITIAL_DEVIATION * draws
  return alphas


def edges_key(kind: str) -> str:
  """Returns the name of the logits of a cell's edges among the alphas."""
  return f'{kind}_edges'


def log_softmax_weights(alphas: Alphas) -> dict[str, jax.Array]:
  """Returns the logarithms of `softmax_weights`."""
  logs = {kind: jax.nn.log_softmax(alphas[kind]) for kind in network.KINDS}
  for kind in network.KINDS:
    logits = alphas.get(edges_key(kind))
    if logits is None:
      continue
    nodes, row = [], 0
    while row < len(logits):
      states = cell.NUM_INPUTS + len(nodes)
      nodes.append(jax.nn.log_softmax(logits[row : row + states]))
      row += states
    logs[kind] = logs[kind] + jnp.concatenate(nodes)[:, None]
  return logs


def softmax_weights(alphas: Alphas) -> dict[str, jax.Array]:
  """Returns the weights of eq. (1): the softmax of each edge's alphas.

  Where the alphas hold logits of edges, times the softmax of these.

  Args:
    alphas: see the module.

  Returns:
    {'normal': (edges, operations), 'reduction': ...}.
  """
  if edges_key(network.NORMAL) in alphas:
    return jax.tree.map(jnp.exp, log_softmax_weights(alphas))
  return {kind: jax.nn.softmax(alphas[kind]) for kind in network.KINDS}


def derive_genotype(
  weights: Mapping[str, np.ndarray | jax.Array],
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
    UsageError: the shapes do not belong to a cell, or all operations are none.
  """
  names = list(primitives)
  real = [c for c, n in enumerate(names) if is_real(primitives[n])]
  if not real:
    raise UsageError('the primitives hold no operation other than none.')

  def edges_of(kind: str) -> tuple[tuple[Edge, ...], int]:
    table = np.asarray(weights[kind])
    if table.ndim != 2 or table.shape[1] != len(names):
      raise UsageError(
        f'weights["{kind}"] has shape {table.shape}; its columns must be the '
        f'{len(names)} primitives.'
      )
    edges: list[Edge] = []
    row, node = 0, 0
    while row < len(table):
      states = cell.NUM_INPUTS + node
      if row + states > len(table):
        raise UsageError(
          f'weights["{kind}"] has {len(table)} rows, which is no whole number '
          'of nodes.'
        )
      block = table[row : row + states][:, real]
      # A stable order, so that ties go to the earlier state.
      strongest = np.argsort(-block.max(axis=1), kind='stable')[:2]
      for state in strongest:
        edges.append((names[real[int(block[state].argmax())]], int(state)))
      row, node = row + states, node + 1
    return tuple(edges), node

  cells = {}
  for kind in (network.NORMAL, network.REDUCTION):
    edges, nodes = edges_of(kind)
    cells[kind] = edges
    cells[f'{kind}_concat'] = tuple(
      range(cell.NUM_INPUTS, cell.NUM_INPUTS + nodes)
    )
  return Genotype(**cells)


def is_real(operation: ops.Operation) -> bool:
  """Returns whether an operation can stand in a derived cell."""
  return not isinstance(operation, ops.Zero)


def none_column(primitives: ops.Primitives) -> int:
  """Returns the column of `none`, or -1 where there is no such operation.

  Args:
    primitives: name -> operation, in the order of the columns.
  """
  return next(
    (c for c, o in enumerate(primitives.values()) if not is_real(o)), -1
  )


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
  """
  columns = {name: column for column, name in enumerate(primitives)}
  none = none_column(primitives)
  tables = {}
  for kind in network.KINDS:
    reduction = kind == network.REDUCTION
    nodes = genotype.nodes
    if set(genotype.concat(reduction)) != set(
      range(cell.NUM_INPUTS, cell.NUM_INPUTS + nodes)
    ):
      raise UsageError(
        f'the {kind} cell does not concatenate all of its nodes, as search '
        'networks do; give a genotype of a search.'
      )
    table = np.zeros((cell.num_edges(nodes), len(primitives)), np.float32)
    if none >= 0:
      table[:, none] = 1
    taken = set()
    for index, (operation, state) in enumerate(genotype.edges(reduction)):
      row = cell.num_edges(index // 2) + state
      if operation not in columns or row in taken:
        raise UsageError(
          f'the {kind} cell has "{operation}" of state {state}, which is not '
          'among the primitives, or a second operation on one edge; give a '
          'genotype of a search.'
        )
      taken.add(row)
      table[row] = 0
      table[row, columns[operation]] = 1
    tables[kind] = table
  return tables
