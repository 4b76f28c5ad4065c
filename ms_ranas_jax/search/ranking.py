"""The genotypes of a search from the likeliest down.

The value of a genotype is the product of the weights of its operations, by
which DARTS ranks edges. It is a product over nodes, so the next best genotype
differs from one that is already found by the next best choice at one node, and
a heap of those candidates gives all genotypes in order without listing them.
"""

from __future__ import annotations

from collections.abc import Iterator
import heapq
import itertools

import numpy as np

from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space.genotype import Genotype

# The log of the weights of two edges, and the edges: (operation, state).
_Choice = tuple[float, tuple[tuple[str, int], ...]]


def ranked_genotypes(
  weights: edges_lib.PerKind,
  primitives: ops.Primitives = ops.PRIMITIVES,
) -> Iterator[Genotype]:
  """Yields all genotypes, the one of the largest product of weights first.

  Args:
    weights: {'normal': (edges, operations), 'reduction': ...}, softmax weights.
    primitives: name -> operation, in the order of the columns.

  Yields:
    Genotypes; all nodes are concatenated. The first is that of
    `alphas.derive_genotype`.
  """
  blocks = [
    _choices(np.asarray(weights[kind]), primitives) for kind in edges_lib.KINDS
  ]
  nodes = [choices for block in blocks for choices in block]

  def value(places: tuple[int, ...]) -> float:
    return sum(c[p][0] for c, p in zip(nodes, places, strict=True))

  start = (0,) * len(nodes)
  heap = [(-value(start), start)]
  while heap:
    _, places = heapq.heappop(heap)
    picked = [c[p][1] for c, p in zip(nodes, places, strict=True)]
    chosen = [edge for pair in picked for edge in pair]
    half = len(chosen) // 2
    yield alphas_lib.whole_genotype(
      dict(zip(edges_lib.KINDS, (chosen[:half], chosen[half:]), strict=True))
    )
    # Every vector of places has one parent, that with its last step undone, so
    # none comes twice.
    last = max((n for n, place in enumerate(places) if place), default=0)
    for node in range(last, len(nodes)):
      if places[node] + 1 < len(nodes[node]):
        child = (*places[:node], places[node] + 1, *places[node + 1 :])
        heapq.heappush(heap, (-value(child), child))


def _choices(
  table: np.ndarray, primitives: ops.Primitives
) -> list[list[_Choice]]:
  """Returns, node by node, all that can be chosen at it, the best first."""
  names = list(primitives)
  real = [(names[c], c) for c in edges_lib.real_columns(primitives)]
  logs = np.log(np.maximum(table.astype(np.float64), 1e-300))
  nodes = []
  for rows in edges_lib.node_rows(len(table)):
    choices = []
    for (s, one_log), (t, other_log) in itertools.combinations(
      enumerate(logs[rows]), 2
    ):
      for (one, first), (other, second) in itertools.product(real, real):
        edges = (
          (one_log[first], one, s),
          (other_log[second], other, t),
        )
        # The stronger one first, as DARTS lists them.
        edges = sorted(edges, key=lambda edge: -edge[0])
        choices.append(
          (
            float(edges[0][0] + edges[1][0]),
            tuple((name, state) for _, name, state in edges),
          )
        )
    nodes.append(sorted(choices, key=lambda choice: -choice[0]))
  return nodes
