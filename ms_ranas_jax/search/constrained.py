r"""Deriving a genotype with few skips, or whose network costs what it may.

DARTS keeps, per node, the two edges whose strongest operation weighs most. That
is the genotype with the largest product of weights, over all choices of two
edges per node and an operation other than none on each. Under a limit on the
cost, or a cap on the skip connections of a cell, the same product is maximised
over the genotypes within the limits. With a variable of 0 or 1 for every
operation on every edge, logarithms of weights, costs and skips are sums, so
this is an integer linear program, which HiGHS solves exactly. The peak of the
activations is no such sum: there the genotypes are gone through from the
likeliest down, until one is within the limit.
"""

from __future__ import annotations

from collections.abc import Mapping
import itertools
from typing import Any

import jax
import numpy as np

from ms_ranas_jax.costs import linear_cost
from ms_ranas_jax.costs import peak_cost
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.search import ranking
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space.genotype import Genotype

# HiGHS takes sums that are 1e-6 apart for equal: too much for logarithms.
_SCALE = 1024
# Genotypes whose peak of activations is looked at, from the likeliest down, and
# those that are drawn to see how peaks spread.
_MOST_RANKED = 20_000
_DRAWN = 500


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

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> alphas = mr.init_alphas(jax.random.key(0), 4, len(mr.PRIMITIVES))
    >>> skips = list(mr.PRIMITIVES).index('skip_connect')
    >>> alphas = jax.tree.map(lambda x: x.at[:, skips].add(5.0), alphas)
    >>> genotype = mr.derive_capped(mr.softmax_weights(alphas), max_skips=1)
    >>> sum(name == 'skip_connect' for name, _ in genotype.normal)
    1
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
    tables: of the network to be derived, see `linear_cost.cost_tables`; all
      costs are whole numbers.
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

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> spec = mr.NetworkSpec(channels=4, layers=2, nodes=2)
    >>> alphas = mr.init_alphas(jax.random.key(0), 2, len(mr.PRIMITIVES))
    >>> tables = mr.cost_tables(spec)
    >>> low, high = mr.cost_range(tables)
    >>> genotype = mr.derive_within(
    ...   mr.softmax_weights(alphas), tables, low, (low + high) / 2
    ... )
    >>> macs = mr.network_cost(mr.derived_network(spec, genotype)).macs
    >>> macs <= (low + high) / 2
    True
  """
  plain = alphas_lib.derive_genotype(weights, primitives)
  skips = max(count_skips(plain, primitives).values())
  if max_skips is None or skips <= max_skips:
    if lowest <= tables.of_genotype(plain, primitives) <= highest:
      return plain
  if isinstance(tables, peak_cost.PeakTables):
    return _first_within(
      weights, tables, lowest, highest, primitives, max_skips
    )
  logs = [
    np.log(np.maximum(np.asarray(weights[kind], np.float64), 1e-300))
    for kind in edges_lib.KINDS
  ]
  found = _largest(
    _SCALE * np.stack(logs), primitives, max_skips, tables, (lowest, highest)
  )
  if found is None:
    cheapest, dearest = cost_range(tables, primitives, max_skips)
    raise UsageError(
      f'no genotype costs between {lowest:,.0f} and {highest:,.0f}: the '
      f'cheapest costs {cheapest:,.0f} and the dearest {dearest:,.0f}; change '
      'the target, or the sizes of the network.'
    )
  return found


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

  Example:
    >>> import ms_ranas_jax as mr
    >>> spec = mr.NetworkSpec(channels=4, layers=2, nodes=2)
    >>> mr.cost_range(mr.cost_tables(spec))
    (643392.0, 1519936.0)
  """
  if isinstance(tables, peak_cost.PeakTables):
    return _drawn_range(tables, primitives, max_skips)
  costs, _ = _in_units(tables)
  ends = []
  for sign in (-1, 1):
    found = _largest(sign * costs, primitives, max_skips)
    if found is None:
      raise UsageError(
        f'no genotype has {max_skips} skip connections at most in a cell: '
        'there are too few other primitives; allow more.'
      )
    ends.append(tables.of_genotype(found, primitives))
  return ends[0], ends[1]


def _is_skip(operation: ops.Operation) -> bool:
  return isinstance(operation, ops.Skip)


def _in_units(tables: linear_cost.CostTables) -> tuple[np.ndarray, int]:
  """Returns (kinds, edges, operations) costs in the largest whole unit."""
  costs = np.stack([getattr(tables, kind) for kind in edges_lib.KINDS])
  unit = int(np.gcd.reduce(costs.astype(np.int64), axis=None)) or 1
  return costs / unit, unit


def _largest(
  values: np.ndarray,
  primitives: ops.Primitives,
  max_skips: int | None,
  tables: linear_cost.CostTables | None = None,
  limits: tuple[float, float] = (-np.inf, np.inf),
) -> Genotype | None:
  """Returns the genotype with the largest sum of values within the limits.

  Args:
    values: (kinds, edges, operations).
    primitives: name -> operation, in the order of the columns.
    max_skips: the most skip connections in each of the two cells, or None.
    tables: what it costs, in whole numbers; None is no limits.
    limits: the least and the most that it may cost.

  Returns:
    The genotype, or None where none is within the limits.
  """
  from scipy import optimize  # Slow to import, and only needed here.

  names = list(primitives)
  real = edges_lib.real_columns(primitives)
  values = values[..., real]
  kinds, edges, _ = values.shape

  def sums(*places: tuple[Any, ...]) -> np.ndarray:
    """Returns the rows that sum the variables at these places."""
    rows = np.zeros((len(places), *values.shape))
    for row, place in zip(rows, places, strict=True):
      row[place] = 1
    return rows.reshape(len(places), -1)

  nodes = edges_lib.node_rows(edges)
  constraints = [
    optimize.LinearConstraint(sums(*np.ndindex(kinds, edges)), 0, 1),
    optimize.LinearConstraint(
      sums(*itertools.product(range(kinds), nodes)),
      edges_lib.EDGES_PER_NODE,
      edges_lib.EDGES_PER_NODE,
    ),
  ]
  if max_skips is not None:
    skips = [_is_skip(primitives[names[column]]) for column in real]
    constraints.append(
      optimize.LinearConstraint(
        sums(*((kind, slice(None), skips) for kind in range(kinds))),
        0,
        max_skips,
      )
    )
  if tables is not None:
    costs, unit = _in_units(tables)
    low, high = (limit - tables.base for limit in limits)
    constraints.append(
      optimize.LinearConstraint(
        costs[..., real].reshape(1, -1),
        np.ceil(low / unit),
        np.floor(high / unit),
      )
    )
  solution = optimize.milp(
    -values.ravel(),
    integrality=np.ones(values.size),
    bounds=optimize.Bounds(0, 1),
    constraints=constraints,
    options={'mip_rel_gap': 0},
  )
  if solution.x is None:
    return None
  states = [state for _, state in edges_lib.edge_list(len(nodes))]
  cells = {kind: [] for kind in edges_lib.KINDS}
  for kind, row, column in np.argwhere(solution.x.reshape(values.shape) > 0.5):
    chosen = names[real[column]], states[row]
    cells[edges_lib.KINDS[kind]].append(chosen)
  return alphas_lib.whole_genotype(cells)
