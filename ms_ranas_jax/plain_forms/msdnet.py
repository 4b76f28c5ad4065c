"""MSDNet as plain layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ms_ranas_jax import plain_form
from ms_ranas_jax.baselines import msdnet
from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.space import protocol

Variables = Mapping[str, Any]


def build(network: msdnet.MSDNet, variables: Variables) -> plain_form.PlainForm:
  """Returns a trained MSDNet as plain layers.

  Args:
    network: the MSDNet.
    variables: its 'params' and 'batch_stats'.
  """
  plan = network.plan
  builder = plain_form.Builder()
  source = protocol.IMAGES
  for stem in plan.stems:
    name = stem.output.name
    if stem.output.scale or plan.spec.stem != msdnet_plan.IMAGENET:
      stride = 2 if stem.output.scale else 1
      source = _conv_norm_relu(builder, variables, source, name, stride, name)
    else:
      x = _conv_norm_relu(builder, variables, source, name, 2)
      source = builder.add(plain_form.Pool('max', 2), [x], name)
  steps = []
  for exit_ in plan.exits:
    for layer in msdnet_plan.layers_of_step(plan, exit_.index):
      _layer(builder, variables, layer)
    step, own = exit_.index, _exit(builder, variables, exit_)
    carried = [f.name for f in msdnet_plan.carried_features(plan, step)]
    steps.append(protocol.end_plain_step(builder, plan, step, own, carried))
  return plain_form.PlainForm(
    tuple(steps), plan.spec.image_shape, plan.spec.num_classes
  )


def _kernel(params: Variables, name: str) -> np.ndarray:
  """Returns (features, rows, columns, channels) as convolutions want it."""
  return np.asarray(params[name]).transpose(1, 2, 3, 0)


def _conv_norm_relu(
  builder: plain_form.Builder,
  variables: Variables,
  x: str,
  name: str,
  stride: int = 1,
  output: str | None = None,
) -> str:
  module = plain_form.module_variables(variables, name)
  factor, shift = module.norm('norm')
  # The stem of ImageNet has a bias before its BN.
  shift = shift + factor * np.asarray(module.params.get('bias', 0), np.float32)
  x = builder.convolution(
    x,
    _kernel(module.params, 'kernel'),
    (factor, shift),
    stride=(stride, stride),
  )
  return builder.add(plain_form.Relu(), [x], output)


def _layer(
  builder: plain_form.Builder,
  variables: Variables,
  layer: tuple[msdnet_plan.Node, ...],
) -> None:
  """Adds the nodes of a layer; each feature of them by its name."""
  inner: dict[msdnet_plan.Convolution, str] = {}
  readers: dict[str, list[msdnet_plan.Convolution]] = {}
  for conv in (conv for node in layer for conv in node.convolutions):
    if conv.inner:
      readers.setdefault(conv.source.name, []).append(conv)
    else:
      inner[conv] = conv.source.name
  for source, convs in readers.items():
    # Those on one feature are one convolution, as they are trained.
    x = _conv_norm_relu(builder, variables, source, f'{source}_bottleneck')
    start = 0
    for conv in convs:
      part = plain_form.Slice(start, start + conv.inner)
      inner[conv] = x if len(convs) == 1 else builder.add(part, [x])
      start += conv.inner
  for node in layer:
    _node(builder, variables, node, inner)


def _node(
  builder: plain_form.Builder,
  variables: Variables,
  node: msdnet_plan.Node,
  inner: Mapping[msdnet_plan.Convolution, str],
) -> None:
  name = node.output.name
  module = plain_form.module_variables(variables, name)
  factor, shift = module.norm('norm')
  parts, start = [node.horizontal.source.name], 0
  # In the order of their channels.
  kinds = ('diagonal', 'horizontal')[-len(node.convolutions) :]
  for kind, conv in zip(kinds, node.convolutions, strict=True):
    rows = slice(start, start + conv.features)
    x = builder.convolution(
      inner[conv],
      _kernel(module.params, kind),
      (factor[rows], shift[rows]),
      stride=(conv.stride, conv.stride),
    )
    parts.append(builder.relu(x))
    start += conv.features
  if not node.transition:
    builder.join(plain_form.Concatenate(), parts, name)
    return
  x = builder.join(plain_form.Concatenate(), parts, None)
  x = builder.convolution(
    x,
    _kernel(module.params, 'transition'),
    module.norm('transition_norm'),
  )
  builder.add(plain_form.Relu(), [x], name)


def _exit(
  builder: plain_form.Builder, variables: Variables, exit_: msdnet_plan.Exit
) -> str:
  module = plain_form.module_variables(variables, exit_.name)
  x = exit_.feature.name
  for index in range(2):
    x = builder.convolution(
      x,
      _kernel(module.params, f'kernel_{index}'),
      module.norm(f'norm_{index}'),
      stride=(2, 2),
    )
    x = builder.relu(x)
  return builder.classifier(x, module.params['dense'], exit_.name)
