"""MSDNet as a plan: pure Python, no arrays.

Multi-Scale Dense Networks (Huang et al., "Multi-Scale Dense Networks for
Resource Efficient Image Classification"), in the form of the public code
(gaohuang/MSDNet, kalviny/MSDNet-PyTorch). Layers are columns, scales are rows,
scale 0 the finest. At every place of a layer the features of the layer before
stand side by side with new ones: at the finest scale those of a horizontal
convolution, below half by a diagonal one of the finer scale and half by a
horizontal one. Blocks of layers end in an exit on the coarsest scale.

The finest scales end early, by `prune`:

- 'max': in intervals of ceil(layers / scales) layers one scale after the other
  ends, and where one does, 1x1 transitions halve the channels of what is left;
- 'min': only what the last layer can still reach is there, and transitions
  stand after a third and two thirds of the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.fields import Rule
from ms_ranas_jax.fields import field
from ms_ranas_jax.fields import is_sequence_of
from ms_ranas_jax.fields import is_whole
from ms_ranas_jax.fields import one_of
from ms_ranas_jax.fields import whole
from ms_ranas_jax.space import protocol

STEM_LAYER = -1
STEP_MODES = ('even', 'lin_grow')
PRUNES = ('max', 'min')
CIFAR = 'cifar'
IMAGENET = 'imagenet'
STEMS = (CIFAR, IMAGENET)
_CIFAR_HEAD = 128
_REDUCTION = 2


@dataclasses.dataclass(frozen=True)
class MSDNetSpec:
  """The sizes of an MSDNet; the names in brackets are those of the public code.

  Attributes:
    channels: of the stem's finest scale (nChannels).
    blocks: how many, each with an exit (nBlocks).
    base: layers of the first block (base).
    step: layers of each other block, or what they grow by (step).
    step_mode: 'even': `step` layers each; 'lin_grow': block i, from 0, has
      step * i + 1 (stepmode).
    growth: new channels of a layer, times the growth factor (growthRate).
    scales: how many (nScales).
    growth_factors: of channels, one per scale (grFactor); () is 1, 2, 4, ...
    bottleneck_factors: channels between a 1x1 and its 3x3 convolution over the
      latter's output, one per scale that is read (bnFactor); 0 leaves the 1x1
      out; () is the growth factors.
    prune: 'max' or 'min', see the module.
    stem: 'cifar': 3x3, and heads of 128 channels; 'imagenet': 7x7 of stride 2,
      max pool, and heads as wide as what they read.
    image_shape: (height, width, channels) of the input.
    num_classes: classes of the classifiers.
    boosting: see `protocol.SteppedNetwork`; 0 is off.

  Example:
    >>> import ms_ranas_jax as mr
    >>> spec = mr.MSDNetSpec(channels=16, blocks=11, base=4, step=2)
    >>> spec.scales, spec.growth
    (3, 6)
  """

  channels: int
  blocks: int
  base: int
  step: int
  step_mode: str = 'even'
  growth: int = 6
  scales: int = 3
  growth_factors: tuple[int, ...] = ()
  bottleneck_factors: tuple[int, ...] = ()
  prune: str = 'max'
  stem: str = CIFAR
  image_shape: tuple[int, int, int] = (32, 32, 3)
  num_classes: int = 10
  boosting: float = 0.0

  @property
  def block_layers(self) -> tuple[int, ...]:
    """The number of layers of each block."""
    rest = range(1, self.blocks)
    if self.step_mode == 'lin_grow':
      return (self.base, *(self.step * block + 1 for block in rest))
    return (self.base, *(self.step for _ in rest))

  @property
  def layers(self) -> int:
    """The number of layers, the stem apart."""
    return sum(self.block_layers)


@dataclasses.dataclass(frozen=True)
class MSDNetConfig(protocol.NetworkConfig):
  """What an MSDNet is asked for in a config, see `MSDNetSpec`."""

  scales: int = protocol.scales_field()
  blocks: int = field(3, whole(1), 'of layers; an exit stands after each')
  base: int = field(2, whole(1), 'layers of the first block')
  step: int = field(
    1, whole(1), 'layers of each other block, or what they grow by'
  )
  step_mode: str = field(
    'even', one_of(*STEP_MODES), "'lin_grow': block i has step * i + 1 layers"
  )
  growth: int = field(
    6, whole(1), 'new channels of a layer at the finest scale'
  )
  growth_factors: tuple[int, ...] = field(
    (),
    Rule(
      is_sequence_of(lambda v: is_whole(v) and v >= 1),
      'a tuple of whole numbers of at least 1',
    ),
    'of channels, one per scale; () is 1, 2, 4, ...',
  )
  bottleneck_factors: tuple[int, ...] = field(
    (),
    Rule(
      is_sequence_of(lambda v: is_whole(v) and v >= 0),
      'a tuple of whole numbers of at least 0',
    ),
    '1x1 over 3x3 convolution, one per scale; 0 is no 1x1 convolution, () is '
    'the growth factors',
  )
  prune: str = field('max', one_of(*PRUNES), 'how the finest scales end')
  stem: str = field(
    'cifar',
    one_of(*STEMS),
    "3x3; 'imagenet': 7x7 of stride 2, max pool, wide heads",
  )
  boosting: float = protocol.boosting_field()


def msdnet_spec(
  config: MSDNetConfig, image_shape: tuple[int, int, int], num_classes: int
) -> MSDNetSpec:
  """Returns the sizes that a config asks for.

  Args:
    config: where its width is still to be chosen, a nominal one is taken.
    image_shape: (height, width, channels) of the images.
    num_classes: how many classes there are.
  """
  return MSDNetSpec(
    channels=config.width,
    scales=config.scales,
    blocks=config.blocks,
    base=config.base,
    step=config.step,
    step_mode=config.step_mode,
    growth=config.growth,
    growth_factors=config.growth_factors,
    bottleneck_factors=config.bottleneck_factors,
    prune=config.prune,
    stem=config.stem,
    image_shape=image_shape,
    num_classes=num_classes,
    boosting=config.boosting,
  )


@dataclasses.dataclass(frozen=True)
class Feature:
  """A feature map: of the stem (layer -1), or all that a layer hands on."""

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
    return f'layer_{self.layer}_{self.scale}'


@dataclasses.dataclass(frozen=True)
class Convolution:
  """New features: (1x1 convolution, BN, ReLU,) 3x3 convolution, BN, ReLU.

  Attributes:
    source: what it reads.
    inner: channels between the two; 0 where there is no 1x1 convolution.
    features: output channels.
    stride: 1 (horizontal), or 2 (diagonal).
  """

  source: Feature
  inner: int
  features: int
  stride: int

  @property
  def bottleneck_name(self) -> str:
    """The name of the module of all 1x1 convolutions on what it reads."""
    return f'{self.source.name}_bottleneck'


@dataclasses.dataclass(frozen=True)
class Node:
  """A place of a layer: what was there, side by side with new features.

  Attributes:
    diagonal: of the finer scale; None where that has ended.
    horizontal: of the same scale.
    channels: of everything side by side, the source first, then the diagonal's.
    transition: whether a 1x1 convolution, BN and ReLU bring them to the
      output's.
    output: what the layer hands on.
    step: the first exit that needs it.
  """

  diagonal: Convolution | None
  horizontal: Convolution
  channels: int
  transition: bool
  output: Feature
  step: int

  @property
  def convolutions(self) -> tuple[Convolution, ...]:
    """Both, in the order of their channels."""
    if self.diagonal is None:
      return (self.horizontal,)
    return self.diagonal, self.horizontal


@dataclasses.dataclass(frozen=True)
class Stem:
  """The stem at a scale: of the image, or of the next finer one by stride 2."""

  output: Feature
  step: int = 0


@dataclasses.dataclass(frozen=True)
class Exit(protocol.FeatureExit):
  """A classifier: twice (3x3 of stride 2, BN, ReLU), average pool, dense.

  Attributes:
    index: which exit it is, from 0.
    feature: what it reads.
    channels: of the convolutions.
  """

  channels: int


@dataclasses.dataclass(frozen=True)
class Plan:
  """A network as data.

  Attributes:
    spec: the sizes that it was made from.
    stems: finest first.
    nodes: in an order in which they can be computed, layer after layer.
    exits: in the order of their layers.
  """

  spec: MSDNetSpec
  stems: tuple[Stem, ...]
  nodes: tuple[Node, ...]
  exits: tuple[Exit, ...]


def halved(size: int) -> int:
  """Returns the rows or columns that stride 2 leaves."""
  return (size + 1) // 2


def scales_left(spec: MSDNetSpec, layer: int) -> int:
  """Returns how many scales, the coarsest ones, a layer has; -1 is the stem."""
  if spec.prune == 'min':
    return min(spec.scales, spec.layers - layer)
  interval = -(-spec.layers // spec.scales)
  return spec.scales - max(layer, 0) // interval


def transition_layers(spec: MSDNetSpec) -> tuple[int, ...]:
  """Returns the layers that end in transitions."""
  if spec.prune == 'min':
    # The public code counts layers from 1.
    ends = (spec.layers // 3, 2 * spec.layers // 3)
    return tuple(sorted({end - 1 for end in ends if end > 0}))
  return tuple(
    layer
    for layer in range(spec.layers)
    if scales_left(spec, layer) < scales_left(spec, layer - 1)
  )


def layers_of_step(plan: Plan, step: int) -> tuple[tuple[Node, ...], ...]:
  """Returns the nodes of a step, layer by layer."""
  layers: dict[int, list[Node]] = {}
  for node in plan.nodes:
    if node.step == step:
      layers.setdefault(node.output.layer, []).append(node)
  return tuple(tuple(nodes) for nodes in layers.values())


def bottlenecks(
  layer: Sequence[Node],
) -> dict[Feature, tuple[Convolution, ...]]:
  """Returns the convolutions of a layer that have a 1x1 one before them.

  Args:
    layer: its nodes.

  Returns:
    What they read -> them, in the order of their channels: the 1x1 convolutions
    on one feature are one.
  """
  readers: dict[Feature, tuple[Convolution, ...]] = {}
  for node in layer:
    for conv in node.convolutions:
      if conv.inner:
        readers[conv.source] = (*readers.get(conv.source, ()), conv)
  return readers


def carried_features(plan: Plan, step: int) -> tuple[Feature, ...]:
  """Returns the features that steps after this one read.

  Args:
    plan: the network.
    step: index of the exit that was come to.
  """
  following = layers_of_step(plan, step + 1)
  if not following:
    return ()
  read = {conv.source for node in following[0] for conv in node.convolutions}
  return tuple(sorted(read, key=lambda feature: feature.scale))


def _factors(
  given: Sequence[int], default: Sequence[int], scales: int, name: str
) -> tuple[int, ...]:
  if not len(given):
    return tuple(default)
  if len(given) != scales:
    raise UsageError(
      f'{name} = {tuple(given)} has {len(given)} entries for {scales} scales; '
      'give one per scale, or none.'
    )
  return tuple(given)


def _check_spec(spec: MSDNetSpec, field: str) -> None:
  """Refuses sizes that make no network, and names the field."""
  sizes = ('channels', 'blocks', 'base', 'step', 'growth', 'scales')
  protocol.check_sizes(spec, (*sizes, 'num_classes'), field)
  choices = {'step_mode': STEP_MODES, 'prune': PRUNES, 'stem': STEMS}
  for name, values in choices.items():
    if getattr(spec, name) not in values:
      raise UsageError(
        f'{field}.{name} = {getattr(spec, name)!r}: give one of {values}.'
      )
  if spec.prune == 'min' and spec.scales > spec.layers + 1:
    # The stem would compute scales that no layer reads.
    raise UsageError(
      f"{field}.scales = {spec.scales} with {field}.prune = 'min' and "
      f'{spec.layers} layers: give at most {spec.layers + 1} scales, or raise '
      f'{field}.base.'
    )


def _check_growth(
  spec: MSDNetSpec, growth_factors: Sequence[int], field: str
) -> None:
  for name in ('growth_factors', 'bottleneck_factors'):
    low = 1 if name == 'growth_factors' else 0
    for factor in getattr(spec, name):
      if (
        isinstance(factor, bool) or not isinstance(factor, int) or factor < low
      ):
        raise UsageError(
          f'{field}.{name} = {tuple(getattr(spec, name))}: give whole numbers '
          f'of at least {low}.'
        )
  for scale, factor in enumerate(growth_factors):
    if scale and spec.growth * factor % 2:
      raise UsageError(
        f'{field}.growth = {spec.growth} with the factor {factor} of scale '
        f'{scale} cannot be split between a diagonal and a horizontal '
        f'convolution; make {field}.growth or {field}.growth_factors even.'
      )


def _stem_features(
  spec: MSDNetSpec, factors: Sequence[int], field: str
) -> list[Feature]:
  height, width, _ = spec.image_shape
  if spec.stem == IMAGENET:
    height, width = halved(halved(height)), halved(halved(width))
  found = []
  for scale, factor in enumerate(factors):
    if scale:
      if min(height, width) < 2:
        raise UsageError(
          f'{field}.scales = {spec.scales}: scale {scale} of a '
          f'{spec.image_shape[0]}x{spec.image_shape[1]} image would fall below '
          f'1x1; give at most {scale} scales.'
        )
      height, width = halved(height), halved(width)
    found.append(
      Feature(STEM_LAYER, scale, height, width, spec.channels * factor)
    )
  return found


def build_plan(spec: MSDNetSpec, field: str = 'spec') -> Plan:
  """Plans an MSDNet.

  Args:
    spec: the sizes.
    field: the config section that error messages name.

  Returns:
    The plan. A step is a block: all of its scales, as the public code computes
    and counts them, also those that only later exits read.

  Raises:
    UsageError: the sizes do not make a network; the message names the field.
  """
  _check_spec(spec, field)
  protocol.check_boosting(spec.boosting, spec.blocks, field)
  growth_factors = _factors(
    spec.growth_factors,
    [2**scale for scale in range(spec.scales)],
    spec.scales,
    f'{field}.growth_factors',
  )
  bottleneck_factors = _factors(
    spec.bottleneck_factors,
    growth_factors,
    spec.scales,
    f'{field}.bottleneck_factors',
  )
  _check_growth(spec, growth_factors, field)

  def convolution(source: Feature, features: int, stride: int) -> Convolution:
    # A 1x1 convolution never widens.
    wide = bottleneck_factors[source.scale] * features
    inner = min(source.channels, wide)
    return Convolution(source, inner, features, stride)

  stems = _stem_features(spec, growth_factors, field)
  features = {stem.scale: stem for stem in stems}
  transitions = transition_layers(spec)
  steps = [
    block
    for block, layers in enumerate(spec.block_layers)
    for _ in range(layers)
  ]
  nodes, exits = [], []
  channels = spec.channels  # of the finest scale, were it still there
  for layer, step in enumerate(steps):
    channels += spec.growth
    joined = channels
    if layer in transitions:
      channels //= _REDUCTION
    outputs = {}
    for scale in range(spec.scales - scales_left(spec, layer), spec.scales):
      source = features[scale]
      factor = growth_factors[scale]
      new = spec.growth * factor
      diagonal = None
      if scale - 1 in features:
        new //= 2
        diagonal = convolution(features[scale - 1], new, 2)
      outputs[scale] = Feature(
        layer, scale, source.height, source.width, channels * factor
      )
      nodes.append(
        Node(
          diagonal=diagonal,
          horizontal=convolution(source, new, 1),
          channels=joined * factor,
          transition=layer in transitions,
          output=outputs[scale],
          step=step,
        )
      )
    features = outputs
    if layer + 1 == len(steps) or steps[layer + 1] != step:
      feature = features[spec.scales - 1]
      wide = _CIFAR_HEAD if spec.stem == CIFAR else feature.channels
      exits.append(Exit(step, feature, wide))
  return Plan(spec, tuple(Stem(s) for s in stems), tuple(nodes), tuple(exits))
