"""The grid of cells as a plan: pure Python, no arrays.

The network, the cost model and the pictures all read the same plan. Layers
are columns, counted in cells; scales are rows, scale 0 the finest (the
paper's "horizontal level", section 3.2). Only what an exit needs is planned,
and every piece knows the step of computation (the exit) that first needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.fields import Rule
from ms_ranas_jax.fields import field
from ms_ranas_jax.fields import is_sequence_of
from ms_ranas_jax.fields import is_whole
from ms_ranas_jax.fields import one_of
from ms_ranas_jax.fields import whole
from ms_ranas_jax.space import protocol

STEM_LAYER = -1
_STEM_OF_ONE_SCALE = 3
ALL_BUT_FIRST = 'all_but_first'
LAST = 'last'
LINKS = DENSE, SEPARABLE = 'dense', 'separable'


def exits_field(default: str, meaning: str) -> Any:
  """Returns the field of families that choose their exits."""
  return field(
    default,
    Rule(
      lambda v: isinstance(v, str) or is_sequence_of(is_whole)(v),
      f"'{ALL_BUT_FIRST}', '{LAST}' or a tuple of layers",
      mixed=True,
    ),
    meaning,
  )


@dataclasses.dataclass(frozen=True)
class _GridSizes:
  layers: int = field(
    5, whole(1), 'cells in a row; reductions at a third and two thirds'
  )
  nodes: int = field(2, whole(1), 'nodes per cell')
  scales: int = protocol.scales_field()
  scale_growth: int = field(
    2, whole(1), 'channels of a scale over those of the finer one'
  )
  exits: str | tuple[int, ...] = exits_field(
    ALL_BUT_FIRST, 'the layers with a classifier'
  )
  stem_multiplier: int = field(
    0,
    whole(0),
    'channels of the stem over those of its scale; 0 is 3 with one scale, as '
    'in DARTS, and 1 with more',
  )
  links: str = field(
    DENSE,
    one_of(*LINKS),
    'diagonal and vertical 3x3 convolutions, from one scale to the next',
  )


@dataclasses.dataclass(frozen=True)
class GridConfig(_GridSizes):
  """The sizes of the network of a search."""

  channels: int = field(16, whole(1), 'initial ones of the finest scale')

  @property
  def width(self) -> int:
    """The channels."""
    return self.channels


@dataclasses.dataclass(frozen=True)
class DerivedGridConfig(_GridSizes, protocol.NetworkConfig):
  """The sizes of a network of cells that is trained."""

  boosting: float = protocol.boosting_field()


def derived_config(config: protocol.NetworkConfig) -> DerivedGridConfig:
  """Returns the sizes of a network to train whose cells are searched for.

  Args:
    config: `config.train.network`.

  Raises:
    UsageError: the networks of its family are no grids of cells.
  """
  if not isinstance(config, DerivedGridConfig):
    raise UsageError(
      f'config.train.network.family = {config.family!r} is no grid of cells to '
      'search for; give a family whose config is a grid.DerivedGridConfig.'
    )
  return config


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
  """The sizes of a network.

  Attributes:
    channels: initial channels C0 of scale 0.
    layers: number of layers of cells; reductions stand at a third and two.
    nodes: nodes per cell.
    scales: number of scales S; 1 is the DARTS network.
    scale_growth: channels of scale s are `channels * scale_growth**s`.
    exits: 'all_but_first', 'last', or a tuple of layers; the last layer's
      classifier is always there.
    image_shape: (height, width, channels) of the input.
    num_classes: classes of the classifiers.
    stem_multiplier: the stem has `stem_multiplier` times the scale's channels;
      0 is 3 with one scale, as in DARTS, and 1 with more.
    links: the diagonal and vertical convolutions are 'dense', or 'separable':
      ReLU, depthwise, 1x1.
    boosting: see `protocol.SteppedNetwork`; 0 is off.
  """

  channels: int
  layers: int
  nodes: int
  scales: int = 1
  scale_growth: int = 2
  exits: str | tuple[int, ...] = ALL_BUT_FIRST
  image_shape: tuple[int, int, int] = (32, 32, 3)
  num_classes: int = 10
  stem_multiplier: int = 0
  links: str = DENSE
  boosting: float = 0.0


def network_spec(
  config: GridConfig | DerivedGridConfig,
  image_shape: tuple[int, int, int],
  num_classes: int,
) -> NetworkSpec:
  """Returns the sizes that a config asks for.

  Args:
    config: where its width is still to be chosen, a nominal one is taken.
    image_shape: (height, width, channels) of the images.
    num_classes: how many classes there are.
  """
  return NetworkSpec(
    channels=config.width,
    layers=config.layers,
    nodes=config.nodes,
    scales=config.scales,
    scale_growth=config.scale_growth,
    exits=config.exits,
    image_shape=image_shape,
    num_classes=num_classes,
    stem_multiplier=config.stem_multiplier,
    links=config.links,
    boosting=(
      config.boosting if isinstance(config, DerivedGridConfig) else 0.0
    ),
  )


@dataclasses.dataclass(frozen=True)
class Feature:
  """A feature map: the output of the stem (layer -1) or of a cell."""

  layer: int
  scale: int
  height: int
  width: int
  channels: int

  @property
  def name(self) -> str:
    """The name of the module that computes it, also its key in `params`."""
    if self.layer == STEM_LAYER:
      return f'stem_{self.scale}'
    return f'cell_{self.layer}_{self.scale}'


@dataclasses.dataclass(frozen=True)
class Stem:
  """A 3x3 convolution with BN: of the image, or of the next finer stem.

  The latter is the paper's vertical convolution, stride 2, and may be separable
  as the diagonal ones.
  """

  output: Feature
  step: int


@dataclasses.dataclass(frozen=True)
class CellInput:
  """How one of a cell's two inputs is made.

  Attributes:
    horizontal: the feature of the same scale.
    diagonal: the feature of the next finer scale, None at scale 0.
    halve: the input has to be halved once more, because the layer between it
      and the cell was a reduction.
  """

  horizontal: Feature
  diagonal: Feature | None
  halve: bool


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell at (layer, scale).

  Attributes:
    inputs: the features of layers l-2 and l-1, states 0 and 1 of the cell.
    reduction: whether it is a reduction cell.
    height: rows of the cell's inputs once they are preprocessed.
    width: columns of the same.
    channels: channels of every state of the cell.
    output: the feature that it computes.
    step: the first exit that needs it.
  """

  inputs: tuple[CellInput, CellInput]
  reduction: bool
  height: int
  width: int
  channels: int
  output: Feature
  step: int


