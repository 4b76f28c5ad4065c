"""The cost of the derived network as a part of the search.

Either a term of the alphas loss, weight times the expected cost over that of
uniform alphas, or a target. With a target the search solves

  min over alphas of L_valid   subject to   C(alphas) = target

by the method of multipliers: with v = (C - target) / (C_max - C_min), of the
dearest and the cheapest genotype, the alphas descend L_valid + m v + k v^2 / 2,
and the multiplier m ascends along v.

C is the expected cost of `derived_cost` at a low temperature, near that of the
network that would be derived. Its gradient is taken at temperature one, like
that of the mixed operations: at a low one it would vanish as soon as the alphas
prefer anything, and could not bring them back.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.costs import linear_cost
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.search import constrained
from ms_ranas_jax.search import derived_cost
from ms_ranas_jax.search import options
from ms_ranas_jax.sections import CostConfig
from ms_ranas_jax.sections import SearchConfig
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space.genotype import Genotype

# How fast the multiplier ascends, per step, and k.
_MULTIPLIER_RATE = 0.1
_DAMPING = 10.0


@dataclasses.dataclass(frozen=True)
class CostTerm:
  """What a search knows of the cost of the network that it looks for.

  Attributes:
    config: `config.search.cost`.
    tables: of the network to be derived.
    primitives: name -> operation, the columns of the tables.
    cheapest: cost of the cheapest genotype.
    dearest: cost of the dearest.
    edges: how many a cell has.
    max_skips: the most skip connections in a cell; None is any number.
  """

  config: CostConfig
  tables: linear_cost.Tables
  primitives: ops.Primitives
  cheapest: float
  dearest: float
  edges: int
  max_skips: int | None = None

  @property
  def limits(self) -> tuple[float, float]:
    """The least and the most that the derived network may cost."""
    slack = self.config.tolerance * self.config.target
    return self.config.target - slack, self.config.target + slack

  @functools.cached_property
  def uniform(self) -> float:
    """The expected cost at uniform alphas.

    Only a search wants it, and the operations take a while to compile.
    """
    shape = self.edges, len(self.primitives)
    uniform = {kind: np.zeros(shape, np.float32) for kind in edges_lib.KINDS}
    # A number also for a function that is being traced.
    with jax.ensure_compile_time_eval():
      return float(
        derived_cost.expected_derived_cost(
          uniform, self.tables, self.primitives
        )
      )

  def expected(self, alphas: alphas_lib.Alphas) -> jax.Array:
    """The expected cost, with the gradient of that at temperature one."""
    sharp, smooth = (
      derived_cost.expected_derived_cost(
        alphas, self.tables, self.primitives, temperature
      )
      for temperature in (self.config.temperature, 1.0)
    )
    return smooth + jax.lax.stop_gradient(sharp - smooth)

  def penalty(
    self, alphas: alphas_lib.Alphas, multiplier: jax.Array
  ) -> tuple[jax.Array, tuple[jax.Array, dict[str, jax.Array]]]:
    """The term of the alphas loss, see `bilevel.Penalty`."""
    expected = self.expected(alphas)
    metrics = {'expected_cost': expected}
    if self.config.target:
      violation = expected - self.config.target
      # Where all genotypes cost the same there is nothing to pull.
      violation /= max(self.dearest - self.cheapest, 1.0)
      value = multiplier * violation + _DAMPING * violation**2 / 2
      return value, (_MULTIPLIER_RATE * violation, metrics)
    value = self.config.weight * expected / self.uniform
    return value, (jnp.zeros_like(multiplier), metrics)

  def derive(self, weights: alphas_lib.Alphas) -> Genotype:
    """The genotype that weights stand for, within a target and the cap."""
    if not self.config.target:
      return self._derive_at_any_cost(weights)
    return constrained.derive_within(
      weights, self.tables, *self.limits, self.primitives, self.max_skips
    )

  def exact(self, weights: alphas_lib.Alphas) -> float:
    """The cost of the genotype that would be derived without a target."""
    return self.cost(self._derive_at_any_cost(weights))

  def cost(self, genotype: Genotype) -> float:
    """The cost of a genotype."""
    return self.tables.of_genotype(genotype, self.primitives)

  def _derive_at_any_cost(self, weights: alphas_lib.Alphas) -> Genotype:
    return constrained.derive_capped(weights, self.max_skips, self.primitives)


def build_cost_term(
  search: SearchConfig,
  spec: grid.NetworkSpec,
  primitives: ops.Primitives,
  known_width: bool = True,
) -> CostTerm:
  """Returns the cost term of a search.

  Args:
    search: `config.search`.
    spec: sizes of the network to be derived; the nodes are the search's.
    primitives: name -> operation, the choices on every edge.
    known_width: whether the channels of `spec` are those that will be trained.

  Raises:
    UsageError: there is no such exit, or no network costs what it should.
  """
  section = search.cost
  if section.target and not known_width:
    raise UsageError(
      f'search.cost.target = {section.target:,.0f}, but '
      "config.train.network.channels = 'auto' leaves open what a genotype "
      'costs; set the channels, or search without a target.'
    )
  spec = dataclasses.replace(spec, nodes=search.network.nodes)
  exits = len(grid.build_plan(spec, field='train.network').exits)
  if not -exits <= section.exit < exits:
    raise UsageError(
      f'search.cost.exit = {section.exit}: the network of config.train.network '
      f'has exits 0 to {exits - 1}, or -1 for the last.'
    )
  tables = linear_cost.cost_tables(
    spec, primitives, section.metric, section.exit % exits
  )
  max_skips = options.max_skips(search)
  cheapest, dearest = constrained.cost_range(tables, primitives, max_skips)
  edges = edges_lib.num_edges(spec.nodes)
  term = CostTerm(
    section, tables, primitives, cheapest, dearest, edges, max_skips
  )
  if section.target:
    low, high = term.limits
    if high < cheapest or low > dearest:
      raise UsageError(
        f'search.cost.target = {section.target:,.0f}: the networks of '
        f'config.train.network have {cheapest:,.0f} to {dearest:,.0f} '
        f'{section.metric}; give a target between, or change their sizes.'
      )
  return term
