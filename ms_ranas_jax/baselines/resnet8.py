"""ResNet8 of MLPerf Tiny, with exits after its stacks where they are wanted.

The network of the image classification of mlcommons/tiny (`resnet_v1_eembc`
with 16 filters): a 3x3 convolution, BN, ReLU, and three stacks of two 3x3
convolutions beside a shortcut. The second and third stack halve height and
width and double the channels; their shortcut is a 1x1 convolution of stride 2,
with a bias and without a BN. Three things differ, and change no count of what
is deployed:

- Stride 2 pads all sides of an image alike, as everywhere here and in PyTorch;
  Keras pads an even size below and to the right only.
- Convolutions before a BN have no bias, which would have no effect there.
- First params are drawn as PyTorch draws them by default.

`params` are keyed by the names of the plan's features, `stem` and `stack_L`,
and by `exit_L`; L counts stacks from 0.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from ms_ranas_jax.kernels import convolution
from ms_ranas_jax.kernels import gradient_scale
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.kernels import windows
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import layer_cost
from ms_ranas_jax.space import layers
from ms_ranas_jax.space import protocol
from ms_ranas_jax.space.protocol import CostRow

STACKS = 3
STEM_LAYER = -1


@dataclasses.dataclass(frozen=True)
class ResNet8Spec:
  """The sizes of a ResNet8; by default those of MLPerf Tiny.

  Attributes:
    channels: of the first stack; each other one has twice as many.
    exits: 'last', 'all_but_first', or a tuple of stacks, from 0; the last
      stack's classifier is always there.
    image_shape: (height, width, channels) of the input.
    num_classes: classes of the classifiers.
    boosting: see `protocol.SteppedNetwork`; 0 is off.

  Example:
    >>> import ms_ranas_jax as mr
    >>> mr.ResNet8Spec().channels
    16
  """

  channels: int = 16
  exits: str | tuple[int, ...] = grid.LAST
  image_shape: tuple[int, int, int] = (32, 32, 3)
  num_classes: int = 10
  boosting: float = 0.0

  @property
  def layers(self) -> int:
    """The number of stacks."""
    return STACKS

  @property
  def scales(self) -> int:
    """One: features of other sizes come one after the other."""
    return 1


@dataclasses.dataclass(frozen=True)
class ResNet8Config(protocol.NetworkConfig):
  """What a ResNet8 is asked for in a config, see `ResNet8Spec`."""

  exits: str | tuple[int, ...] = grid.exits_field(
    grid.LAST, 'the stacks, 0 to 2, with a classifier'
  )
  boosting: float = protocol.boosting_field()


def resnet8_spec(
  config: ResNet8Config, image_shape: tuple[int, int, int], num_classes: int
) -> ResNet8Spec:
  """Returns the sizes that a config asks for.

  Args:
    config: where its width is still to be chosen, a nominal one is taken.
    image_shape: (height, width, channels) of the images.
    num_classes: how many classes there are.
  """
  return ResNet8Spec(
    config.width, config.exits, image_shape, num_classes, config.boosting
  )


@dataclasses.dataclass(frozen=True)
class Feature:
  """A feature map: of the stem (layer -1), or of a stack.

  Attributes:
    layer: which stack makes it.
    height: rows.
    width: columns.
    channels: channels.
    step: the first exit that needs it.
  """

  layer: int
  height: int
  width: int
  channels: int
  step: int

  @property
  def scale(self) -> int:
    """Zero, see `ResNet8Spec.scales`."""
    return 0

  @property
  def stride(self) -> int:
    """That of the first convolution, and of the shortcut."""
    return 2 if self.layer > 0 else 1

  @property
  def name(self) -> str:
    """The name of the module that computes it, also its key in `params`."""
    return 'stem' if self.layer == STEM_LAYER else f'stack_{self.layer}'


@dataclasses.dataclass(frozen=True)
class Plan:
  """A network as data.

  Attributes:
    spec: the sizes that it was made from.
    features: that of the stem, and those of the stacks.
    exits: in the order of their stacks.
  """

  spec: ResNet8Spec
  features: tuple[Feature, ...]
  exits: tuple[grid.Exit, ...]


def build_plan(spec: ResNet8Spec, field: str = 'spec') -> Plan:
  """Plans a ResNet8.

  Args:
    spec: the sizes.
    field: the config section that error messages name.

  Raises:
    UsageError: the sizes do not make a network; the message names the field.
  """
  protocol.check_sizes(spec, ('channels', 'num_classes'), field)
  ends = grid.exit_layers(spec.exits, STACKS, field)
  protocol.check_boosting(spec.boosting, len(ends), field)
  height, width, _ = spec.image_shape
  features = []
  for layer in range(STEM_LAYER, STACKS):
    if layer > 0:
      height, width = -(-height // 2), -(-width // 2)
    step = sum(end < layer for end in ends)
    channels = spec.channels * 2 ** max(layer, 0)
    features.append(Feature(layer, height, width, channels, step))
  exits = (grid.Exit(step, features[1 + end]) for step, end in enumerate(ends))
  return Plan(spec, tuple(features), tuple(exits))


class Stack(nn.Module):
  """Two 3x3 convolutions, each with BN, beside a shortcut; ReLU.

  Attributes:
    features: output channels.
    stride: 1, where the shortcut is the identity, or 2.
    axis_name: the device axis that shares the BN statistics.
  """

  features: int
  stride: int = 1
  axis_name: str | None = None

  def _conv(self, x: jax.Array, name: str, train: bool, **fields: Any):
    return layers.ConvNorm(
      self.features, kernel=3, axis_name=self.axis_name, name=name, **fields
    )(x, train)

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps (batch, height, width, channels) to `features` channels."""
    y = self._conv(x, 'conv_0', train, stride=self.stride, rectify=False)
    y = self._conv(y, 'conv_1', train)
    if self.stride > 1:
      bound = layers.uniform_fan_in(x.shape[-1])
      shape = (1, 1, x.shape[-1], self.features)
      kernel = layers.param(self, 'shortcut', bound, shape)
      bias = layers.param(self, 'shortcut_bias', bound, (self.features,))
      x = convolution.convolution(x, kernel, (self.stride, self.stride))
      x = x + bias.astype(x.dtype).reshape(1, 1, 1, -1)
    return windows.relu(x + y)