class Exit(protocol.FeatureExit):
  """A classifier: global average pool and a dense layer on `feature`."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """A network as data.

  Attributes:
    spec: the sizes that it was made from; `stem_multiplier` is never 0.
    stems: finest first.
    cells: in an order in which they can be computed, step after step.
    exits: in the order of their layers.
  """

  spec: NetworkSpec
  stems: tuple[Stem, ...]
  cells: tuple[Cell, ...]
  exits: tuple[Exit, ...]


def reduction_layers(layers: int) -> tuple[int, ...]:
  """Returns the layers of reduction cells, as in DARTS."""
  return tuple(sorted({layers // 3, 2 * layers // 3}))


def exit_layers(
  exits: str | Sequence[int], layers: int, field: str = 'spec'
) -> tuple[int, ...]:
  """Returns the layers that an `exits` choice names, the last one included.

  Args:
    exits: 'all_but_first', 'last' or layers.
    layers: the number of layers.
    field: the config section, for error messages.

  Returns:
    Layers in ascending order.

  Raises:
    UsageError: the choice names something that is not there.
  """
  if exits == LAST:
    return (layers - 1,)
  if exits == ALL_BUT_FIRST:
    return tuple(range(1, layers)) or (0,)
  if isinstance(exits, str) or not isinstance(exits, Sequence):
    raise UsageError(
      f"{field}.exits = {exits!r}: give '{ALL_BUT_FIRST}', '{LAST}' or a tuple "
      'of layers.'
    )
  for layer in exits:
    if isinstance(layer, bool) or not isinstance(layer, int):
      raise UsageError(f'{field}.exits: {layer!r} is not a layer number.')
    if not 0 <= layer < layers:
      raise UsageError(
        f'{field}.exits names layer {layer}, but {field}.layers = {layers} '
        f'gives layers 0 to {layers - 1}; remove it or add layers.'
      )
  if len(set(exits)) != len(exits):
    raise UsageError(f'{field}.exits names a layer twice: {tuple(exits)}.')
  return tuple(sorted({*exits, layers - 1}))


def _check_spec(spec: NetworkSpec, field: str) -> None:
  sizes = ('channels', 'layers', 'nodes', 'scales', 'scale_growth')
  protocol.check_sizes(spec, (*sizes, 'num_classes'), field)
  protocol.check_sizes(spec, ('stem_multiplier',), field, least=0)
  if spec.links not in LINKS:
    raise UsageError(
      f'{field}.links = {spec.links!r}: give one of {", ".join(LINKS)}.'
    )
  # Coarser scales put a diagonal and a horizontal half together. Reductions
  # double the channels before a factorized reduce splits them.
  if spec.scales > 1 and spec.channels * spec.scale_growth % 2:
    raise UsageError(
      f'{field}.channels = {spec.channels} with {field}.scale_growth = '
      f'{spec.scale_growth} cannot be split in halves at coarser scales; make '
      'one of them even.'
    )


def _halved(size: int) -> int:
  return (size + 1) // 2


def build_plan(
  spec: NetworkSpec,
  normal_outputs: int | None = None,
  reduction_outputs: int | None = None,
  field: str = 'spec',
) -> Plan:
  """Plans a network.

  Args:
    spec: the sizes.
    normal_outputs: how many states a normal cell concatenates, by default all
      nodes.
    reduction_outputs: the same for a reduction cell.
    field: the config section that error messages name.

  Returns:
    The plan.

  Raises:
    UsageError: the sizes do not make a network; the message names the field.
  """
  _check_spec(spec, field)
  if not spec.stem_multiplier:
    default = _STEM_OF_ONE_SCALE if spec.scales == 1 else 1
    spec = dataclasses.replace(spec, stem_multiplier=default)
  reductions = reduction_layers(spec.layers)
  outputs = {
    False: normal_outputs or spec.nodes,
    True: reduction_outputs or spec.nodes,
  }
  features: dict[tuple[int, int], Feature] = {}
  height, width, _ = spec.image_shape
  channels = spec.channels
  for scale in range(spec.scales):
    if scale:
      if min(height, width) < 2:
        raise UsageError(
          f'{field}.scales = {spec.scales}: scale {scale} of a '
          f'{spec.image_shape[0]}x{spec.image_shape[1]} image would fall below '
          f'1x1; give at most {scale} scales.'
        )
      height, width = _halved(height), _halved(width)
      channels *= spec.scale_growth
    features[STEM_LAYER, scale] = Feature(
      STEM_LAYER, scale, height, width, spec.stem_multiplier * channels
    )

  cells: dict[tuple[int, int], Cell] = {}
  multiplier = 1
  for layer in range(spec.layers):
    reduction = layer in reductions
    halve_first = layer - 1 in reductions
    multiplier *= 2 if reduction else 1
    before = (max(layer - 2, STEM_LAYER), max(layer - 1, STEM_LAYER))
    for scale in range(spec.scales):
      channels = spec.channels * spec.scale_growth**scale * multiplier
      previous = features[before[1], scale]
      height, width = previous.height, previous.width
      if reduction:
        if min(height, width) < 2:
          raise UsageError(
            f'{field}.scales = {spec.scales} with {field}.layers = '
            f'{spec.layers}: the reduction of layer {layer} would bring scale '
            f'{scale} of a {spec.image_shape[0]}x{spec.image_shape[1]} image '
            'below 1x1; give fewer scales or a larger image.'
          )
        height, width = _halved(height), _halved(width)
      output = Feature(
        layer, scale, height, width, channels * outputs[reduction]
      )
      features[layer, scale] = output
      first, second = (
        CellInput(
          horizontal=features[source, scale],
          diagonal=features[source, scale - 1] if scale else None,
          halve=halve_first and position == 0,
        )
        for position, source in enumerate(before)
      )
      cells[layer, scale] = Cell(
        inputs=(first, second),
        reduction=reduction,
        height=previous.height,
        width=previous.width,
        channels=channels,
        output=output,
        step=-1,
      )

  exits = tuple(
    Exit(index, features[layer, spec.scales - 1])
    for index, layer in enumerate(exit_layers(spec.exits, spec.layers, field))
  )
  protocol.check_boosting(spec.boosting, len(exits), field)
  steps: dict[tuple[int, int], int] = {}

  def need(feature: Feature, step: int) -> None:
    key = feature.layer, feature.scale
    if key in steps:
      return
    steps[key] = step
    if feature.layer == STEM_LAYER:
      if feature.scale:
        need(features[STEM_LAYER, feature.scale - 1], step)
      return
    for cell_input in cells[key].inputs:
      need(cell_input.horizontal, step)
      if cell_input.diagonal is not None:
        need(cell_input.diagonal, step)

  for exit_ in exits:
    need(exit_.feature, exit_.index)
  return Plan(
    spec=spec,
    stems=tuple(
      Stem(features[STEM_LAYER, scale], steps[STEM_LAYER, scale])
      for scale in range(spec.scales)
    ),
    cells=tuple(
      dataclasses.replace(cells[key], step=steps[key])
      for key in sorted(cells, key=lambda k: (steps.get(k, 0), *k))
      if key in steps
    ),
    exits=exits,
  )


def carried_features(plan: Plan, step: int) -> tuple[str, ...]:
  """Returns the names of the features that steps after this one read.

  Args:
    plan: the network.
    step: index of the exit that was come to.
  """
  read: set[Feature | None] = {
    plan.stems[stem.output.scale - 1].output
    for stem in plan.stems
    if stem.step > step and stem.output.scale
  }
  for cell in plan.cells:
    if cell.step > step:
      for source in cell.inputs:
        read |= {source.horizontal, source.diagonal}
  return tuple(
    part.output.name
    for part in (*plan.stems, *plan.cells)
    if part.step <= step and part.output in read
  )
