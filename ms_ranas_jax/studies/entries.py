"""What has to be run for each figure of the paper; data only."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import types
from typing import Any

from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.search import hypernetwork_search
from ms_ranas_jax.search import methods
from ms_ranas_jax.sections import CPU
from ms_ranas_jax.sections import PAPER
from ms_ranas_jax.space import grid

# How far the params of networks that are compared may be apart.
PARAMS_TOLERANCE = 0.03


@dataclasses.dataclass(frozen=True)
class Setting:
  """What a network is searched or trained with (section 4.1).

  Attributes:
    scales: rows of the grid.
    exits: a classifier after every layer but the first, or the last one alone.
    cutout: whether squares are masked out of the images.
  """

  scales: int = 1
  exits: bool = False
  cutout: bool = False

  def words(self) -> list[str]:
    """Returns what sets it apart from one scale, one exit, no cutout."""
    return [
      word
      for word, said in (
        ('cutout', self.cutout),
        ('exits', self.exits),
        (f'{self.scales} scales', self.scales > 1),
      )
      if said
    ]

  @property
  def label(self) -> str:
    """What a reader calls it."""
    return ', '.join(self.words()) or 'baseline'

  @property
  def name(self) -> str:
    """What a folder is called after it."""
    return '+'.join(self.words()).replace(' ', '') or 'baseline'

  def changes(self, section: str, cutout: int) -> dict[str, Any]:
    """Returns the fields of a config that it sets.

    Args:
      section: 'search' or 'train'.
      cutout: side of the square, in pixels.
    """
    return {
      f'{section}.cutout': cutout if self.cutout else 0,
      f'{section}.network.scales': self.scales,
      f'{section}.network.exits': 'all_but_first' if self.exits else 'last',
    }


@dataclasses.dataclass(frozen=True)
class Entry:
  """A line of a figure's table; one run per seed.

  Attributes:
    name: of its folders; no two of a figure are the same.
    label: what a reader calls it.
    search: what its cells are searched with; None leaves the config's.
    train: what its network is trained with; None leaves the config's.
    changes: more fields of the config, by their full names.
    aims_at: the entry whose params the search aims at; '' is none.
  """

  name: str
  label: str
  search: Setting | None = None
  train: Setting | None = None
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  aims_at: str = ''


@dataclasses.dataclass(frozen=True)
class Figure:
  """A figure of the paper.

  Attributes:
    title: what it shows.
    kind: how it is drawn: 'settings', 'exits' or 'anytime', see `picture`.
    entries: its lines.
    compared: the entries that the range of costs of the step area is common
      to; () is all of them.
    params_of: the entry that all networks must have as many params as, within
      `PARAMS_TOLERANCE`; '' is none.
  """

  title: str
  kind: str
  entries: tuple[Entry, ...]
  compared: tuple[str, ...] = ()
  params_of: str = ''


def _pair(search: Setting, train: Setting) -> Entry:
  return Entry(
    f'{search.name}_to_{train.name}',
    f'{search.label} → {train.label}',
    search,
    train,
  )


def _searched(setting: Setting) -> Entry:
  """What section 4.1 compares: the training is always the baseline's."""
  return Entry(setting.name, setting.label, setting, Setting())


# Section 4.1: all combinations of what may be added to a search.
_FIGURE4 = Figure(
  'What the search setting does to a network of one scale and one classifier',
  'settings',
  tuple(
    _searched(Setting(scales, exits, cutout))
    for scales in (1, 2, 3)
    for exits in (False, True)
    for cutout in (False, True)
  ),
)

_EXITS = Setting(exits=True)
_CUT_EXITS = Setting(exits=True, cutout=True)

# Section 4.2, in the order of its text: cutout, first in the search alone;
# then exits in the search; then scales in the training, in both, and with
# exits in the search.
_FIGURE5 = Figure(
  'What search and training settings do to a network with exits',
  'settings',
  (
    _pair(Setting(), _EXITS),
    _pair(Setting(cutout=True), _EXITS),
    _pair(_EXITS, _EXITS),
    _pair(Setting(cutout=True), _CUT_EXITS),
    _pair(_CUT_EXITS, _CUT_EXITS),
    *(
      _pair(search, Setting(scales, exits=True))
      for scales in (2, 3)
      for search in (
        Setting(),
        Setting(scales),
        Setting(scales, exits=True),
      )
    ),
  ),
)

