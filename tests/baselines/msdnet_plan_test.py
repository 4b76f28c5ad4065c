"""MSDNet's plan against the public code's rules, and what is refused."""

import dataclasses
import math

import pytest

from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.errors import UsageError

_SPEC = msdnet_plan.MSDNetSpec(channels=16, blocks=11, base=4, step=2)


def _public_rules(spec, factors):
  """(layer, scales, channels of the finest, after a transition) by layer.

  As the public code builds its blocks: layers counted from 1, channels per
  unit of the growth factors.
  """
  steps = [spec.base]
  for block in range(1, spec.blocks):
    even = spec.step_mode == 'even'
    steps.append(spec.step if even else spec.step * block + 1)
  layers, channels, rows = sum(steps), spec.channels, []
  for current in range(1, layers + 1):
    if spec.prune == 'min':
      before = min(spec.scales, layers - current + 2)
      after = min(spec.scales, layers - current + 1)
      halve = current in (layers // 3, 2 * layers // 3)
    else:
      interval = math.ceil(layers / spec.scales)
      before = spec.scales - max(0, current - 2) // interval
      after = spec.scales - (current - 1) // interval
      halve = before > after
    channels += spec.growth
    joined = channels
    channels = channels // 2 if halve else channels
    rows.append((before, after, joined, channels))
  return steps, rows


_SPECS = {
  'eleven blocks': _SPEC,
  'lin_grow': dataclasses.replace(_SPEC, blocks=5, step_mode='lin_grow'),
  'min': dataclasses.replace(_SPEC, blocks=7, prune='min'),
  'min, as few layers as can be': msdnet_plan.MSDNetSpec(
    4, 1, 2, 1, prune='min', scales=3
  ),
  'an odd number of channels': msdnet_plan.MSDNetSpec(5, 3, 1, 2, growth=2),
  'four scales': msdnet_plan.MSDNetSpec(
    8, 5, 3, 1, scales=4, growth_factors=(1, 2, 4, 4)
  ),
}


@pytest.mark.parametrize('name', _SPECS)
def test_places_and_channels_are_those_of_the_public_rules(name):
  spec = _SPECS[name]
  factors = spec.growth_factors or tuple(2**s for s in range(spec.scales))
  steps, rows = _public_rules(spec, factors)
  plan = msdnet_plan.build_plan(spec)
  assert spec.block_layers == tuple(steps)
  assert spec.layers == len(rows)
  places = {}
  for node in plan.nodes:
    places.setdefault(node.output.layer, []).append(node)
  assert sorted(places) == list(range(len(rows)))
  for layer, (before, after, joined, channels) in enumerate(rows):
    nodes = places[layer]
    assert [n.output.scale for n in nodes] == list(
      range(spec.scales - after, spec.scales)
    )
    for node in nodes:
      scale = node.output.scale
      # Half of the new features come from the finer scale, where it was there.
      finer = scale - 1 >= spec.scales - before
      assert (node.diagonal is not None) == finer
      new = spec.growth * factors[scale]
      assert sum(c.features for c in node.convolutions) == new
      assert len({c.features for c in node.convolutions}) == 1
      assert node.channels == joined * factors[scale]
      assert node.output.channels == channels * factors[scale]
      assert node.transition == (joined != channels)
      assert node.channels == node.horizontal.source.channels + new
      for conv in node.convolutions:
        assert conv.source.layer == layer - 1
        wide = factors[conv.source.scale] * conv.features
        assert conv.inner == min(conv.source.channels, wide)
  ends = [sum(steps[: block + 1]) - 1 for block in range(spec.blocks)]
  assert [exit_.layer for exit_ in plan.exits] == ends
  assert [exit_.index for exit_ in plan.exits] == list(range(spec.blocks))
  for node in plan.nodes:
    assert node.step == sum(end < node.output.layer for end in ends)


def test_the_imagenet_stem_quarters_the_image():
  spec = dataclasses.replace(
    _SPEC, stem='imagenet', image_shape=(224, 200, 3), scales=4
  )
  plan = msdnet_plan.build_plan(spec)
  sizes = [(s.output.height, s.output.width) for s in plan.stems]
  assert sizes == [(56, 50), (28, 25), (14, 13), (7, 7)]
  assert {e.channels for e in plan.exits} == {
    e.feature.channels for e in plan.exits
  }
  assert {e.channels for e in msdnet_plan.build_plan(_SPEC).exits} == {128}


def test_layers_of_a_step_are_all_nodes_in_order():
  plan = msdnet_plan.build_plan(_SPEC)
  nodes = [
    node
    for step in range(11)
    for layer in msdnet_plan.layers_of_step(plan, step)
    for node in layer
  ]
  assert nodes == list(plan.nodes)
  assert len(msdnet_plan.layers_of_step(plan, 0)) == 4


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'blocks': 0}, ['net.blocks = 0']),
    ({'base': True}, ['net.base = True']),
    ({'step_mode': 'odd'}, ["net.step_mode = 'odd'", 'lin_grow']),
    ({'prune': ''}, ["net.prune = ''", 'max']),
    ({'stem': 'vgg'}, ["net.stem = 'vgg'", 'imagenet']),
    ({'growth_factors': (1, 2)}, ['net.growth_factors', '3 scales']),
    ({'growth_factors': (1, 0, 2)}, ['net.growth_factors', 'at least 1']),
    ({'bottleneck_factors': (1,)}, ['net.bottleneck_factors', '3 scales']),
    ({'bottleneck_factors': (1, -1, 1)}, ['bottleneck_factors', 'at least 0']),
    (
      {'growth': 3, 'growth_factors': (1, 1, 2)},
      ['net.growth = 3', 'scale 1', 'even'],
    ),
    ({'scales': 7}, ['net.scales = 7', 'at most 6 scales']),
    (
      {'prune': 'min', 'blocks': 1, 'base': 1},
      ['net.scales = 3', "net.prune = 'min'", 'at most 2 scales'],
    ),
  ],
  ids=repr,
)
def test_an_impossible_plan_is_refused(fields, words):
  with pytest.raises(UsageError) as caught:
    msdnet_plan.build_plan(dataclasses.replace(_SPEC, **fields), 'net')
  for word in words:
    assert word in str(caught.value)
