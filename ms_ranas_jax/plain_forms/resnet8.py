"""ResNet8 as plain layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ms_ranas_jax import plain_form
from ms_ranas_jax.baselines import resnet8
from ms_ranas_jax.space import protocol


def build(
  network: resnet8.ResNet8, variables: Mapping[str, Any]
) -> plain_form.PlainForm:
  """Returns a trained ResNet8 as plain layers.

  Args:
    network: the ResNet8.
    variables: its 'params' and 'batch_stats'.
  """
  plan = network.plan
  builder = plain_form.Builder()
  source, steps = protocol.IMAGES, []
  for exit_ in plan.exits:
    for feature in (f for f in plan.features if f.step == exit_.index):
      module = plain_form.module_variables(variables, feature.name)
      _feature(builder, source, feature, module)
      source = feature.name
    params = variables['params'][exit_.name]
    step, own = exit_.index, builder.classifier(source, params, exit_.name)
    carried = [] if step == len(plan.exits) - 1 else [source]
    steps.append(protocol.end_plain_step(builder, plan, step, own, carried))
  return plain_form.PlainForm(
    tuple(steps), plan.spec.image_shape, plan.spec.num_classes
  )


def _conv_norm(
  builder: plain_form.Builder,
  x: str,
  module: plain_form.ModuleVariables,
  stride: int = 1,
) -> str:
  return builder.convolution(
    x, module.params['kernel'], module.norm_of_one(), stride=(stride, stride)
  )


def _feature(
  builder: plain_form.Builder,
  source: str,
  feature: resnet8.Feature,
  module: plain_form.ModuleVariables,
) -> None:
  """Adds the stem or a stack; what it makes is named as in the plan."""
  if feature.layer == resnet8.STEM_LAYER:
    x = _conv_norm(builder, source, module)
  else:
    x = _conv_norm(builder, source, module['conv_0'], feature.stride)
    x = _conv_norm(builder, builder.relu(x), module['conv_1'])
    shortcut = source
    if feature.stride > 1:
      bias = module.params['shortcut_bias']
      shortcut = builder.convolution(
        source,
        module.params['shortcut'],
        (np.ones_like(bias), bias),
        stride=(feature.stride, feature.stride),
      )
    x = builder.join(plain_form.Sum(), [shortcut, x], None)
  builder.add(plain_form.Relu(), [x], feature.name)