# Section 4.3: without cutout; exits and scales in the search or not.
_FIGURE6 = Figure(
  'Accuracy of every exit against its cost',
  'exits',
  (
    _pair(Setting(), _EXITS),
    _pair(_EXITS, _EXITS),
    *(
      _pair(search, Setting(scales, exits=True))
      for scales in (2, 3)
      for search in (Setting(scales), Setting(scales, exits=True))
    ),
  ),
)

# Section 4.4: the network that the paper took its size from, and one for a CPU.
_MSDNET: Mapping[str, Mapping[str, Any]] = types.MappingProxyType(
  {
    PAPER: {'blocks': 11, 'base': 4, 'step': 2, 'channels': 16, 'growth': 6},
    CPU: {'blocks': 3, 'base': 2, 'step': 3, 'channels': 8, 'growth': 4},
  }
)
# Sizes that give the DARTS_V2 cell, with exits, the params of that network;
# the classifiers of 100 classes weigh in.
_DARTS: Mapping[tuple[str, str], Mapping[str, Any]] = types.MappingProxyType(
  {
    ('figure9', PAPER): {'layers': 20, 'channels': 46},
    ('figure9', CPU): {'layers': 7, 'channels': 30},
    ('figure10', PAPER): {'layers': 18, 'channels': 48},
    ('figure10', CPU): {'layers': 5, 'channels': 36},
  }
)
# The search of Zhang, Ren and Urtasun (2019): 1,000 candidates, of which the
# best ten are trained. It does more steps than the differentiable search, since
# one of them takes less time; more still beside one that looks ahead.
_GHN: Mapping[str, Mapping[str, Any]] = types.MappingProxyType(
  {
    PAPER: {
      'search.epochs': 300,
      'search.candidates.random': 1000,
      'search.ghn.short_epochs': 50,
      'search.ghn.short_candidates': 10,
    },
    CPU: {
      'search.epochs': 7,
      'search.candidates.random': 100,
      'search.candidates.images': 512,
      'search.ghn.short_epochs': 1,
      'search.ghn.short_candidates': 3,
    },
  }
)


def _of_network(**fields: Any) -> dict[str, Any]:
  return {f'train.network.{name}': value for name, value in fields.items()}


def _foreign(others: Any, own: type) -> dict[str, Any]:
  """Returns the fields that one config has alone, at their defaults."""
  known = {field.name for field in dataclasses.fields(own)}
  return {
    name: value
    for name, value in dataclasses.asdict(others).items()
    if name not in known
  }


def _of_ghn(size: str) -> dict[str, Any]:
  """Returns what makes a search that of a hypernetwork."""
  foreign = _foreign(
    methods.BilevelConfig(), hypernetwork_search.HypernetworkConfig
  )
  return {
    **{f'search.{name}': value for name, value in foreign.items()},
    'search.method': 'ghn',
    **_GHN[size],
  }


def _anytime(name: str, size: str) -> Figure:
  """MS-RANAS, MSDNet, GHN and DARTS, all by the recipe of the config."""
  return Figure(
    'Anytime prediction of networks with equally many params',
    'anytime',
    (
      Entry('ms_ranas', 'MS-RANAS', aims_at='msdnet'),
      Entry(
        'msdnet',
        'MSDNet',
        changes={
          # It has neither, and refuses them.
          'train.drop_path': 0.0,
          'train.remat': False,
          **_of_network(
            **_foreign(grid.DerivedGridConfig(), msdnet_plan.MSDNetConfig),
            family='msdnet',
            scales=3,
            step_mode='even',
            growth_factors=(1, 2, 4),
            bottleneck_factors=(1, 2, 4),
            prune='max',
            **_MSDNET[size],
          ),
        },
      ),
      Entry('ghn', 'GHN', changes=_of_ghn(size), aims_at='msdnet'),
      Entry(
        'darts',
        'DARTS with exits',
        changes={
          'train.genotype': 'DARTS_V2',
          **_of_network(scales=1, nodes=4, **_DARTS[name, size]),
        },
      ),
    ),
    compared=('ms_ranas', 'msdnet'),
    params_of='msdnet',
  )


def of(name: str, size: str) -> Figure:
  """Returns a figure.

  Args:
    name: one of `sections.FIGURES`.
    size: one of `sections.SIZES`.
  """
  if name in ('figure9', 'figure10'):
    return _anytime(name, size)
  return {'figure4': _FIGURE4, 'figure5': _FIGURE5, 'figure6': _FIGURE6}[name]
