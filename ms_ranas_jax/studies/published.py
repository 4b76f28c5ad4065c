"""Published numbers, to stand beside measured ones; never mixed with them.

All are of the papers named, on their terms: other data, schedules and sizes
than a study's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

_DARTS = 'Liu, Simonyan and Yang, arXiv:1806.09055, table 1'
_GHN = 'Zhang, Ren and Urtasun, arXiv:1810.05749, table 2 (as reviewed)'
_PC_DARTS = 'Xu et al., arXiv:1907.05737, table 1'
_MSDNET = (
  'MSDNet of Huang et al., arXiv:1703.09844: 10 blocks, 32 channels, weights '
  'of a public reproduction; costs by its op counter'
)
_MS_RANAS = 'Cioflan and Timofte, MS-RANAS, section '


@dataclasses.dataclass(frozen=True)
class Published:
  """A published result.

  Attributes:
    label: what a reader calls it.
    said: the number or the claim, in words.
    source: where it stands.
    figures: the figures that it belongs beside.
    accuracies: per exit, in [0, 1]; () where there are none.
    flops_msdnet: per exit; () where they are not known.
    params: of the whole network, where they are known.
    ahead_from: the cost, flops as MSDNet counts, from which MS-RANAS is said
      to be ahead of MSDNet.
  """

  label: str
  said: str
  source: str
  figures: tuple[str, ...]
  accuracies: tuple[float, ...] = ()
  flops_msdnet: tuple[float, ...] = ()
  params: float | None = None
  ahead_from: float | None = None

  def to_dict(self) -> dict[str, Any]:
    """Returns the form that `study/table.json` holds."""
    fields = dataclasses.asdict(self)
    del fields['figures']
    return fields


def _cifar10(
  label: str, error: float, spread: float | None, params: float, source: str
) -> Published:
  """A network with one exit, by its error on CIFAR-10 in %."""
  said = f'{100 - error:.2f} %' + (f' ± {spread:.2f}' if spread else '')
  return Published(
    label,
    said,
    source,
    ('figure6', 'figure9'),
    accuracies=(1 - error / 100,),
    params=params,
  )


PUBLISHED: tuple[Published, ...] = (
  Published(
    'MSDNet, 10 exits',
    '90.80 % at the first exit, 94.17 % at the last',
    _MSDNET,
    ('figure9',),
    accuracies=tuple(
      value / 100
      for value in (
        *(90.80, 92.33, 93.18, 93.76, 94.14),
        *(94.13, 94.27, 94.22, 94.21, 94.17),
      )
    ),
    flops_msdnet=tuple(
      1e6 * value
      for value in (
        *(26.6, 39.5, 54.4, 72.6, 83.9),
        *(97.0, 111.8, 125.4, 136.0, 148.0),
      )
    ),
  ),
  _cifar10('random search in the space of DARTS', 3.29, 0.15, 3.2e6, _DARTS),
  _cifar10('DARTS, order 1', 3.00, 0.14, 3.3e6, _DARTS),
  _cifar10('DARTS, order 2', 2.76, 0.09, 3.3e6, _DARTS),
  _cifar10('GHN top-best', 2.84, 0.07, 5.7e6, _GHN),
  _cifar10('PC-DARTS', 2.57, None, 3.6e6, _PC_DARTS),
  Published(
    'MS-RANAS',
    'three scales in the search add almost 2 % to a network of one scale',
    _MS_RANAS + '4.1',
    ('figure4',),
  ),
  Published(
    'MS-RANAS',
    'the first exit is within 1.25 % of the last, at 12 % of its cost',
    _MS_RANAS + '4.3',
    ('figure6',),
  ),
  Published(
    'MS-RANAS',
    'ahead of MSDNet above 0.7 on its axis, which must be in 10⁸ flops',
    _MS_RANAS + '4.4',
    ('figure9',),
    ahead_from=0.7e8,
  ),
  Published(
    'MS-RANAS',
    'ahead of MSDNet above 0.62 on its axis, which must be in 10⁸ flops',
    _MS_RANAS + '4.4',
    ('figure10',),
    ahead_from=0.62e8,
  ),
)


def of_figure(name: str) -> tuple[Published, ...]:
  """Returns the results that belong beside a figure.

  Args:
    name: such as 'figure9'.
  """
  return tuple(result for result in PUBLISHED if name in result.figures)
