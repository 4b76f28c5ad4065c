r"""The expected cost of the network that alphas would be derived to.

A search network computes all operations on all edges; the network that is
derived from it keeps two edges per node and one operation on each. What it
would cost is a step function of the alphas. Here the choices are drawn at
random instead, with probabilities that are smooth in the alphas and become the
derivation itself as the temperature T goes to zero:

- the operation o on edge e, none left out: softmax_o(alpha[e, o] / T);
- the two edges of a node, one after the other without putting the first one
  back, in proportion to s_e^(1 / T), where s_e is the largest weight of an
  operation other than none, by which DARTS ranks edges. With P the softmax of
  log s / T,  P(e is kept) = P_e + sum_j P_j P_e / (1 - P_j).

Costs are sums over edges and operations (`CostTables`), so the expectation is
that of the probabilities put in for weights.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.costs import linear_cost
from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import operations as ops


def derived_probabilities(
  alphas: alphas_lib.Alphas,
  primitives: ops.Primitives = ops.PRIMITIVES,
  temperature: float = 1.0,
) -> dict[str, jax.Array]:
  """Returns how probably an edge carries an operation once it is derived.

  Args:
    alphas: {'normal': (edges, operations), 'reduction': ...}, and the logits
      of edges where there are any.
    primitives: name -> operation, in the order of the columns.
    temperature: T, above 0.

  Returns:
    Arrays of the same shapes; the rows of a node sum to two, and `none` has
    zero.
  """
  columns = np.arange(len(primitives))
  real = np.isin(columns, edges_lib.real_columns(primitives))
  return {
    kind: _probabilities(logs, real, temperature)
    for kind, logs in edges_lib.log_softmax_weights(alphas).items()
  }


def _probabilities(
  log_weights: jax.Array, real: np.ndarray, temperature: float
) -> jax.Array:
  log_weights = jnp.where(real, log_weights, -jnp.inf)
  operations = jax.nn.softmax(log_weights / temperature, axis=1)
  strength = jnp.max(log_weights, axis=1) / temperature
  kept = [_kept(strength[rows]) for rows in edges_lib.node_rows(len(strength))]
  return jnp.concatenate(kept)[:, None] * operations


def _kept(logits: jax.Array) -> jax.Array:
  """The probability of each to be among two drawn without putting back."""
  first = jax.nn.softmax(logits)
  others = jnp.where(np.eye(len(logits), dtype=bool), -jnp.inf, logits[None])
  return first + first @ jax.nn.softmax(others, axis=1)


def expected_derived_cost(
  alphas: alphas_lib.Alphas,
  tables: linear_cost.Tables,
  primitives: ops.Primitives = ops.PRIMITIVES,
  temperature: float = 1.0,
) -> jax.Array:
  """The expected cost; differentiable in the alphas.

  Args:
    alphas: {'normal': (edges, operations), 'reduction': ...}.
    tables: of the network to be derived, see `linear_cost.cost_tables`.
    primitives: name -> operation, in the order of the columns.
    temperature: T, above 0; towards 0 it is the cost of the derived network.

  Returns:
    A scalar in the unit of the tables.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> spec = mr.NetworkSpec(channels=4, layers=2, nodes=2)
    >>> alphas = mr.init_alphas(jax.random.key(0), 2, len(mr.PRIMITIVES))
    >>> cost = mr.expected_derived_cost(alphas, mr.cost_tables(spec))
    >>> low, high = mr.cost_range(mr.cost_tables(spec))
    >>> bool(low < cost < high)
    True
  """
  return linear_cost.expected_cost(
    derived_probabilities(alphas, primitives, temperature), tables
  )