class ResNet8(protocol.SteppedNetwork):
  """A ResNet8 with at least one exit.

  Attributes:
    plan: the plan.
    dtype: of the computation: 'float32' or 'bfloat16'. BN statistics and
      logits are float32.
    lowering: how operations are computed, see `use_lowering`.
    axis_name: the device axis that shares the BN statistics.
    gradient_equilibrium: whether all exits count the same for what is below
      them, see `gradient_scale.in_equilibrium`.

  Example:
    >>> import ms_ranas_jax as mr
    >>> mr.build_resnet8(mr.ResNet8Spec(exits=(0, 1))).num_exits
    3
  """

  plan: Plan
  dtype: str = 'float32'
  lowering: str = lowering.AUTO
  axis_name: str | None = None
  gradient_equilibrium: bool = False

  def cost_rows(self) -> tuple[CostRow, ...]:
    """Returns what is computed, for the cost model."""
    return _cost_rows(self.plan)

  @nn.compact
  def advance(
    self,
    carried: protocol.Carried,
    weights: Any = None,
    *,
    step: int,
    train: bool,
    drop_path: jax.Array | float | None = None,
  ) -> tuple[protocol.Carried, jax.Array]:
    """Computes one step, from the features at hand; see `protocol`.

    Args:
      carried: what the step before returned; `{'images': images}` at first,
        (batch, height, width, channels), normalised.
      weights: None; there are no mixed cells.
      step: index of the exit to come to, that after the one before.
      train: normalise with the statistics of the batch, and write running
        averages if the collection `batch_stats` is mutable.
      drop_path: None or zero; there are no operations to drop.

    Returns:
      The feature that the next step reads, by name, and the logits
      (batch, classes), float32.
    """
    del weights, drop_path
    with lowering.using(self.lowering):
      return self._step(carried, step, train)

  def modules_of_step(self, step: int) -> frozenset[str]:
    """Returns the modules, keys of `params`, that a step computes with."""
    names = {f.name for f in self.plan.features if f.step == step}
    return frozenset(names | {self.plan.exits[step].name})

  def _step(self, carried, step, train):
    if step:
      x = carried[self.plan.exits[step - 1].feature.name]
    else:
      images = carried[protocol.IMAGES]
      protocol.check_images(self.plan, images)
      x = images.astype(jnp.dtype(self.dtype))
    for feature in (f for f in self.plan.features if f.step == step):
      shared = {'axis_name': self.axis_name, 'name': feature.name}
      if feature.layer == STEM_LAYER:
        stem = layers.ConvNorm(
          feature.channels, kernel=3, rectify=False, **shared
        )
        x = windows.relu(stem(x, train))
      else:
        x = Stack(feature.channels, feature.stride, **shared)(x, train)
    exit_ = self.plan.exits[step]
    onward = x
    if self.gradient_equilibrium and train:
      x, onward = gradient_scale.in_equilibrium(x, step, self.num_exits)
    logits = layers.classify(x, self.plan.spec.num_classes, exit_.name)
    last = step == len(self.plan.exits) - 1
    kept = {} if last else {exit_.feature.name: onward}
    return self.boosted(carried, kept, logits, step)


