"""Weights of the public MSDNet (kalviny/MSDNet-PyTorch, `MSDNet`) in ours.

Names are those of its state dict: `blocks.BLOCK.POSITION`, of which the first
one of all is the stem and the others are layers, each followed by its
transition where it has one, and `classifier.EXIT`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ms_ranas_jax.baselines import msdnet
from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.baselines import torch_places
from ms_ranas_jax.baselines.torch_places import Index
from ms_ranas_jax.baselines.torch_places import Path
from ms_ranas_jax.baselines.torch_places import Place

UNUSED = torch_places.COUNTER


def variables(
  network: msdnet.MSDNet,
  arrays: Mapping[str, np.ndarray],
  sizes: str = 'the sizes',
) -> dict[str, Any]:
  """Makes the variables of a network out of a state dict of `MSDNet`.

      network = build_msdnet(MSDNetSpec(channels=16, blocks=7, base=4, step=2))
      arrays = safetensors.numpy.load_file('msdnet.safetensors')
      model = build_model(network, variables(network, arrays), mean, std)

  Args:
    network: ours.
    arrays: name -> array, as PyTorch has them: (output, input, height, width).
      Those that match `UNUSED` are not used.
    sizes: what decides which tensors there are, for messages.

  Returns:
    {'params': ..., 'batch_stats': ...}, float32.

  Raises:
    UsageError: the arrays are not those of such a network; names the first that
      is not.
  """
  return torch_places.assemble(
    network, places(network.plan), arrays, UNUSED, sizes
  )


def places(plan: msdnet_plan.Plan) -> dict[str, Place]:
  """Returns the place of every tensor of the public code's network.

  Args:
    plan: of the same sizes.
  """
  found: dict[str, Place] = {}
  for stem in plan.stems:
    scale, path = stem.output.scale, (stem.output.name,)
    name = f'blocks.0.0.layers.{scale}'
    if not scale and plan.spec.stem == msdnet_plan.IMAGENET:
      found |= _convolved(name, 0, (*path, 'kernel'), (*path, 'norm'))
      found[f'{name}.0.bias'] = Place(('params', *path, 'bias'), 'o->o')
    else:
      found |= _convolved(f'{name}.net', 0, (*path, 'kernel'), (*path, 'norm'))
  for exit_ in plan.exits:
    # The stem stands first in the first block.
    position = 0 if exit_.index else 1
    for layer in msdnet_plan.layers_of_step(plan, exit_.index):
      found |= _layer(f'blocks.{exit_.index}.{position}.layers', layer)
      position += 1
      if layer[0].transition:
        found |= _transition(f'blocks.{exit_.index}.{position}.m', layer)
        position += 1
    name = f'classifier.{exit_.index}'
    for index in range(2):
      found |= _convolved(
        f'{name}.m.{index}.net',
        0,
        (exit_.name, f'kernel_{index}'),
        (exit_.name, f'norm_{index}'),
      )
    found |= torch_places.dense(f'{name}.linear', (exit_.name, 'dense'))
  return found


def _convolved(
  name: str, number: int, kernel: Path, norm: Path, part: Index = ()
) -> dict[str, Place]:
  """A convolution and the BN after it.

  Args:
    name: of their sequence.
    number: of the convolution in it.
    kernel: the path of ours.
    norm: the same of its norm.
    part: of the norm; the kernel is whole.
  """
  return {
    f'{name}.{number}.weight': Place(('params', *kernel), 'oihw->ohwi'),
    **torch_places.norm(f'{name}.{number + 1}', norm, part),
  }


def _layer(theirs: str, layer: Sequence[msdnet_plan.Node]) -> dict[str, Place]:
  """The convolutions of a layer, scale by scale."""
  parts = {}
  for convs in msdnet_plan.bottlenecks(layer).values():
    for conv, part in _side_by_side(convs, 'inner'):
      parts[conv] = part
  found: dict[str, Place] = {}
  for number, node in enumerate(layer):
    path = node.output.name
    for conv, part in _side_by_side(node.convolutions, 'features'):
      down = conv is node.diagonal
      name = f'{theirs}.{number}.conv_{"down" if down else "normal"}.net'
      # 1x1 convolution, BN, ReLU, where there is one.
      first = 3 if conv.inner else 0
      if conv.inner:
        inner = conv.bottleneck_name
        found |= torch_places.norm(f'{name}.1', (inner, 'norm'), parts[conv])
        found[f'{name}.0.weight'] = Place(
          ('params', inner, 'kernel'), 'oihw->ohwi', parts[conv]
        )
      found |= _convolved(
        name,
        first,
        (path, 'diagonal' if down else 'horizontal'),
        (path, 'norm'),
        part,
      )
  return found


def _side_by_side(
  convs: Sequence[msdnet_plan.Convolution], field: str
) -> list[tuple[msdnet_plan.Convolution, Index]]:
  """Returns convolutions with their channels among those of all."""
  found, start = [], 0
  for conv in convs:
    end = start + getattr(conv, field)
    found.append((conv, (slice(start, end),)))
    start = end
  return found


def _transition(
  theirs: str, layer: Sequence[msdnet_plan.Node]
) -> dict[str, Place]:
  """The 1x1 convolutions after a layer, scale by scale."""
  found: dict[str, Place] = {}
  for number, node in enumerate(layer):
    name = node.output.name
    found |= _convolved(
      f'{theirs}.{number}.net',
      0,
      (name, 'transition'),
      (name, 'transition_norm'),
    )
  return found
