"""Cells as graphs of operators, with the genotype as data.

A cell is a graph whose nodes are its operators and whose edges are the tensors
between them: its two inputs, then for each node of the cell its two operations
and their sum, and the output, which concatenates. Only which state an operation
reads, and which operation it is, depend on the genotype, so the graph has the
same nodes in the same order for all of them, and a compiled program serves all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import operations as ops

_PER_NODE = edges_lib.EDGES_PER_NODE + 1  # its operations, and their sum
# What an input of a cell is made by, see `space.network.CellInput`.
_INPUTS = ('horizontal', 'horizontal_halved', 'joined', 'joined_halved')
_OTHERS = (*_INPUTS, 'sum', 'output', 'stem', 'exit')


class Wires(NamedTuple):
  """The operations of a derived cell, as data.

  Attributes:
    states: (nodes, 2) int32, the state that each reads.
    operations: (nodes, 2) int32, which it is of `real_primitives`.
  """

  states: jax.Array
  operations: jax.Array


# By the kind of the cell.
WiresPerKind = Mapping[str, Wires]


def real_primitives(primitives: ops.Primitives) -> ops.Primitives:
  """Returns the operations that can stand in a derived cell."""
  return {
    name: operation
    for name, operation in primitives.items()
    if not isinstance(operation, ops.Zero)
  }


def wires_of(
  weights: edges_lib.PerKind, primitives: ops.Primitives
) -> dict[str, Wires]:
  """Returns a genotype as data.

  Args:
    weights: {'normal': (edges, operations), 'reduction': ...} of a genotype, as
      `one_hot_weights` makes them.
    primitives: name -> operation, in the order of the columns.
  """
  real = jnp.array(edges_lib.real_columns(primitives), jnp.int32)

  def of_cell(table: jax.Array) -> Wires:
    states, operations = [], []
    for rows in edges_lib.node_rows(len(table)):
      block = table[rows][:, real]
      strength = jnp.max(block, axis=1)
      first = jnp.argmax(strength)
      second = jnp.argmax(
        jnp.where(jnp.arange(len(block)) == first, -1, strength)
      )
      chosen = jnp.stack([first, second])
      states.append(chosen)
      operations.append(jnp.argmax(block, axis=1)[chosen])
    return Wires(
      *(jnp.stack(x).astype(jnp.int32) for x in (states, operations))
    )

  return {kind: of_cell(jnp.asarray(weights[kind])) for kind in edges_lib.KINDS}


def operators(primitives: ops.Primitives) -> tuple[str, ...]:
  """Returns the names of all operators, whose places are their numbers."""
  return *_OTHERS, *real_primitives(primitives)


def input_operator(source: grid.CellInput) -> int:
  """Returns the number of the operator that makes an input of a cell."""
  return _OTHERS.index(
    ('horizontal' if source.diagonal is None else 'joined')
    + '_halved' * source.halve
  )


def number(name: str) -> int:
  """Returns the number of an operator that is no operation of an edge."""
  return _OTHERS.index(name)


def size(nodes: int) -> int:
  """Returns how many nodes the graph of a cell has."""
  return edges_lib.NUM_INPUTS + _PER_NODE * nodes + 1


def edge_places(nodes: int) -> np.ndarray:
  """Returns the places of the operations of a cell, (nodes, 2)."""
  starts = edges_lib.NUM_INPUTS + _PER_NODE * np.arange(nodes)
  return starts[:, None] + np.arange(edges_lib.EDGES_PER_NODE)


def _sum_places(nodes: int) -> np.ndarray:
  return edge_places(nodes)[:, -1] + 1


def ranks(nodes: int) -> np.ndarray:
  """Returns, for every place, when its message comes: after all that it reads.

  Nodes of one rank do not read each other, so they may be computed together.
  """
  found = np.zeros(size(nodes), np.int32)
  for node, places in enumerate(edge_places(nodes)):
    found[places] = 2 * node + 1
    found[places[-1] + 1] = 2 * node + 2
  found[-1] = 2 * nodes + 1
  return found


def adjacency(wires: Wires) -> jax.Array:
  """Returns the edges of the graph: [v, u] is 1 where v reads u.

  Args:
    wires: of a cell.

  Returns:
    (places, places) float32. Two operations that read one state are two edges
    of it.
  """
  nodes = wires.states.shape[0]
  count, edges, sums = size(nodes), edge_places(nodes), _sum_places(nodes)
  places = jnp.array([*range(edges_lib.NUM_INPUTS), *sums], jnp.int32)
  fixed = np.zeros((count, count), np.float32)
  fixed[np.repeat(sums, edges_lib.EDGES_PER_NODE), edges.ravel()] = 1
  fixed[-1, sums] = 1
  read = jax.nn.one_hot(places[wires.states.ravel()], count, dtype=jnp.float32)
  return jnp.asarray(fixed).at[edges.ravel()].set(read)


def cell_operators(wires: Wires, inputs: jax.Array) -> jax.Array:
  """Returns the number of the operator at every place of a cell.

  Args:
    wires: of the cell.
    inputs: (..., 2) int32, what makes the cell's inputs.

  Returns:
    (..., places) int32.
  """
  nodes = wires.states.shape[0]
  found = np.full(size(nodes), number('output'), np.int32)
  found[_sum_places(nodes)] = number('sum')
  places = (
    jnp.asarray(found)
    .at[edge_places(nodes).ravel()]
    .set(len(_OTHERS) + wires.operations.ravel())
  )
  places = jnp.broadcast_to(places, (*inputs.shape[:-1], len(found)))
  return places.at[..., : edges_lib.NUM_INPUTS].set(inputs)
