"""The layout of alphas, and of any table of the edges of a cell.

Alphas are {'normal': (edges, operations), 'reduction': (edges, operations)}.
Rows go node by node, node i (state 2 + i) having an edge from each of the
states 0 to 1 + i; columns are the primitives, in their order.

With edge normalisation (PC-DARTS, Xu et al. 2020, eq. 4) there are logits of
edges besides, {'normal_edges': (edges,), 'reduction_edges': (edges,)}: the
weights of an edge are multiplied with the softmax of these over the edges into
its node, so that the rows of a node sum to one together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import operations as ops

NORMAL = 'normal'
REDUCTION = 'reduction'
KINDS = (NORMAL, REDUCTION)
NUM_INPUTS = 2
EDGES_PER_NODE = 2  # once a cell is derived
# Of sums of weights, which may have been computed in bfloat16.
_TOLERANCE = 0.02
# Alphas, or weights, by the kind of the cell; see the module.
PerKind = Mapping[str, jax.Array | np.ndarray]


def num_edges(nodes: int) -> int:
  """Returns the edges of a mixed cell: 2 + 3 + ... + (nodes + 1)."""
  return sum(NUM_INPUTS + node for node in range(nodes))


def num_nodes(count: int) -> int:
  """Returns the nodes of a mixed cell with so many edges.

  Raises:
    UsageError: no number of nodes has that many edges.
  """
  nodes = 0
  while num_edges(nodes) < count:
    nodes += 1
  if not nodes or num_edges(nodes) != count:
    raise UsageError(
      f'alphas of {count} edges fit no cell; node i has 2 + i edges, so a '
      'cell has 2, 5, 9, 14, ... of them.'
    )
  return nodes


def edge_list(nodes: int) -> list[tuple[int, int]]:
  """Returns (node, state) of each edge of a mixed cell, row by row."""
  return [(n, s) for n in range(nodes) for s in range(NUM_INPUTS + n)]


def node_rows(count: int) -> list[slice]:
  """Returns the rows of each node, in a table of so many; see `num_nodes`."""
  starts = [num_edges(node) for node in range(num_nodes(count) + 1)]
  return [slice(*pair) for pair in itertools.pairwise(starts)]


def genotype_rows(chosen: Sequence[tuple[str, int]]) -> list[int]:
  """Returns the row of each edge (operation, state) of a derived cell."""
  return [
    num_edges(index // EDGES_PER_NODE) + state
    for index, (_, state) in enumerate(chosen)
  ]


def one_hot(
  chosen: Sequence[tuple[str, int]], primitives: ops.Primitives
) -> np.ndarray:
  """Returns a table (edges, operations) of ones at a derived cell's edges."""
  columns = [list(primitives).index(name) for name, _ in chosen]
  edges = num_edges(len(chosen) // EDGES_PER_NODE)
  table = np.zeros((edges, len(primitives)))
  table[genotype_rows(chosen), columns] = 1
  return table


def check_weights(weights: PerKind) -> None:
  """Refuses what are no weights, such as alphas before their softmax.

  The weights of a node sum to the number of its edges (softmax), to one (edge
  normalisation) or to two (a derived cell). Looked at where they are numbers,
  not while a function of them is traced.

  Args:
    weights: {'normal': (edges, operations), 'reduction': ...}.

  Raises:
    UsageError: one is negative, or those of a node sum to less than one.
  """
  for kind in KINDS:
    check_table(weights[kind], kind)


def check_table(table: jax.Array | np.ndarray, kind: str) -> None:
  """Refuses what is no table of weights, see `check_weights`.

  Args:
    table: (edges, operations).
    kind: of the cell, for the message.

  Raises:
    UsageError: as `check_weights`.
  """
  if isinstance(table, jax.core.Tracer) or np.ndim(table) != 2:
    return
  values = np.asarray(table, np.float64)
  sums = [values[rows].sum() for rows in node_rows(len(values))]
  if values.min() < -_TOLERANCE or min(sums) < 1 - _TOLERANCE:
    raise UsageError(
      f'weights["{kind}"] are no weights: they run from {values.min():.3g} to '
      f'{values.max():.3g}, and those of a node sum to {min(sums):.3g} or '
      'more, where 1 is the least; give softmax_weights(alphas).'
    )


def all_nodes(nodes: int) -> tuple[int, ...]:
  """Returns the states of the nodes, the output of a cell of a search."""
  return tuple(range(NUM_INPUTS, NUM_INPUTS + nodes))


def real_columns(primitives: ops.Primitives) -> list[int]:
  """Returns the columns of all operations that can stand in a derived cell."""
  return [
    column
    for column, operation in enumerate(primitives.values())
    if not isinstance(operation, ops.Zero)
  ]


def logits_key(kind: str) -> str:
  """Returns the name of the logits of a cell's edges among the alphas."""
  return f'{kind}_edges'


def log_softmax_weights(alphas: PerKind) -> dict[str, jax.Array]:
  """Returns the logarithms of `softmax_weights`."""
  logs = {kind: jax.nn.log_softmax(alphas[kind]) for kind in KINDS}
  for kind in KINDS:
    logits = alphas.get(logits_key(kind))
    if logits is not None:
      nodes = [
        jax.nn.log_softmax(logits[..., rows])
        for rows in node_rows(logits.shape[-1])
      ]
      logs[kind] = logs[kind] + jnp.concatenate(nodes, axis=-1)[..., None]
  return logs


def softmax_weights(alphas: PerKind) -> dict[str, jax.Array]:
  """Returns the weights of eq. (1): the softmax of each edge's alphas.

  Where the alphas hold logits of edges, times the softmax of these.

  Args:
    alphas: see the module; there may be axes in front, such as of epochs.

  Returns:
    {'normal': (edges, operations), 'reduction': ...}.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> alphas = mr.init_alphas(jax.random.key(0), nodes=1, num_operations=4)
    >>> weights = mr.softmax_weights(alphas)
    >>> weights['normal'].sum(axis=1).round(3).tolist()
    [1.0, 1.0]
  """
  if logits_key(NORMAL) in alphas:
    return jax.tree.map(jnp.exp, log_softmax_weights(alphas))
  return {kind: jax.nn.softmax(alphas[kind]) for kind in KINDS}
