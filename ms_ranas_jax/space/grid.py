"""The grid of cells as a plan: pure Python, no arrays.

The network, the cost model and the pictures all read the same plan. Layers
are columns, counted in cells; scales are rows, scale 0 the finest (the
paper's "horizontal level", section 3.2). Only what an exit needs is planned,
and every piece knows the step of computation (the exit) that first needs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
STEMS = CIFAR, STRIDE2, IMAGENET = 'cifar', 'stride2', 'imagenet'
# What the layers of DARTS's stem for ImageNet are called, the first two.
_EARLY_NAMES = {-2: 'early', -3: 'first'}
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
    'in DARTS, and 1 with more, or with the stem for ImageNet',
  )
  stem: str = field(
    CIFAR,
    one_of(*STEMS),
    "a 3x3 convolution; 'stride2', of stride 2, for images of 64 pixels and "
    "more; 'imagenet', three of them as in DARTS, for 128 and more",
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
      0 is 3 with one scale, as in DARTS, and 1 with more, or with the stem for
      ImageNet.
    stem: 'cifar', a 3x3 convolution of the image; 'stride2', of stride 2; or
      'imagenet', three of stride 2 as in DARTS's network for ImageNet: the
      first has half of the channels, and the second is what the first cell
      reads beside the third, at twice its size.
    links: the diagonal and vertical convolutions are 'dense', or 'separable':
      ReLU, depthwise, 1x1.
    boosting: see `protocol.SteppedNetwork`; 0 is off.

  Example:
    >>> import ms_ranas_jax as mr
    >>> spec = mr.NetworkSpec(channels=16, layers=7, nodes=2, scales=3)
    >>> len(mr.build_plan(spec).exits)
    6
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
  stem: str = CIFAR


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
    stem=config.stem,
    links=config.links,
    boosting=(
      config.boosting if isinstance(config, DerivedGridConfig) else 0.0
    ),
  )


@dataclasses.dataclass(frozen=True)
class Feature:
  """A feature map: the output of a stem (layers below 0) or of a cell."""

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
    if self.layer < STEM_LAYER:
      return f'stem_{self.scale}_{_EARLY_NAMES[self.layer]}'
    return f'cell_{self.layer}_{self.scale}'


@dataclasses.dataclass(frozen=True)
class Stem:
  """A 3x3 convolution with BN: of the image, or of another stem.

  That of the next finer scale is the paper's vertical convolution, stride 2,
  and may be separable as the diagonal ones.

  Attributes:
    output: the feature that it computes.
    source: what it reads; None is the image.
    stride: of the convolution.
    rectify: whether a ReLU stands first.
    step: the first exit that needs it.
  """

  output: Feature
  source: Feature | None
  stride: int
  rectify: bool
  step: int

  @property
  def is_link(self) -> bool:
    """Whether it leads from a scale to the next."""
    return self.output.scale > 0


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
    stems: in an order in which they can be computed.
    cells: in an order in which they can be computed, step after step.
    exits: in the order of their layers.

  Example:
    >>> import ms_ranas_jax as mr
    >>> spec = mr.NetworkSpec(channels=4, layers=3, nodes=1, scales=2)
    >>> plan = mr.build_plan(spec)
    >>> [exit_.layer for exit_ in plan.exits]
    [1, 2]
    >>> len(plan.cells)
    5
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
  for name, choices in ('links', LINKS), ('stem', STEMS):
    value = getattr(spec, name)
    if value not in choices:
      raise UsageError(
        f'{field}.{name} = {value!r}: give one of {", ".join(choices)}.'
      )
  if spec.stem == IMAGENET and spec.channels % 2:
    raise UsageError(
      f"{field}.channels = {spec.channels} with {field}.stem = 'imagenet', "
      'whose first convolution has half of them; make it even.'
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

  Example:
    >>> import ms_ranas_jax as mr
    >>> spec = mr.NetworkSpec(channels=4, layers=3, nodes=1, exits='last')
    >>> len(mr.build_plan(spec).exits)
    1
  """
  _check_spec(spec, field)
  if not spec.stem_multiplier:
    one = spec.scales == 1 and spec.stem != IMAGENET
    default = _STEM_OF_ONE_SCALE if one else 1
    spec = dataclasses.replace(spec, stem_multiplier=default)
  reductions = reduction_layers(spec.layers)
  outputs = {
    False: normal_outputs or spec.nodes,
    True: reduction_outputs or spec.nodes,
  }
  stems = {
    (stem.output.layer, stem.output.scale): stem for stem in _stems(spec, field)
  }
  features = {place: stem.output for place, stem in stems.items()}
  # Such stems bring a map of twice the size, as if a reduction had been.
  has_early = spec.stem == IMAGENET
  first_layer = STEM_LAYER - has_early

  cells: dict[tuple[int, int], Cell] = {}
  multiplier = 1
  for layer in range(spec.layers):
    reduction = layer in reductions
    halve_first = layer - 1 in reductions or (has_early and not layer)
    multiplier *= 2 if reduction else 1
    before = (max(layer - 2, first_layer), max(layer - 1, STEM_LAYER))
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
    if key in stems:
      source = stems[key].source
      if source is not None:
        need(source, step)
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
      dataclasses.replace(stem, step=steps[place])
      for place, stem in stems.items()
      if place in steps
    ),
    cells=tuple(
      dataclasses.replace(cells[key], step=steps[key])
      for key in sorted(cells, key=lambda k: (steps.get(k, 0), *k))
      if key in steps
    ),
    exits=exits,
  )


def _stems(spec: NetworkSpec, field: str) -> Iterator[Stem]:
  """Yields the stems, finest first at each scale; their step is not known."""
  height, width, _ = spec.image_shape
  layers = range(-3, 0) if spec.stem == IMAGENET else range(STEM_LAYER, 0)
  stride = 1 if spec.stem == CIFAR else 2
  finer: dict[int, Feature] = {}
  for layer in layers:
    if stride == 2:
      height, width = _smaller(
        spec,
        height,
        width,
        f'{field}.stem = {spec.stem!r}: what it makes',
        "choose 'cifar', or give larger images",
      )
    channels = spec.stem_multiplier * spec.channels
    source = finer.get(layer - 1)
    finer[layer] = Feature(
      layer, 0, height, width, channels // 2 if layer == -3 else channels
    )
    yield Stem(finer[layer], source, stride, source is not None, -1)
  for scale in range(1, spec.scales):
    for layer in (layer for layer in layers if layer > -3):
      source = finer[layer]
      height, width = _smaller(
        spec,
        source.height,
        source.width,
        f'{field}.scales = {spec.scales}: scale {scale}',
        f'give at most {scale} scales',
      )
      channels = source.channels * spec.scale_growth
      finer[layer] = Feature(layer, scale, height, width, channels)
      yield Stem(finer[layer], source, 2, False, -1)


def _smaller(
  spec: NetworkSpec, height: int, width: int, what: str, mend: str
) -> tuple[int, int]:
  """Returns half of a size, rounded up; refuses to halve 1, in words."""
  if min(height, width) < 2:
    rows, columns, _ = spec.image_shape
    raise UsageError(
      f'{what} of a {rows}x{columns} image would fall below 1x1; {mend}.'
    )
  return _halved(height), _halved(width)


def carried_features(plan: Plan, step: int) -> tuple[str, ...]:
  """Returns the names of the features that steps after this one read.

  Args:
    plan: the network.
    step: index of the exit that was come to.
  """
  read: set[Feature | None] = {
    stem.source for stem in plan.stems if stem.step > step
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
