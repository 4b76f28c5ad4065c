"""The widest network within a budget, by the cost model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
import types
from typing import TypeVar

from ms_ranas_jax.costs import cost
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import protocol

# What a budget can limit; all of the last exit.
MACS, PARAMS, DEPLOYED, BYTES = LIMITS = (
  'macs',
  'params',
  'params_deployed',
  'bytes',
)
FLOAT32 = 'float32'
# The bytes of one number in each type that a network can be shipped in.
BYTES_OF = types.MappingProxyType(
  {FLOAT32: cost.BYTES_PER_FLOAT32, 'bfloat16': 2, 'int8': 1}
)
# Widths that make a network are not further apart, as their divisors are small.
_GAP = 64
_WIDEST = 2**14

Network = TypeVar('Network', bound=protocol.AnytimeNetwork)


def measured(
  network: protocol.AnytimeNetwork, dtype: str = FLOAT32
) -> dict[str, int]:
  """Returns what a network costs of each thing that can be limited.

  A chip has to hold all params and, at the worst moment, the peak of the
  activations of one image:

      bytes = bytes of a number * (params + elements at the peak)

  In 'int8' every param and every element is one byte. The scales and zero
  points of quantised tensors, and biases that are kept in int32, are left out:
  they depend on how a network is quantised, which is not decided here.

  Args:
    network: its params are not needed.
    dtype: one of `BYTES_OF`, the type that params and activations are in.

  Returns:
    `macs`, `params`, `params_deployed` and `bytes` of the last exit.
  """
  found = cost.network_cost(network)
  last = found.exits[-1]
  peak = last.peak_activation_bytes // cost.BYTES_PER_FLOAT32
  return {
    MACS: last.macs,
    PARAMS: last.total_params,
    DEPLOYED: found.params_deployed,
    BYTES: BYTES_OF[dtype] * (last.total_params + peak),
  }


def unit(limit: str, dtype: str) -> str:
  """Returns what a number of this limit counts, in words.

  Args:
    limit: one of `LIMITS`.
    dtype: one of `BYTES_OF`.
  """
  return f'{limit} in {dtype}' if limit == BYTES else limit


def widest(
  build: Callable[[int], Network],
  limits: Mapping[str, float],
  field: str = 'train.budget',
  dtype: str = FLOAT32,
) -> tuple[int, Network]:
  """Returns the widest network that fits.

  All costs grow with the width, so the width is found by halving.

  Args:
    build: initial channels -> the network; raises `UsageError` for a width
      that makes none.
    limits: any of `LIMITS` -> the most there may be, see `measured`.
    field: the config section that error messages name.
    dtype: that 'bytes' counts in, see `measured`.

  Returns:
    The initial channels, and the network.

  Raises:
    UsageError: nothing is limited, or the narrowest network does not fit.
  """
  if not limits:
    raise UsageError(
      f'{field} limits nothing, so there is no widest network; set '
      f'{" or ".join(f"{field}.{name}" for name in LIMITS)}.'
    )

  @functools.cache
  def built(channels: int) -> Network | None:
    try:
      return build(channels)
    except UsageError:
      return None

  def fits(network: Network) -> bool:
    costs = measured(network, dtype)
    return all(costs[name] <= limit for name, limit in limits.items())

  def next_valid(channels: int) -> tuple[int, Network] | None:
    """The narrowest width of at least so many channels, if any is near."""
    for width in range(channels, min(channels + _GAP, _WIDEST)):
      network = built(width)
      if network is not None:
        return width, network
    return None

  best = next_valid(1)
  if best is None:
    build(1)  # Says why it makes no network.
    raise UsageError(f'{field}: no width up to {_GAP} makes a network.')
  narrowest, network = best
  if not fits(network):
    costs = measured(network, dtype)
    raise UsageError(
      f'{field}: the narrowest network, of {narrowest} channels, has '
      + ', '.join(
        f'{costs[name]:,} {unit(name, dtype)} ({limit:,.0f} allowed)'
        for name, limit in limits.items()
      )
      + '; allow more, or choose a smaller network.'
    )
  # Doubled until it does not fit, then halved between.
  above = 2 * narrowest
  while (wider := next_valid(above)) is not None and fits(wider[1]):
    best, above = wider, 2 * wider[0]
  while best[0] + 1 < above:
    middle = (best[0] + above) // 2
    wider = next_valid(middle)
    if wider is not None and wider[0] < above and fits(wider[1]):
      best = wider
    else:
      above = middle
  return best
