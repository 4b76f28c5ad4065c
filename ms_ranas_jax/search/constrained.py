r"""Deriving a genotype with few skips, or whose network costs what it may.

DARTS keeps, per node, the two edges whose strongest operation weighs most. That
is the genotype with the largest product of weights, over all choices of two
edges per node and an operation other than none on each. Under a limit on the
cost, the same product is maximised over the genotypes within the limit. Costs
and logarithms of weights are sums over nodes, so this is a knapsack: node after
node, the best product for every sum of costs, in small steps of cost. The peak
of the activations is no such sum: there the genotypes are gone through from the
likeliest down, until one is within the limit.

A cap on the skip connections of a cell is one more limit of that kind: the best
product for every number of skips so far in the cell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
import itertools

import jax
import numpy as np

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.search import ranking
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import linear_cost
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space import peak_cost
from ms_ranas_jax.space.genotype import Genotype

# Steps of cost between zero and the upper limit.
_STEPS = 4000
# Genotypes whose peak of activations is looked at, from the likeliest down, and
# those that are drawn to see how peaks spread.
_MOST_RANKED = 20_000
_DRAWN = 500


@dataclasses.dataclass(frozen=True)
class Choice:
  """What can be chosen at a node.

  Attributes:
    cost: of its two edges.
    value: log of the product of their weights.
    edges: (column of the operation, state), twice.
    skips: how many of them are skip connections.
  """

  cost: float
  value: float
  edges: tuple[tuple[int, int], tuple[int, int]]
  skips: int


def count_skips(
  genotype: Genotype, primitives: ops.Primitives = ops.PRIMITIVES
) -> dict[str, int]:
  """Returns {'normal': skip connections in the normal cell, 'reduction': ...}.

  Args:
    genotype: of operations among the primitives.
    primitives: name -> operation.
  """
  return {
    kind: sum(_is_skip(primitives[name]) for name, _ in getattr(genotype, kind))
    for kind in edges_lib.KINDS
  }


def derive_capped(
  weights: Mapping[str, np.ndarray | jax.Array],
  max_skips: int | None,
  primitives: ops.Primitives = ops.PRIMITIVES,
) -> Genotype:
  """Returns the likeliest genotype with so many skip connections at most.

  Args:
    weights: {'normal': (edges, operations), 'reduction': ...}, softmax weights.
    max_skips: the most in each of the two cells; None is any number.
    primitives: name -> operation, in the order of the columns.

  Returns:
    The genotype; all nodes are concatenated. Where `alphas.derive_genotype`'s
    keeps to the cap, that one.

  Raises:
    UsageError: skip connections are all that there is to choose.
  """
  free = {kind: np.zeros_like(weights[kind]) for kind in edges_lib.KINDS}
  return derive_within(
    weights,
    linear_cost.CostTables(0.0, **free),
    0.0,
    1.0,
    primitives,
    max_skips,
  )


def derive_within(
  weights: Mapping[str, np.ndarray | jax.Array],
  tables: linear_cost.Tables,
  lowest: float,
  highest: float,
  primitives: ops.Primitives = ops.PRIMITIVES,
  max_skips: int | None = None,
) -> Genotype:
  """Returns the likeliest genotype whose network costs so much.

  Args:
    weights: {'normal': (edges, operations), 'reduction': ...}, softmax weights.
    tables: of the network to be derived, see `linear_cost.cost_tables`.
    lowest: the least cost allowed, in the unit of the tables.
    highest: the most.
    primitives: name -> operation, in the order of the columns.
    max_skips: the most skip connections in each of the two cells; None is any
      number.

  Returns:
    The genotype; all nodes are concatenated. Where `alphas.derive_genotype`'s
    costs what it may and keeps to the cap, that one.

  Raises:
    UsageError: no genotype costs so much; the message says what can be had.
  """
  plain = alphas_lib.derive_genotype(weights, primitives)
  skips = max(count_skips(plain, primitives).values())
  if max_skips is None or skips <= max_skips:
    if (
      lowest <= linear_cost.genotype_cost(plain, tables, primitives) <= highest
    ):
      return plain
  if isinstance(tables, peak_cost.PeakTables):
    return _first_within(
      weights, tables, lowest, highest, primitives, max_skips
    )
  blocks = [
    _choices(np.asarray(weights[kind]), getattr(tables, kind), primitives)
    for kind in edges_lib.KINDS
  ]
  cheapest, dearest = cost_range(tables, primitives, max_skips)
  picked = None
  if cheapest <= highest and lowest <= dearest:
    picked = _knapsack(
      blocks, lowest - tables.base, highest - tables.base, max_skips
    )
  if picked is None:
    raise UsageError(
      f'no genotype costs between {lowest:,.0f} and {highest:,.0f}: the '
      f'cheapest costs {cheapest:,.0f} and the dearest {dearest:,.0f}; change '
      'the target, or the sizes of the network.'
    )
  names = list(primitives)
  cells, start = {}, 0
  for kind, block in zip(edges_lib.KINDS, blocks, strict=True):
    chosen = picked[start : start + len(block)]
    start += len(block)
    cells[kind] = tuple(
      (names[operation], state) for pair in chosen for operation, state in pair
    )
  return alphas_lib.whole_genotype(cells)


def _first_within(
  weights: Mapping[str, np.ndarray | jax.Array],
  tables: peak_cost.PeakTables,
  lowest: float,
  highest: float,
  primitives: ops.Primitives,
  max_skips: int | None,
) -> Genotype:
  """Returns the first of the likeliest genotypes whose peak is within."""
  nearest = None
  ranked = ranking.ranked_genotypes(weights, primitives)
  for genotype in itertools.islice(ranked, _MOST_RANKED):
    skips = max(count_skips(genotype, primitives).values())
    if max_skips is not None and skips > max_skips:
      continue
    peak = tables.of_genotype(genotype, primitives)
    if lowest <= peak <= highest:
      return genotype
    gap = max(lowest - peak, peak - highest)
    if nearest is None or gap < nearest[0]:
      nearest = gap, peak
  found = f'{nearest[1]:,.0f}' if nearest else 'none, for the cap on skips'
  raise UsageError(
    f'no peak between {lowest:,.0f} and {highest:,.0f} among the '
    f'{_MOST_RANKED:,} likeliest genotypes; the nearest is {found}; change the '
    'target, or the sizes of the network.'
  )


def _drawn_range(
  tables: peak_cost.PeakTables,
  primitives: ops.Primitives,
  max_skips: int | None,
) -> tuple[float, float]:
  """Returns the least and the largest peak of genotypes drawn at random.

  A peak is no sum over nodes, so that its ends are only looked for.
  """
  rng = np.random.default_rng(0)
  shape = (*tables.shape, len(primitives))
  peaks = []
  for _ in range(_DRAWN):
    weights = dict(zip(edges_lib.KINDS, rng.uniform(size=shape), strict=True))
    genotype = derive_capped(weights, max_skips, primitives)
    peaks.append(tables.of_genotype(genotype, primitives))
  return min(peaks), max(peaks)


def cost_range(
  tables: linear_cost.Tables,
  primitives: ops.Primitives = ops.PRIMITIVES,
  max_skips: int | None = None,
) -> tuple[float, float]:
  """Returns what the cheapest and the dearest genotype cost.

  Args:
    tables: of the network to be derived, see `linear_cost.cost_tables`. Of a
      peak of activations the ends are those of genotypes drawn at random.
    primitives: name -> operation, in the order of the columns.
    max_skips: the most skip connections in each of the two cells; None is any
      number.

  Raises:
    UsageError: skip connections are all that there is to choose.
  """
  if isinstance(tables, peak_cost.PeakTables):
    return _drawn_range(tables, primitives, max_skips)
  blocks = []
  for kind in edges_lib.KINDS:
    costs = getattr(tables, kind)
    blocks.append(_choices(np.ones_like(costs), costs, primitives))
  return tuple(
    tables.base + sum(_extreme(block, pick, max_skips) for block in blocks)
    for pick in (min, max)
  )


def _extreme(
  nodes: list[list[Choice]],
  pick: Callable[[float, float], float],
  max_skips: int | None,
) -> float:
  """Returns the least or the largest cost of a cell."""
  best = {0: 0.0}  # by the number of skips
  for choices in nodes:
    own: dict[int, float] = {}
    for choice in choices:
      own[choice.skips] = pick(own.get(choice.skips, choice.cost), choice.cost)
    found: dict[int, float] = {}
    for before, total in best.items():
      for skips, price in own.items():
        skips += before
        if max_skips is None or skips <= max_skips:
          found[skips] = pick(found.get(skips, total + price), total + price)
    best = found
  if not best:
    raise UsageError(
      f'no genotype has {max_skips} skip connections at most in a cell: there '
      'are too few other primitives; allow more.'
    )
  return float(functools.reduce(pick, best.values()))


def _is_skip(operation: ops.Operation) -> bool:
  return isinstance(operation, ops.Skip)


def _choices(
  table: np.ndarray, costs: np.ndarray, primitives: ops.Primitives
) -> list[list[Choice]]:
  """Returns, node by node, all that can be chosen at it."""
  operations = tuple(primitives.values())
  real = edges_lib.real_columns(primitives)
  logs = np.log(np.maximum(np.asarray(table, np.float64), 1e-300))
  nodes = []
  for rows in edges_lib.node_rows(len(table)):
    single = [
      [(cost[o], log[o], (o, state)) for o in real]
      for state, (cost, log) in enumerate(
        zip(costs[rows], logs[rows], strict=True)
      )
    ]
    nodes.append(
      [
        Choice(
          a[0] + b[0],
          a[1] + b[1],
          (a[2], b[2]),
          sum(_is_skip(operations[o]) for o, _ in (a[2], b[2])),
        )
        for first, second in itertools.combinations(single, 2)
        for a in first
        for b in second
      ]
    )
  return nodes


def _knapsack(
  blocks: list[list[list[Choice]]],
  lowest: float,
  highest: float,
  max_skips: int | None,
) -> list[tuple[tuple[int, int], tuple[int, int]]] | None:
  """Returns the choices with the largest sum of logs within the limits."""
  step = highest / _STEPS
  if step <= 0:
    return None
  # A place stands for a sum of costs, in steps, and the number of skips so far
  # in the cell; without a cap they are not counted.
  most = 2 * max(map(len, blocks))
  counts = 1 if max_skips is None else min(max_skips, most) + 1
  width = _STEPS + 1
  size = counts * width
  # At every place: the best sum of logs, and its exact cost.
  best = np.full(size, -np.inf)
  exact = np.zeros(size)
  best[0] = 0.0
  trail = []
  for position, choices in (p for block in blocks for p in enumerate(block)):
    new = np.full(size, -np.inf)
    new_exact = np.zeros(size)
    came = np.zeros(size, np.int64)
    chosen = np.zeros(size, np.int64)
    for number, choice in enumerate(choices):
      places = np.flatnonzero(np.isfinite(best))
      sums = exact[places] + choice.cost
      # The first node of a cell begins to count anew.
      skips = places // width if position else np.zeros_like(places)
      if max_skips is not None:
        skips = skips + choice.skips
      inside = (sums <= highest) & (skips < counts)
      places, sums, skips = places[inside], sums[inside], skips[inside]
      targets = skips * width + np.round(sums / step).astype(np.int64)
      values = best[places] + choice.value
      # The best of what falls into one place goes last, and stays.
      order = np.argsort(values, kind='stable')
      places, sums, targets, values = (
        a[order] for a in (places, sums, targets, values)
      )
      better = values > new[targets]
      places, sums, targets, values = (
        a[better] for a in (places, sums, targets, values)
      )
      new[targets] = values
      new_exact[targets] = sums
      came[targets] = places
      chosen[targets] = number
    trail.append((choices, came, chosen))
    best, exact = new, new_exact
  allowed = np.isfinite(best) & (exact >= lowest) & (exact <= highest)
  if not allowed.any():
    return None
  place = int(np.argmax(np.where(allowed, best, -np.inf)))
  picked = []
  for choices, came, chosen in reversed(trail):
    picked.append(choices[chosen[place]].edges)
    place = int(came[place])
  return picked[::-1]
