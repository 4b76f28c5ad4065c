"""What a network of any family costs, by arithmetic over its plan.

A network spells itself out as rows, see `protocol.CostRow`. Multiply-adds and
parameters add up over the rows that an exit needs; the activation memory comes
from playing the rows through in order and freeing each tensor after its last
use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

from ms_ranas_jax.space.protocol import AnytimeNetwork
from ms_ranas_jax.space.protocol import CostRow

METRICS = ('macs', 'flops_msdnet', 'params', 'params_deployed')
BYTES_PER_FLOAT32 = 4


@dataclasses.dataclass(frozen=True)
class ExitCost:
  """The cost of an answer at one exit.

  Attributes:
    exit: index of the exit.
    layer: the layer after which it stands.
    macs: multiply-adds up to this exit, earlier exits' classifiers included.
    flops_msdnet: the same in the convention of the MSDNet op counter.
    params: parameters read up to this exit.
    total_params: parameters of the whole network.
    peak_activation_bytes: the most activation memory at any time up to this
      exit, batch 1, of the network cut off after it. ReLU, BN and sums are in
      place; the working memory of a convolution is not counted.
    params_deployed: what is left of `params` with every BN folded, see
      `layer_cost`; None where a file of an earlier version does not say.
  """

  exit: int
  layer: int
  macs: int
  flops_msdnet: int
  params: int
  total_params: int
  peak_activation_bytes: int
  params_deployed: int | None = None

  def to_dict(self) -> dict[str, int]:
    """Returns what is known, ready for JSON."""
    values = dataclasses.asdict(self)
    return {name: v for name, v in values.items() if v is not None}


@dataclasses.dataclass(frozen=True)
class NetworkCost:
  """The cost of a network and of each of its exits.

  Example:
    >>> import ms_ranas_jax as mr
    >>> spec = mr.NetworkSpec(channels=4, layers=3, nodes=1, scales=2)
    >>> found = mr.network_cost(mr.search_network(spec))
    >>> found.macs == found.exits[-1].macs
    True
  """

  params: int
  macs: int
  flops_msdnet: int
  params_deployed: int
  exits: tuple[ExitCost, ...]

  def to_dict(self) -> dict[str, Any]:
    """Returns the form that `describe` writes as JSON."""
    return {
      'params': self.params,
      'macs': self.macs,
      'flops_msdnet': self.flops_msdnet,
      'params_deployed': self.params_deployed,
      'exits': [exit_.to_dict() for exit_ in self.exits],
    }


def working_elements(row: CostRow) -> int:
  """Returns the most elements alive inside a row, beside its inputs."""
  most = working = 0
  for layer in row.layers:
    if not layer.in_place:
      most = max(most, working + layer.elements)
      working = layer.elements
  return most


def _peak_elements(
  rows: Sequence[CostRow], tensors: Mapping[str, tuple[str, ...]], image: int
) -> int:
  """Plays rows through and returns the most elements alive at any time."""

  def reads(row: CostRow) -> set[str]:
    return {
      tensor for name in row.inputs for tensor in tensors.get(name, (name,))
    }

  last_use: dict[str, int] = {}
  for index, row in enumerate(rows):
    for tensor in reads(row) | {row.output}:
      last_use[tensor] = index
  alive = {'images': image}
  peak = image
  for index, row in enumerate(rows):
    held = sum(alive.values())
    adds = row.output in alive
    needed = working_elements(row)
    if not adds:
      needed = max(needed, row.elements)
      alive[row.output] = row.elements
    peak = max(peak, held + needed)
    alive = {
      tensor: size
      for tensor, size in alive.items()
      if last_use.get(tensor, -1) > index
    }
  return peak


def network_cost(network: AnytimeNetwork) -> NetworkCost:
  """Returns what a network costs, in total and at each exit.

  Args:
    network: of any family; its params are not needed.

  Returns:
    The cost; the totals are those of the last exit.

  Example:
    >>> import ms_ranas_jax as mr
    >>> spec = mr.NetworkSpec(channels=36, layers=20, nodes=4, exits='last')
    >>> found = mr.network_cost(mr.derived_network(spec, mr.DARTS_V2))
    >>> found.params, found.macs
    (3349342, 528359040)
  """
  rows = network.cost_rows()
  tensors = network.tensors()
  image = math.prod(network.plan.spec.image_shape)
  total_params = sum(row.total('params') for row in rows)
  exits = []
  for exit_ in network.plan.exits:
    needed = [row for row in rows if row.step <= exit_.index]
    exits.append(
      ExitCost(
        exit=exit_.index,
        layer=exit_.layer,
        total_params=total_params,
        peak_activation_bytes=BYTES_PER_FLOAT32
        * _peak_elements(needed, tensors, image),
        **{m: sum(row.total(m) for row in needed) for m in METRICS},
      )
    )
  last = exits[-1]
  return NetworkCost(
    exits=tuple(exits), **{m: getattr(last, m) for m in METRICS}
  )
