"""Tests of the picture of the grid."""

from matplotlib import patches
import pytest

from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.baselines import resnet8
from ms_ranas_jax.report import grid_picture
from ms_ranas_jax.report import style
from ms_ranas_jax.space import grid

_SPECS = {
  'paper': grid.NetworkSpec(channels=16, layers=7, nodes=2, scales=3),
  'darts': grid.NetworkSpec(channels=36, layers=20, nodes=4, exits='last'),
  'uneven': grid.NetworkSpec(
    channels=8,
    layers=5,
    nodes=2,
    scales=2,
    exits=(2,),
    image_shape=(28, 20, 1),
  ),
  'many exits': grid.NetworkSpec(channels=8, layers=14, nodes=2),
  'one layer': grid.NetworkSpec(channels=8, layers=1, nodes=1),
}


@pytest.mark.parametrize('name', _SPECS)
def test_everything_of_the_plan_is_there(name, check_texts):
  plan = grid.build_plan(_SPECS[name])
  figure = grid_picture.draw(plan)
  check_texts(figure)
  (axes,) = figure.axes
  texts = [text.get_text() for text in axes.texts]
  for exit_ in plan.exits:
    assert f'exit {exit_.index}' in texts
  reductions = grid.reduction_layers(plan.spec.layers)
  assert texts.count('reduction') == len(reductions)
  colors = style.exit_colors(len(plan.exits))
  boxes = [
    patch
    for patch in axes.patches
    if isinstance(patch, patches.FancyBboxPatch) and patch.get_height() > 30
  ]
  want = [*plan.stems, *plan.cells]
  assert len(boxes) == len(want)
  for box, part in zip(boxes, want):
    feature = part.output
    x, y = grid_picture._center(feature.layer, feature.scale)
    assert box.get_x() + box.get_width() / 2 == pytest.approx(x)
    assert box.get_y() + box.get_height() / 2 == pytest.approx(y)
    color = patches.colors.to_hex(box.get_facecolor())
    assert color == colors[part.step]
    assert f'{feature.height}×{feature.width}\n{feature.channels}' in texts
  dotted = [
    patch
    for patch in axes.patches
    if isinstance(patch, patches.Rectangle)
    and not isinstance(patch, patches.FancyBboxPatch)
    and patch.get_facecolor()[3] == 0
  ]
  squares = plan.spec.layers * plan.spec.scales
  assert len(dotted) == squares - len(plan.cells)


def test_links():
  plan = grid.build_plan(_SPECS['paper'])
  (axes,) = grid_picture.draw(plan).axes
  arrows = [
    patch
    for patch in axes.patches
    if isinstance(patch, patches.FancyArrowPatch)
  ]
  features = set()
  for cell in plan.cells:
    for cell_input in cell.inputs:
      for feature in (cell_input.horizontal, cell_input.diagonal):
        if feature is not None:
          features.add((cell.output, feature))
  vertical = plan.spec.scales - 1
  assert len(arrows) == len(features) + vertical + len(plan.exits)


@pytest.mark.parametrize('prune', ['max', 'min'])
def test_msdnet(prune, check_texts):
  plan = msdnet_plan.build_plan(msdnet_plan.MSDNetSpec(8, 4, 2, 1, prune=prune))
  figure = grid_picture.draw(plan)
  check_texts(figure)
  (axes,) = figure.axes
  texts = [text.get_text() for text in axes.texts]
  for index in range(4):
    assert f'exit {index}' in texts
  marked = msdnet_plan.transition_layers(plan.spec)
  assert texts.count('transition') == len(marked) > 0
  for node in plan.nodes:
    feature = node.output
    assert f'{feature.height}×{feature.width}\n{feature.channels}' in texts
  arrows = [
    patch
    for patch in axes.patches
    if isinstance(patch, patches.FancyArrowPatch)
  ]
  links = sum(len(node.convolutions) for node in plan.nodes)
  vertical = plan.spec.scales - 1
  assert len(arrows) == links + vertical + len(plan.exits)


def test_resnet8(check_texts):
  plan = resnet8.build_plan(resnet8.ResNet8Spec(exits=(0,)))
  figure = grid_picture.draw(plan)
  check_texts(figure)
  (axes,) = figure.axes
  texts = [text.get_text() for text in axes.texts]
  for text in '32×32\n16', '16×16\n32', '8×8\n64', 'exit 0', 'exit 1':
    assert text in texts
  arrows = [
    patch
    for patch in axes.patches
    if isinstance(patch, patches.FancyArrowPatch)
  ]
  assert len(arrows) == 3 + len(plan.exits)
