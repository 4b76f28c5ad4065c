"""A derived cell whose genotype is data, as are the params of its operations.

Edges are computed one after the other in a loop, so that a program holds each
operation once for a cell and not once for every edge, and an operation that is
not chosen is not run. Autodiff would keep what the way back needs of all
operations, for every edge; the gradient here is one of its own, which computes
an edge again from its input.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from ms_ranas_jax.hypernetwork import edge as edge_lib
from ms_ranas_jax.hypernetwork import graph
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import operations as ops

PyTree = Any
_INPUTS = edges_lib.NUM_INPUTS
# Where the input of an edge lies. A normal cell has all states in one array.
_STATES, _FINE = 'states', 'fine'


@dataclasses.dataclass(frozen=True)
class CellProgram:
  """What a cell is for all genotypes.

  Attributes:
    operations: (name, operation) of those that can be chosen, in order.
    channels: of every state.
    reduction: stride 2 on the edges from the inputs.
    axis_name: the device axis that shares the BN statistics.
  """

  operations: tuple[tuple[str, ops.Operation], ...]
  channels: int
  reduction: bool
  axis_name: str | None = None

  def branches(self) -> list[tuple[str, Callable[..., jax.Array]]]:
    """Returns what an edge may be: where its input lies, and its function.

    The function is of a state and a vector of params. Those of the inputs of a
    reduction cell come last.
    """
    places = (_STATES, _FINE) if self.reduction else (_STATES,)
    return [
      (place, functools.partial(self._apply, *entry, stride))
      for stride, place in enumerate(places, 1)
      for entry in self.operations
    ]

  def branch_number(self, state: jax.Array, operation: jax.Array) -> jax.Array:
    """Returns which of `branches` an edge is."""
    if not self.reduction:
      return operation
    return operation + len(self.operations) * (state < _INPUTS)

  def _apply(
    self,
    name: str,
    operation: ops.Operation,
    stride: int,
    x: jax.Array,
    vector: jax.Array,
  ) -> jax.Array:
    leaves = edge_lib.leaves(name, operation, self.channels, stride)
    module = edge_lib.module(
      name, operation, self.channels, stride, self.axis_name
    )
    params = edge_lib.unpack(vector, leaves)
    return module.apply({'params': params}, x, None, train=True)[0][0]


def _edge(
  wires: graph.Wires, index: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the state that an edge reads, its operation, and where it leads."""
  node = _INPUTS + index // edges_lib.EDGES_PER_NODE
  return wires.states.ravel()[index], wires.operations.ravel()[index], node


def _forward(
  inputs: jax.Array,
  wires: graph.Wires,
  vectors: jax.Array,
  *,
  program: CellProgram,
) -> tuple[jax.Array, PyTree]:
  """Returns the nodes of the cell, and what the way back needs."""
  nodes = wires.states.shape[0]
  _, batch, height, width, channels = inputs.shape
  if program.reduction:
    # There the places of the inputs are left empty.
    shape = (batch, -(-height // 2), -(-width // 2), channels)
    states = jnp.zeros((_INPUTS + nodes, *shape), inputs.dtype)
  else:
    rest = jnp.zeros((nodes, *inputs.shape[1:]), inputs.dtype)
    states = jnp.concatenate([inputs, rest])

  def branch(place, function, sources, state, vector):
    return function(sources[place][state], vector)

  branches = [functools.partial(branch, *one) for one in program.branches()]

  def compute(index, states):
    state, operation, node = _edge(wires, index)
    value = lax.switch(
      program.branch_number(state, operation),
      branches,
      {_STATES: states, _FINE: inputs},
      state,
      vectors[index],
    )
    return states.at[node].add(value)

  count = nodes * edges_lib.EDGES_PER_NODE
  states = lax.fori_loop(0, count, compute, states)
  return states[_INPUTS:], (inputs, states, wires, vectors)


def _backward(
  kept: PyTree, cotangent: jax.Array, *, program: CellProgram
) -> tuple[PyTree, ...]:
  """Returns the gradients of what `_forward` takes."""
  inputs, states, wires, vectors = kept
  sources = {_STATES: states}
  if program.reduction:
    sources[_FINE] = inputs

  def branch(place, function, state, vector, cotangent):
    _, pull = jax.vjp(function, sources[place][state], vector)
    of_x, of_vector = pull(cotangent)
    zeros = {
      name: jnp.zeros(array.shape[1:], array.dtype)
      for name, array in sources.items()
    }
    return {**zeros, place: of_x}, of_vector

  branches = [functools.partial(branch, *one) for one in program.branches()]
  count = len(vectors)

  def compute(done, carry):
    of_sources, of_vectors = carry
    index = count - 1 - done
    state, operation, node = _edge(wires, index)
    of_x, of_vector = lax.switch(
      program.branch_number(state, operation),
      branches,
      state,
      vectors[index],
      of_sources[_STATES][node],
    )
    # Where a state has no place in one of them, zero is added to another's.
    of_sources = {
      name: array.at[jnp.minimum(state, len(array) - 1)].add(of_x[name])
      for name, array in of_sources.items()
    }
    return of_sources, of_vectors.at[index].set(of_vector)

  start = jax.tree.map(jnp.zeros_like, sources)
  start[_STATES] = start[_STATES].at[_INPUTS:].set(cotangent)
  of_sources, of_vectors = lax.fori_loop(
    0, count, compute, (start, jnp.zeros_like(vectors))
  )
  of_inputs = of_sources.get(_FINE, of_sources[_STATES][:_INPUTS])
  return of_inputs, None, of_vectors


_nodes = lowering.custom_vjp(_forward, _backward)


def traced_cell(
  inputs: jax.Array,
  wires: graph.Wires,
  vectors: jax.Array,
  program: CellProgram,
) -> jax.Array:
  """Computes a derived cell, with BN statistics of the batch.

  Args:
    inputs: states 0 and 1, (2, batch, height, width, channels).
    wires: its genotype.
    vectors: (edges, length), the params of its operations, see `edge.pack`.
    program: what the cell is for all genotypes.

  Returns:
    (batch, H', W', channels * nodes).
  """
  nodes = _nodes(inputs, wires, vectors, program=program)
  return jnp.concatenate(list(nodes), axis=-1)
