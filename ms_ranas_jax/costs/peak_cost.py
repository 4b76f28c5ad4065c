r"""The peak of the activations as a function of a search's weights.

In a derived network an edge is there or not, and so is the time at which it is
computed. With q_t the probability that something is computed at time t, a
tensor is alive at t if something has written it before, and something will use
it then or later:

  alive = (1 - prod over writers before t of (1 - q))
          * (1 - prod over users from t on of (1 - q)).

The memory at t is the expectation of what is alive and of what the operation
needs, and the peak its largest over t. Edges are taken for independent, and the
largest expectation is at most the expected largest, so this is an approximation
of the expected peak; at one-hot weights it is the peak, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.costs import cost
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space.genotype import Genotype
from ms_ranas_jax.space.protocol import CostRow


@dataclasses.dataclass(frozen=True)
class PeakTables:
  """The tensors of a network and when they are alive.

  Attributes:
    shape: kinds of cells, and edges of each.
    rows: (times,), the row of an edge among those of the normal cell and then
      those of the reduction cell; -1 for what is always computed.
    writes: (tensors, times), 1 where a time writes a tensor.
    uses: (tensors, times), 1 where it reads or writes it.
    sizes: (tensors,), elements for one image.
    outputs: (times,), the tensor that is written.
    adding: (times, operations), elements that an operation needs beside what is
      alive, where its output is there already.
    making: (times, operations), the same where it is not.
  """

  shape: tuple[int, int]
  rows: np.ndarray
  writes: np.ndarray
  uses: np.ndarray
  sizes: np.ndarray
  outputs: np.ndarray
  adding: np.ndarray
  making: np.ndarray

  def expected(self, weights: edges_lib.PerKind) -> jax.Array:
    """Returns the peak in bytes under the weights, a scalar.

    Args:
      weights: {'normal': (edges, operations), 'reduction': ...}, probabilities.
    """
    return self._peak(weights, jnp)

  def of_genotype(
    self, genotype: Genotype, primitives: ops.Primitives = ops.PRIMITIVES
  ) -> float:
    """Returns the peak in bytes of the network that a genotype stands for.

    Args:
      genotype: of operations among the primitives.
      primitives: name -> operation, in the order of the tables' columns.
    """
    one_hot = {
      kind: edges_lib.one_hot(getattr(genotype, kind), primitives)
      for kind in edges_lib.KINDS
    }
    return float(self._peak(one_hot, np))

  def _peak(self, weights: Mapping[str, Any], xp: Any) -> Any:
    """The peak by jax.numpy, or by numpy, faster for many genotypes."""
    table = xp.concatenate([weights[kind] for kind in edges_lib.KINDS])
    always = np.zeros((1, table.shape[1]), table.dtype)
    always[0, 0] = 1.0
    chosen = xp.concatenate([table, always])[self.rows]
    # An operation that makes nothing, `none`, does not happen.
    happens = xp.sum(chosen * (self.making > 0), axis=1)[None]
    missing = xp.cumprod(1 - self.writes * happens, axis=1)
    missing = xp.concatenate(
      [xp.ones_like(missing[:, :1]), missing[:, :-1]], axis=1
    )
    idle = xp.cumprod((1 - self.uses * happens)[:, ::-1], axis=1)[:, ::-1]
    alive = (1 - missing) * (1 - idle)
    held = xp.sum(alive * self.sizes[:, None], axis=0)
    there = alive[self.outputs, np.arange(len(self.rows))][:, None]
    needed = there * self.adding + (1 - there) * self.making
    peak = xp.max(held + xp.sum(chosen * needed, axis=1))
    return cost.BYTES_PER_FLOAT32 * peak


def peak_tables(
  rows: Sequence[CostRow],
  tensors: Mapping[str, tuple[str, ...]],
  reduction_cells: Set[str],
  edges: int,
  columns: Mapping[str, int],
  image: int,
) -> PeakTables:
  """Returns the tables of a network.

  Args:
    rows: those of a search network, in order, all operations on all edges.
    tensors: what names stand for, see `protocol.AnytimeNetwork.tensors`.
    reduction_cells: the cells whose edges are those of the reduction cell.
    edges: of a cell of the search.
    columns: operation -> column of the weights.
    image: elements of the input, for one image.
  """
  # All operations on an edge are one time; the first one brings the image.
  times: list[list[CostRow]] = []
  for row in rows:
    before = times[-1][0] if times else None
    if (
      before is not None
      and row.edge
      and before.edge
      and before.where == row.where
      and before.edge[0] == row.edge[0]
    ):
      times[-1].append(row)
    else:
      times.append([row])
  names = ['images', *dict.fromkeys(row.output for row in rows)]
  index = {name: number for number, name in enumerate(names)}
  sizes = np.zeros(len(names), np.float32)
  sizes[0] = image
  writes = np.zeros((len(names), len(times) + 1), np.float32)
  uses = np.zeros_like(writes)
  chosen_by = np.full(len(times) + 1, -1)
  outputs = np.zeros(len(times) + 1, np.int64)
  adding, making = np.zeros((2, len(times) + 1, len(columns)), np.float32)
  writes[0, 0] = uses[0, 0] = 1
  making[0, 0] = image
  for time, group in enumerate(times, start=1):
    first = group[0]
    outputs[time] = index[first.output]
    sizes[index[first.output]] = first.elements
    writes[index[first.output], time] = uses[index[first.output], time] = 1
    for name in first.inputs:
      for tensor in tensors.get(name, (name,)):
        uses[index[tensor], time] = 1
    if first.edge:
      chosen_by[time] = edges * (first.where in reduction_cells) + first.edge[0]
    for row in group:
      column = columns[row.edge[1]] if row.edge else 0
      adding[time, column] = cost.working_elements(row)
      making[time, column] = max(cost.working_elements(row), row.elements)
  return PeakTables(
    (len(edges_lib.KINDS), edges),
    chosen_by,
    writes,
    uses,
    sizes,
    outputs,
    adding,
    making,
  )