def build_resnet8(
  spec: ResNet8Spec, *, field: str = 'spec', **fields: Any
) -> ResNet8:
  """Returns the network of some sizes.

  Args:
    spec: the sizes.
    field: the config section that error messages name.
    **fields: further attributes of `ResNet8`.

  Raises:
    UsageError: the sizes make no network.

  Example:
    >>> import ms_ranas_jax as mr
    >>> found = mr.network_cost(mr.build_resnet8(mr.ResNet8Spec()))
    >>> found.macs, found.params_deployed
    (12501632, 77706)
  """
  return ResNet8(plan=build_plan(spec, field), **fields)


def _cost_rows(plan: Plan) -> tuple[CostRow, ...]:
  """Spells out a network; a stack is a row of its convolutions and a sum."""
  rows = []
  source, (height, width, channels) = protocol.IMAGES, plan.spec.image_shape
  for feature in plan.features:
    name, features, stride = feature.name, feature.channels, feature.stride
    size = feature.height, feature.width
    relu = layer_cost.relu(*size, features)
    first = layers.conv_norm_layers(
      channels, features, height, width, kernel=3, stride=stride, rectify=False
    )
    if feature.layer == STEM_LAYER:
      made = [(*first, relu)]
    else:
      second = layers.conv_norm_layers(features, features, *size, kernel=3)
      shortcut = ()
      if stride > 1:
        shortcut = (
          layer_cost.convolution(*size, channels, features, (1, 1)),
          layer_cost.bias(*size, features),
        )
      made = [first + second, (*shortcut, relu)]
    for chain in made:
      row = (source,), name, relu.elements, chain, feature.step, name
      rows.append(CostRow(*row))
    source, height, width, channels = name, *size, features
  for exit_ in plan.exits:
    feature, classes = exit_.feature, plan.spec.num_classes
    head = (
      layer_cost.global_pool(feature.height, feature.width, feature.channels),
      layer_cost.dense(feature.channels, classes),
    )
    row = (feature.name,), exit_.name, classes, head, exit_.index, exit_.name
    rows.append(CostRow(*row))
  rows += protocol.boosted_rows(plan)
  return tuple(sorted(rows, key=lambda row: row.step))
