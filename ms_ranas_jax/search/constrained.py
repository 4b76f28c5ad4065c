r"""Deriving a genotype whose network costs what it may.

DARTS keeps, per node, the two edges whose strongest operation weighs most. That
is the genotype with the largest product of weights, over all choices of two
edges per node and an operation other than none on each. Under a limit on the
cost, the same product is maximised over the genotypes within the limit. Costs
and logarithms of weights are sums over nodes, so this is a knapsack: node after
node, the best product for every sum of costs, in small steps of cost.
"""

from __future__ import annotations

from collections.abc import Mapping
import itertools

import jax
import numpy as np

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.space import cell
from ms_ranas_jax.space import cost_tables
from ms_ranas_jax.space import network
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space.genotype import Genotype

# Steps of cost between zero and the upper limit.
_STEPS = 4000

# Cost, log of the product of weights, ((operation, state), (operation, state)).
Choice = tuple[float, float, tuple[tuple[int, int], tuple[int, int]]]


def derive_within(
  weights: Mapping[str, np.ndarray | jax.Array],
  tables: cost_tables.CostTables,
  lowest: float,
  highest: float,
  primitives: ops.Primitives = ops.PRIMITIVES,
) -> Genotype:
  """Returns the likeliest genotype whose network costs so much.

  Args:
    weights: {'normal': (edges, operations), 'reduction': ...}, softmax weights.
    tables: of the network to be derived, see `cost_tables.cost_tables`.
    lowest: the least cost allowed, in the unit of the tables.
    highest: the most.
    primitives: name -> operation, in the order of the columns.

  Returns:
    The genotype; all nodes are concatenated. Where `alphas.derive_genotype`'s
    costs what it may, that one.

  Raises:
    UsageError: no genotype costs so much; the message says what can be had.
  """
  plain = alphas_lib.derive_genotype(weights, primitives)
  if lowest <= cost_tables.genotype_cost(plain, tables, primitives) <= highest:
    return plain
  blocks = [
    _choices(np.asarray(weights[kind]), getattr(tables, kind), primitives)
    for kind in network.KINDS
  ]
  nodes = [choices for block in blocks for choices in block]
  cheapest, dearest = cost_range(tables, primitives)
  picked = None
  if cheapest <= highest and lowest <= dearest:
    picked = _knapsack(nodes, lowest - tables.base, highest - tables.base)
  if picked is None:
    raise UsageError(
      f'no genotype costs between {lowest:,.0f} and {highest:,.0f}: the '
      f'cheapest costs {cheapest:,.0f} and the dearest {dearest:,.0f}; change '
      'the target, or the sizes of the network.'
    )
  names = list(primitives)
  cells, start = {}, 0
  for kind, block in zip(network.KINDS, blocks, strict=True):
    chosen = picked[start : start + len(block)]
    start += len(block)
    cells[kind] = tuple(
      (names[operation], state) for pair in chosen for operation, state in pair
    )
    cells[f'{kind}_concat'] = tuple(
      range(cell.NUM_INPUTS, cell.NUM_INPUTS + len(block))
    )
  return Genotype(**cells)


def cost_range(
  tables: cost_tables.CostTables, primitives: ops.Primitives = ops.PRIMITIVES
) -> tuple[float, float]:
  """Returns what the cheapest and the dearest genotype cost.

  Args:
    tables: of the network to be derived, see `cost_tables.cost_tables`.
    primitives: name -> operation, in the order of the columns.
  """
  nodes = [
    choices
    for kind in network.KINDS
    for choices in _choices(
      np.ones_like(getattr(tables, kind)), getattr(tables, kind), primitives
    )
  ]
  return tuple(
    float(tables.base + sum(pick(c[0] for c in choices) for choices in nodes))
    for pick in (min, max)
  )


def _choices(
  table: np.ndarray, costs: np.ndarray, primitives: ops.Primitives
) -> list[list[Choice]]:
  """Returns, node by node, all that can be chosen at it."""
  real = [
    column
    for column, operation in enumerate(primitives.values())
    if alphas_lib.is_real(operation)
  ]
  logs = np.log(np.maximum(np.asarray(table, np.float64), 1e-300))
  nodes, row = [], 0
  while row < len(table):
    states = cell.NUM_INPUTS + len(nodes)
    single = {
      state: [
        (costs[row + state, o], logs[row + state, o], (o, state)) for o in real
      ]
      for state in range(states)
    }
    nodes.append(
      [
        (a[0] + b[0], a[1] + b[1], (a[2], b[2]))
        for first, second in itertools.combinations(range(states), 2)
        for a in single[first]
        for b in single[second]
      ]
    )
    row += states
  return nodes


def _knapsack(
  nodes: list[list[Choice]], lowest: float, highest: float
) -> list[tuple[tuple[int, int], tuple[int, int]]] | None:
  """Returns the choices with the largest sum of logs within the limits."""
  step = highest / _STEPS
  if step <= 0:
    return None
  # At every sum of costs, in steps: the best sum of logs, and its exact cost.
  best = np.full(_STEPS + 1, -np.inf)
  exact = np.zeros(_STEPS + 1)
  best[0] = 0.0
  trail = []
  for choices in nodes:
    new = np.full(_STEPS + 1, -np.inf)
    new_exact = np.zeros(_STEPS + 1)
    came = np.zeros(_STEPS + 1, np.int64)
    choice = np.zeros(_STEPS + 1, np.int64)
    for number, (price, value, _) in enumerate(choices):
      places = np.flatnonzero(np.isfinite(best))
      sums = exact[places] + price
      inside = sums <= highest
      places, sums = places[inside], sums[inside]
      targets = np.round(sums / step).astype(np.int64)
      values = best[places] + value
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
      choice[targets] = number
    trail.append((came, choice))
    best, exact = new, new_exact
  allowed = np.isfinite(best) & (exact >= lowest) & (exact <= highest)
  if not allowed.any():
    return None
  place = int(np.argmax(np.where(allowed, best, -np.inf)))
  picked = []
  for choices, (came, choice) in zip(
    reversed(nodes), reversed(trail), strict=True
  ):
    picked.append(choices[choice[place]][2])
    place = int(came[place])
  return picked[::-1]
