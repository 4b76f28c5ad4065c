"""MSDNet spelled out as the rows that the cost model adds up."""

from __future__ import annotations

from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.space import layer_cost
from ms_ranas_jax.space import layers as layers_lib
from ms_ranas_jax.space import protocol
from ms_ranas_jax.space.protocol import CostRow

Layers = tuple[layer_cost.Layer, ...]


def _conv_norm_relu(
  height: int,
  width: int,
  channels: int,
  features: int,
  kernel: int = 1,
  stride: int = 1,
) -> Layers:
  """The cost of a `ConvNormReLU`; height and width are those of its input."""
  layers = layers_lib.conv_norm_layers(
    channels,
    features,
    height,
    width,
    kernel=kernel,
    stride=stride,
    rectify=False,
  )
  rows, columns = -(-height // stride), -(-width // stride)
  return (*layers, layer_cost.relu(rows, columns, features))


def _imagenet_stem(
  height: int, width: int, channels: int, features: int
) -> Layers:
  conv, *rest = _conv_norm_relu(height, width, channels, features, 7, 2)
  bias = layer_cost.bias(
    msdnet_plan.halved(height), msdnet_plan.halved(width), features
  )
  rows, columns = (
    msdnet_plan.halved(msdnet_plan.halved(size)) for size in (height, width)
  )
  return (conv, bias, *rest, layer_cost.pool(rows, columns, features, 3))


def _new_features(conv: msdnet_plan.Convolution) -> Layers:
  source = conv.source
  channels, layers = source.channels, ()
  if conv.inner:
    layers = _conv_norm_relu(source.height, source.width, channels, conv.inner)
    channels = conv.inner
  return layers + _conv_norm_relu(
    source.height, source.width, channels, conv.features, 3, conv.stride
  )


def _exit_layers(exit_: msdnet_plan.Exit, num_classes: int) -> Layers:
  feature = exit_.feature
  height, width, channels = feature.height, feature.width, feature.channels
  layers = ()
  for _ in range(2):
    layers += _conv_norm_relu(height, width, channels, exit_.channels, 3, 2)
    height, width = msdnet_plan.halved(height), msdnet_plan.halved(width)
    channels = exit_.channels
  return (
    *layers,
    layer_cost.global_pool(height, width, channels),
    layer_cost.dense(channels, num_classes),
  )


def _parts(
  node: msdnet_plan.Node,
) -> tuple[tuple[str, msdnet_plan.Convolution], ...]:
  """Returns the new tensors of a node by name, in the order of channels."""
  names = ('diagonal', 'horizontal')[-len(node.convolutions) :]
  return tuple(
    (f'{node.output.name}/{name}', conv)
    for name, conv in zip(names, node.convolutions, strict=True)
  )


def _joined(node: msdnet_plan.Node) -> str:
  """The name of what stands side by side before a transition."""
  return f'{node.output.name}/joined' if node.transition else node.output.name


def cost_rows(plan: msdnet_plan.Plan) -> tuple[CostRow, ...]:
  """Spells out a network.

  Args:
    plan: the network.

  Returns:
    The rows in an order in which they can be run, step after step. New
    features are `FEATURE/diagonal` and `FEATURE/horizontal`; a feature is these
    beside those of its source, which `tensors` resolves.
  """
  spec = plan.spec
  rows = []
  height, width, channels = spec.image_shape
  source = 'images'
  for stem in plan.stems:
    output = stem.output
    if not output.scale and spec.stem == msdnet_plan.IMAGENET:
      layers = _imagenet_stem(height, width, channels, output.channels)
    else:
      stride = 2 if output.scale else 1
      layers = _conv_norm_relu(
        height, width, channels, output.channels, 3, stride
      )
    height, width, channels = output.height, output.width, output.channels
    rows.append(
      CostRow(
        (source,),
        output.name,
        height * width * channels,
        layers,
        stem.step,
        output.name,
      )
    )
    source = output.name
  for node in plan.nodes:
    output = node.output
    pixels = output.height * output.width
    for name, conv in _parts(node):
      rows.append(
        CostRow(
          (conv.source.name,),
          name,
          pixels * conv.features,
          _new_features(conv),
          node.step,
          output.name,
        )
      )
    if node.transition:
      rows.append(
        CostRow(
          (_joined(node),),
          output.name,
          pixels * output.channels,
          _conv_norm_relu(
            output.height, output.width, node.channels, output.channels
          ),
          node.step,
          output.name,
        )
      )
  for exit_ in plan.exits:
    rows.append(
      CostRow(
        (exit_.feature.name,),
        exit_.name,
        spec.num_classes,
        _exit_layers(exit_, spec.num_classes),
        exit_.index,
        exit_.name,
      )
    )
  rows += protocol.boosted_rows(plan)
  return tuple(sorted(rows, key=lambda row: row.step))


def tensors(plan: msdnet_plan.Plan) -> dict[str, tuple[str, ...]]:
  """Returns the name of a feature -> the tensors that it consists of."""
  found: dict[str, tuple[str, ...]] = {}
  for node in plan.nodes:
    source = node.horizontal.source.name
    new = tuple(name for name, _ in _parts(node))
    found[_joined(node)] = found.get(source, (source,)) + new
  return found
