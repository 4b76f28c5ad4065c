"""The anytime curve: what a network earns when it is stopped at a budget.

A network with K exits of cumulative costs c_0 <= ... <= c_{K-1} and
accuracies a_0, ..., a_{K-1}, stopped when the budget b is spent, answers with
the last exit that it has reached:

    A(b) = a_k,  k = max {k : c_k <= b};   A(b) = floor  for b < c_0.

A is a step function, and it is *not* the best exit so far: whoever stops the
network does not know which exit is right, so a later, worse exit counts.

The judge of the paper, eq. (4), is the expectation over the budget,
E_B[A(B)]. The budget is taken to be independent of the image.

Everything here is plain numpy and works in any unit of cost.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from ms_ranas_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Uniform:
  """Budgets spread evenly over [low, high], in the unit of the costs."""

  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Discrete:
  """A few budgets and how likely each is.

  Attributes:
    budgets: (n,) budgets, in the unit of the costs.
    probabilities: (n,) probabilities that sum to 1, by default all equal.
  """

  budgets: tuple[float, ...]
  probabilities: tuple[float, ...] | None = None


def checked_costs(costs: ArrayLike) -> np.ndarray:
  """Returns the costs of the exits as a float64 array, or refuses them.

  Args:
    costs: (exits,) cumulative costs, in any unit.

  Returns:
    (exits,) float64.

  Raises:
    UsageError: no exits, or costs that are not finite or fall.
  """
  costs = np.asarray(costs, np.float64)
  if costs.ndim != 1 or not costs.size:
    raise UsageError(
      f'costs has the shape {costs.shape}; give one number per exit.'
    )
  if not np.isfinite(costs).all() or (np.diff(costs) < 0).any():
    raise UsageError(
      f'costs must be finite and rise from exit to exit, not {costs.tolist()}; '
      'give cumulative costs.'
    )
  return costs


def _checked(
  costs: ArrayLike, accuracies: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
  costs = checked_costs(costs)
  accuracies = np.asarray(accuracies, np.float64)
  if accuracies.shape != costs.shape:
    raise UsageError(
      f'accuracies has the shape {accuracies.shape} and costs '
      f'{costs.shape}; give one of each per exit.'
    )
  return costs, accuracies


def anytime_accuracy(
  costs: ArrayLike,
  accuracies: ArrayLike,
  budgets: ArrayLike,
  floor: float = 0.0,
) -> np.ndarray:
  """Returns the accuracy A(b) at each budget.

  Args:
    costs: (exits,) cumulative costs, not falling.
    accuracies: (exits,) accuracies.
    budgets: budgets of any shape, in the unit of the costs.
    floor: what a budget below the first exit earns, usually chance.

  Returns:
    The accuracies, float64, of the shape of `budgets`.

  Raises:
    UsageError: costs or accuracies do not describe exits.
  """
  costs, accuracies = _checked(costs, accuracies)
  reached = np.searchsorted(costs, np.asarray(budgets), side='right')
  return np.concatenate([[floor], accuracies])[reached]


def step_area(
  costs: ArrayLike,
  accuracies: ArrayLike,
  low: float,
  high: float,
  floor: float = 0.0,
) -> float:
  """Returns the mean height of the anytime curve over a budget range.

  This is the area under the step curve, divided by the width of the range, so
  that it lies between 0 and 1 as accuracies do:

      1 / (high - low) * integral from low to high of A(b) db

  Args:
    costs: (exits,) cumulative costs, not falling.
    accuracies: (exits,) accuracies.
    low: the least budget, in the unit of the costs.
    high: the largest budget; where it equals `low`, A(low) is returned.
    floor: what a budget below the first exit earns, usually chance.

  Returns:
    The normalised area, in the unit of the accuracies.

  Raises:
    UsageError: costs and accuracies do not describe exits, or the range is
      empty.

  Example:
    >>> import ms_ranas_jax as mr
    >>> round(mr.step_area([1.0, 3.0], [0.6, 0.8], 1.0, 5.0), 3)
    0.7
  """
  costs, accuracies = _checked(costs, accuracies)
  if not (np.isfinite([low, high]).all() and low <= high):
    raise UsageError(
      f'the budget range [{low}, {high}] is empty; give low <= high.'
    )
  if low == high:
    return float(anytime_accuracy(costs, accuracies, low, floor))
  # The curve is constant between the corners -inf, c_0, ..., c_{K-1}, inf.
  corners = np.clip(np.concatenate([[low], costs, [high]]), low, high)
  heights = np.concatenate([[floor], accuracies])
  return float(heights @ np.diff(corners) / (high - low))


def expected_accuracy(
  costs: ArrayLike,
  accuracies: ArrayLike,
  chance: float,
  distribution: Uniform | Discrete | None = None,
) -> float:
  """Returns the expected accuracy under a budget distribution.

  Eq. (4) of the paper with the 0-1 loss, and the budget independent of the
  image: E_B[A(B)].

  Args:
    costs: (exits,) cumulative costs, not falling.
    accuracies: (exits,) accuracies.
    chance: what a budget below the first exit earns: one over the number of
      classes.
    distribution: of the budget, in the unit of the costs; by default uniform
      over [0, cost of the last exit].

  Returns:
    The expected accuracy, in the unit of the accuracies.

  Raises:
    UsageError: the arguments do not describe exits or a distribution.

  Examples:
    >>> expected_accuracy([1.0, 3.0], [0.6, 0.8], 0.1, Uniform(0.0, 4.0))
    0.525
    >>> expected_accuracy([1.0, 3.0], [0.6, 0.8], 0.1, Discrete((1.0, 9.0)))
    0.7
  """
  if distribution is None:
    distribution = Uniform(0.0, float(checked_costs(costs)[-1]))
  if isinstance(distribution, Uniform):
    return step_area(
      costs, accuracies, distribution.low, distribution.high, chance
    )
  budgets = np.asarray(distribution.budgets, np.float64)
  if distribution.probabilities is None:
    probabilities = np.full(budgets.shape, 1 / max(budgets.size, 1))
  else:
    probabilities = np.asarray(distribution.probabilities, np.float64)
  if (
    budgets.ndim != 1
    or not budgets.size
    or probabilities.shape != budgets.shape
    or not (probabilities >= 0).all()
    or not np.isclose(probabilities.sum(), 1)
  ):
    raise UsageError(
      'the budget distribution needs one probability per budget, none '
      'negative, that sum to 1.'
    )
  earned = anytime_accuracy(costs, accuracies, budgets, chance)
  return float(earned @ probabilities)
