"""The states of the nodes of a network, from messages along its graph.

Copies of a cell are put one after the other as the grid has them (Zhang, Ren
and Urtasun, 2019, eq. (12) to (14)): a cell hears from the two layers before
it, at its own scale and the next finer one. Nodes start from what their
operator is, from its scale and from how often the map was halved before.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.hypernetwork import graph
from ms_ranas_jax.hypernetwork import message_passing
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import grid

PyTree = Any


class Embeddings(NamedTuple):
  """The states of all nodes after all messages.

  Attributes:
    stems: (scales, width).
    cells: (layers, scales, places, width), see `graph` for the places.
    exits: (exits, width).
  """

  stems: jax.Array
  cells: jax.Array
  exits: jax.Array


class _Stack(NamedTuple):
  """The grid as the stack of its layers; arrays of NumPy.

  Attributes:
    is_reduction: (layers,) int32.
    levels: (layers,) int32, reductions before.
    inputs: (layers, scales, 2) int32, the operators of the inputs.
  """

  is_reduction: np.ndarray
  levels: np.ndarray
  inputs: np.ndarray


def _stack(plan: grid.Plan) -> _Stack:
  """Returns the layers of a grid, of cells that no exit needs as well."""
  spec = plan.spec
  reductions = grid.reduction_layers(spec.layers)
  layers = np.arange(spec.layers)
  inputs = np.zeros((spec.layers, spec.scales, edges_lib.NUM_INPUTS), np.int32)
  for cell in plan.cells:
    place = cell.output.layer, cell.output.scale
    inputs[place] = [graph.input_operator(source) for source in cell.inputs]
  return _Stack(
    np.isin(layers, reductions).astype(np.int32),
    np.array(
      [sum(r < layer for r in reductions) for layer in layers], np.int32
    ),
    inputs,
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def embed(
  spec: grid.NetworkSpec,
  rounds: int,
  params: PyTree,
  wires: graph.WiresPerKind,
) -> Embeddings:
  """Returns the states of all nodes of a network.

  Args:
    spec: sizes of the network.
    rounds: of messages, forward and backward.
    params: `codes`, `message` and `gru` of a hypernetwork, see
      `Hypernetwork.param_shapes`.
    wires: of a genotype, see `graph.wires_of`.
  """
  codes = params['codes']
  mlp = message_passing.Mlp(**params['message'])
  gru = message_passing.Gru(**params['gru'])
  send = functools.partial(message_passing.message, mlp)
  update = functools.partial(message_passing.update, gru)
  plan = grid.build_plan(spec)
  kinds = [wires[kind] for kind in edges_lib.KINDS]
  adjacency = jnp.stack([graph.adjacency(cell) for cell in kinds])
  ranks = graph.ranks(spec.nodes)

  def alone(name: str, scale: int) -> jax.Array:
    return codes['operators'][graph.number(name)] + codes['scales'][scale]

  def layer(before, scanned):
    is_reduction, level, inputs = scanned
    operators = jnp.stack(
      [graph.cell_operators(cell, inputs) for cell in kinds]
    )[is_reduction]
    states = (
      codes['operators'][operators]
      + codes['scales'][:, None]
      + codes['levels'][level][None, None]
    )
    heard = send(before)  # (2, scales, width)
    # A coarser scale hears from the finer one as well.
    finer = jnp.pad(heard[:, :-1], ((0, 0), (1, 0), (0, 0)))
    outside = jnp.zeros_like(states)
    outside = outside.at[:, : edges_lib.NUM_INPUTS].set(
      jnp.swapaxes(heard + finer, 0, 1)
    )
    states = message_passing.propagate(
      mlp,
      gru,
      states,
      adjacency[is_reduction],
      ranks,
      outside,
      rounds,
    )
    return jnp.stack([before[1], states.mean(axis=-2)]), states

  first = alone('stem', 0)
  stems = [update(first, jnp.zeros_like(first))]
  for scale in range(1, spec.scales):
    stems.append(update(alone('stem', scale), send(stems[-1])))
  stem = jnp.stack(stems)
  _, cells = lax.scan(
    layer, jnp.stack([stem, stem]), jax.tree.map(jnp.asarray, _stack(plan))
  )
  layers = np.array([exit_.layer for exit_ in plan.exits])
  read = send(cells[layers, -1].mean(axis=-2))
  start = jnp.broadcast_to(alone('exit', -1), read.shape)
  return Embeddings(stem, cells, update(start, read))
