"""The plan against a naive recomputation, and what is refused."""

import dataclasses

import pytest

from ms_ranas_jax.baselines import cells as published_cells
from ms_ranas_jax.costs import cost
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib

STEM = grid.STEM_LAYER
SPECS = {
  'one layer': grid.NetworkSpec(4, 1, 2),
  'two layers': grid.NetworkSpec(4, 2, 1, scales=2),
  'DARTS': grid.NetworkSpec(16, 8, 4, exits='last'),
  'one scale, many exits': grid.NetworkSpec(6, 7, 3),
  'two scales, last': grid.NetworkSpec(4, 5, 2, scales=2, exits='last'),
  'the paper': grid.NetworkSpec(16, 7, 2, scales=3),
  'some exits': grid.NetworkSpec(8, 9, 2, scales=3, exits=(6, 0, 3)),
  'four scales': grid.NetworkSpec(
    4, 6, 2, scales=4, exits=(2,), image_shape=(64, 48, 1)
  ),
  'odd images': grid.NetworkSpec(
    4, 6, 2, scales=3, scale_growth=3, image_shape=(45, 31, 3)
  ),
  'no growth': grid.NetworkSpec(8, 4, 2, scales=3, scale_growth=1),
  'another stem': grid.NetworkSpec(8, 4, 2, scales=2, stem_multiplier=1),
}


@pytest.fixture(params=list(SPECS), name='plan')
def _plan(request):
  return grid.build_plan(SPECS[request.param])


