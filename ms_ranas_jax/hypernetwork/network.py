"""The grid of derived cells, with the genotype as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ms_ranas_jax.hypernetwork import graph
from ms_ranas_jax.hypernetwork import traced_cell
from ms_ranas_jax.space import cell as cell_lib
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops


class Chosen(NamedTuple):
  """What stands in the place of weights: a genotype, and its params.

  Attributes:
    wires: of both kinds of cells.
    vectors: name of a cell -> (edges, length), the params of its operations,
      see `edge.pack`.
  """

  wires: graph.WiresPerKind
  vectors: Mapping[str, jax.Array]


class TracedNetwork(network_lib.Network):
  """A derived network whose genotype is data, a `Chosen` for weights.

  Its `params` are those of stems, inputs of cells and exits. BNs normalise with
  the statistics of the batch in any case, and keep none. Without a `Chosen`,
  which serves for the shapes of its `params`, cells are left out.
  """

  def _from_states(
    self, plan: grid.Cell, states, weights: Chosen | None, train, drop_path
  ) -> jax.Array:
    del train, drop_path
    if weights is None:
      out = plan.output
      shape = (states[0].shape[0], out.height, out.width, out.channels)
      return jnp.zeros(shape, states[0].dtype)
    kind = edges_lib.REDUCTION if plan.reduction else edges_lib.NORMAL
    program = traced_cell.CellProgram(
      tuple(graph.real_primitives(self.operations).items()),
      plan.channels,
      plan.reduction,
      self.axis_name,
    )
    return traced_cell.traced_cell(
      jnp.stack(states),
      weights.wires[kind],
      weights.vectors[plan.output.name],
      program,
    )


def traced_network(
  spec: grid.NetworkSpec, primitives: ops.Primitives, **fields: Any
) -> TracedNetwork:
  """Returns the network of all genotypes of a space.

  Args:
    spec: the sizes.
    primitives: name -> operation, the choices on every edge.
    **fields: further attributes of a network.
  """
  wiring = cell_lib.mixed_wiring(spec.nodes, tuple(primitives))
  return TracedNetwork(
    plan=grid.build_plan(spec),
    normal=wiring,
    reduction=wiring,
    operations=primitives,
    search=False,
    **fields,
  )