@pytest.mark.parametrize(
  ('layers', 'expected'),
  [
    (1, (0,)),
    (2, (0, 1)),
    (3, (1, 2)),
    (4, (1, 2)),
    (5, (1, 3)),
    (7, (2, 4)),
    (8, (2, 5)),
    (20, (6, 13)),
  ],
)
def test_reduction_layers_are_those_of_darts(layers, expected):
  assert grid.reduction_layers(layers) == expected
  # As the reference code asks it.
  asked = [i for i in range(layers) if i in [layers // 3, 2 * layers // 3]]
  assert list(expected) == asked


@pytest.mark.parametrize(
  ('exits', 'layers', 'expected'),
  [
    ('last', 5, (4,)),
    ('all_but_first', 5, (1, 2, 3, 4)),
    ('all_but_first', 1, (0,)),
    ((), 5, (4,)),
    ((2,), 5, (2, 4)),
    ([3, 0, 4], 5, (0, 3, 4)),
  ],
)
def test_exit_layers(exits, layers, expected):
  assert grid.exit_layers(exits, layers) == expected


def _sources(layer, scale):
  """What the cell at (layer, scale), or the stem, reads, by the definition."""
  if layer == STEM:
    return {(STEM, scale - 1)} if scale else set()
  layers = {max(layer - 1, STEM), max(layer - 2, STEM)}
  return {(a, s) for a in layers for s in (scale, scale - 1) if s >= 0}


def _transitive_needs(layer, scale):
  needs, new = set(), {(layer, scale)}
  while new:
    needs |= new
    new = {source for key in new for source in _sources(*key)} - needs
  return needs


def test_a_step_holds_what_its_exit_needs_and_earlier_exits_did_not(plan):
  placed = {(c.output.layer, c.output.scale): c.step for c in plan.cells}
  placed |= {(STEM, s.output.scale): s.step for s in plan.stems}
  assert len(placed) == len(plan.cells) + len(plan.stems)  # none twice

  expected, seen = {}, set()
  for index, layer in enumerate(
    grid.exit_layers(plan.spec.exits, plan.spec.layers)
  ):
    needs = _transitive_needs(layer, plan.spec.scales - 1)
    expected |= dict.fromkeys(needs - seen, index)
    seen |= needs
  assert placed == expected


def test_cells_and_stems_come_in_an_order_that_can_be_computed(plan):
  done = set()
  for stem in plan.stems:
    assert _sources(STEM, stem.output.scale) <= done
    done.add((STEM, stem.output.scale))
  for cell in plan.cells:
    assert _sources(cell.output.layer, cell.output.scale) <= done
    done.add((cell.output.layer, cell.output.scale))
  steps = [cell.step for cell in plan.cells]
  assert steps == sorted(steps)


def test_exits_stand_on_the_coarsest_scale(plan):
  layers = grid.exit_layers(plan.spec.exits, plan.spec.layers)
  assert [e.layer for e in plan.exits] == list(layers)
  assert [e.index for e in plan.exits] == list(range(len(layers)))
  made = {cell.output for cell in plan.cells}
  for exit_ in plan.exits:
    assert exit_.feature in made
    assert exit_.feature.scale == plan.spec.scales - 1


def test_cells_that_no_exit_needs_are_absent():
  plan = grid.build_plan(grid.NetworkSpec(16, 7, 2, scales=3))
  there = {(c.output.layer, c.output.scale) for c in plan.cells}
  missing = {(a, s) for a in range(7) for s in range(3)} - there
  # The last layer ends on scale 2, the one before it on scale 1.
  assert missing == {(6, 0), (6, 1), (5, 0)}


def test_sizes_and_channels(plan):
  spec = plan.spec
  reductions = grid.reduction_layers(spec.layers)

  def halved(size, times):  # rounded up each time, which is up at the end
    return -(-size // 2**times)

  def size(layer, scale):
    before = sum(r <= layer for r in reductions)
    return tuple(halved(n, scale + before) for n in spec.image_shape[:2])

  for stem in plan.stems:
    out = stem.output
    assert (out.height, out.width) == size(STEM, out.scale)
    assert out.channels == (
      spec.stem_multiplier * spec.channels * spec.scale_growth**out.scale
    )
  for cell in plan.cells:
    out = cell.output
    before = sum(r <= out.layer for r in reductions)
    assert cell.reduction == (out.layer in reductions)
    assert cell.channels == (
      spec.channels * spec.scale_growth**out.scale * 2**before
    )
    assert out.channels == spec.nodes * cell.channels
    assert (out.height, out.width) == size(out.layer, out.scale)
    assert (cell.height, cell.width) == size(out.layer - 1, out.scale)
    for source in cell.inputs:
      times = 1 + source.halve if source.diagonal else int(source.halve)
      finest = source.diagonal or source.horizontal
      assert (cell.height, cell.width) == (
        halved(finest.height, times),
        halved(finest.width, times),
      )


def test_inputs_of_cells(plan):
  made = {s.output for s in plan.stems} | {c.output for c in plan.cells}
  reductions = grid.reduction_layers(plan.spec.layers)
  for cell in plan.cells:
    layer, scale = cell.output.layer, cell.output.scale
    for source, back in zip(cell.inputs, (2, 1), strict=True):
      expected = max(layer - back, STEM)
      assert source.horizontal in made
      assert source.horizontal.layer == expected
      assert source.horizontal.scale == scale
      if scale == 0:
        assert source.diagonal is None
      else:
        assert source.diagonal in made
        assert source.diagonal.layer == expected
        assert source.diagonal.scale == scale - 1
      assert source.halve == (back == 2 and layer - 1 in reductions)


def test_one_scale_with_the_last_exit_is_the_darts_network():
  plan = grid.build_plan(grid.NetworkSpec(16, 8, 4, exits='last'))
  # As the reference code builds it.
  before_last, last, current = 48, 48, 16
  reduction_before = False
  rows = []
  for layer in range(8):
    reduction = layer in (8 // 3, 2 * 8 // 3)
    current *= 2 if reduction else 1
    rows.append(
      (before_last, last, current, reduction, reduction_before, 4 * current)
    )
    reduction_before = reduction
    before_last, last = last, 4 * current
  assert [
    (
      cell.inputs[0].horizontal.channels,
      cell.inputs[1].horizontal.channels,
      cell.channels,
      cell.reduction,
      cell.inputs[0].halve,
      cell.output.channels,
    )
    for cell in plan.cells
  ] == rows
  assert [cell.output.height for cell in plan.cells] == [32] * 2 + [16] * 3 + [
    8
  ] * 3
  (stem,) = plan.stems
  assert (stem.output.channels, stem.output.height) == (48, 32)
  (exit_,) = plan.exits
  assert (exit_.layer, exit_.feature.channels) == (7, 256)


def test_the_stem_for_imagenet_is_that_of_darts():
  spec = grid.NetworkSpec(
    *(48, 14, 4),
    exits='last',
    image_shape=(224, 224, 3),
    num_classes=1000,
    stem='imagenet',
  )
  plan = grid.build_plan(spec)
  assert [
    (s.output.name, s.output.height, s.output.channels, s.stride, s.rectify)
    for s in plan.stems
  ] == [
    ('stem_0_first', 112, 24, 2, False),
    ('stem_0_early', 56, 48, 2, True),
    ('stem_0', 28, 48, 2, True),
  ]
  assert [s.source and s.source.name for s in plan.stems] == [
    None,
    'stem_0_first',
    'stem_0_early',
  ]
  first, second = plan.cells[:2]
  assert [i.horizontal.name for i in first.inputs] == ['stem_0_early', 'stem_0']
  assert [i.halve for i in first.inputs] == [True, False]
  assert [i.horizontal.name for i in second.inputs] == ['stem_0', 'cell_0_0']
  assert [i.halve for i in second.inputs] == [False, False]
  assert (first.height, first.channels) == (28, 48)
  network = network_lib.derived_network(
    spec, published_cells.PUBLISHED['DARTS_V2']
  )
  # As cnn/model.py of quark0/darts has, its auxiliary head apart.
  assert cost.network_cost(network).params == 4_718_752


def test_a_stem_of_stride_2_halves_the_image():
  spec = grid.NetworkSpec(4, 4, 2, scales=2, stem='stride2')
  plan = grid.build_plan(spec)
  assert [(s.output.name, s.output.height, s.stride) for s in plan.stems] == [
    ('stem_0', 16, 2),
    ('stem_1', 8, 2),
  ]
  assert plan.cells[0].height == 16


def test_stems_for_imagenet_at_several_scales():
  spec = grid.NetworkSpec(
    4, 3, 2, scales=2, stem='imagenet', image_shape=(64, 64, 3)
  )
  plan = grid.build_plan(spec)
  sizes = {
    s.output.name: (s.output.height, s.output.channels) for s in plan.stems
  }
  assert sizes == {
    'stem_0_first': (32, 2),
    'stem_0_early': (16, 4),
    'stem_0': (8, 4),
    'stem_1_early': (8, 8),
    'stem_1': (4, 8),
  }
  (cell,) = (c for c in plan.cells if c.output.name == 'cell_0_1')
  early, late = cell.inputs
  assert (early.horizontal.name, early.diagonal.name) == (
    'stem_1_early',
    'stem_0_early',
  )
  assert (late.horizontal.name, late.diagonal.name) == ('stem_1', 'stem_0')
  assert (early.halve, late.halve) == (True, False)


def test_cells_may_concatenate_some_of_their_nodes():
  plan = grid.build_plan(grid.NetworkSpec(4, 3, 5), 3, 2)
  assert [cell.output.channels for cell in plan.cells] == [3 * 4, 2 * 8, 2 * 16]


def test_names():
  plan = grid.build_plan(grid.NetworkSpec(4, 3, 1, scales=2))
  names = [
    *(s.output.name for s in plan.stems),
    *(c.output.name for c in plan.cells),
    *(e.name for e in plan.exits),
  ]
  assert len(set(names)) == len(names)
  assert {'stem_0', 'stem_1', 'cell_0_1', 'exit_1', 'exit_2'} <= set(names)


GOOD = grid.NetworkSpec(8, 6, 2, scales=2)


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'channels': 0}, ['some.channels = 0', 'at least 1']),
    ({'channels': -4}, ['some.channels = -4']),
    (
      {'channels': 7, 'scale_growth': 1},
      ['some.channels = 7', 'some.scale_growth = 1', 'even'],
    ),
    ({'channels': 5, 'scale_growth': 3}, ['some.channels = 5', 'even']),
    ({'channels': 8.0}, ['some.channels = 8.0', 'whole number']),
    ({'channels': True}, ['some.channels = True']),
    ({'layers': 0}, ['some.layers = 0']),
    ({'layers': None}, ['some.layers = None']),
    ({'nodes': 0}, ['some.nodes = 0']),
    ({'nodes': '2'}, ["some.nodes = '2'"]),
    ({'scales': 0}, ['some.scales = 0']),
    ({'scale_growth': 0}, ['some.scale_growth = 0']),
    ({'scale_growth': 1.5}, ['some.scale_growth = 1.5']),
    ({'exits': 'first'}, ['some.exits', "'first'", "'all_but_first'"]),
    (
      {'exits': 'first', 'layers': 1, 'scales': 1},
      ['some.exits', "'first'", "'all_but_first'"],
    ),
    ({'exits': (2, 6)}, ['some.exits', 'layer 6', 'some.layers = 6', '0 to 5']),
    ({'exits': (-1,)}, ['some.exits', 'layer -1']),
    ({'exits': (1, 1)}, ['some.exits', 'twice', '(1, 1)']),
    ({'exits': (1.0,)}, ['some.exits', '1.0']),
    ({'exits': (True,)}, ['some.exits', 'True']),
    ({'exits': ('last',)}, ['some.exits', "'last'"]),
    ({'exits': 3}, ['some.exits', '3']),
    ({'exits': None}, ['some.exits', 'None']),
    (
      {'scales': 7},
      ['some.scales = 7', 'scale 6', '32x32', 'at most 6 scales'],
    ),
    (
      {'scales': 3, 'image_shape': (3, 40, 1)},
      ['some.scales = 3', 'layer 2', '3x40'],
    ),
    (
      {'scales': 5},
      ['some.scales = 5', 'some.layers = 6', 'layer 4', 'scale 4', '32x32'],
    ),
    ({'stem_multiplier': -1}, ['some.stem_multiplier = -1']),
    ({'links': 'thin'}, ["some.links = 'thin'", 'separable']),
    ({'stem': 'wide'}, ["some.stem = 'wide'", 'stride2']),
    (
      {'stem': 'imagenet', 'image_shape': (4, 40, 1)},
      ["some.stem = 'imagenet'", '4x40 image', "'cifar'"],
    ),
    (
      {'stem': 'imagenet', 'channels': 5, 'scales': 1},
      ['some.channels = 5', "some.stem = 'imagenet'"],
    ),
    ({'boosting': 2}, ['some.boosting = 2']),
    ({'num_classes': 0}, ['some.num_classes = 0']),
  ],
)
def test_an_impossible_plan_is_refused_by_a_sentence_that_names_the_field(
  changes, says
):
  with pytest.raises(UsageError) as caught:
    grid.build_plan(dataclasses.replace(GOOD, **changes), field='some')
  message = str(caught.value)
  for part in says:
    assert part in message
  assert message.endswith('.') and '\n' not in message


@pytest.mark.parametrize('scales', [1, 2, 3, 4])
def test_the_refusals_do_not_go_too_far(scales):
  # The coarsest scale ends at 1x1, which is still a network.
  plan = grid.build_plan(
    grid.NetworkSpec(
      4, 4, 1, scales=scales, image_shape=(2 ** (scales + 1),) * 2 + (1,)
    )
  )
  last = plan.exits[-1].feature
  assert (last.height, last.width) == (1, 1)
