"""The grid of cells spelled out as the rows that the cost model adds up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ms_ranas_jax.space import cell as cell_lib
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import layer_cost
from ms_ranas_jax.space import layers as layers_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space import protocol
from ms_ranas_jax.space.protocol import CostRow


def _link_layers(
  links: str, source: grid.Feature, features: int, affine: bool, rectify: bool
) -> tuple[layer_cost.Layer, ...]:
  """A 3x3 convolution of stride 2, from a scale to the next."""
  sizes = (source.channels, features, source.height, source.width)
  if links == grid.SEPARABLE:
    return layers_lib.separable_norm_layers(*sizes, stride=2, affine=affine)
  return layers_lib.conv_norm_layers(
    *sizes, kernel=3, stride=2, affine=affine, rectify=rectify
  )


def _input_rows(
  source: grid.CellInput, plan: grid.Cell, state: str, affine: bool, links: str
) -> Iterator[CostRow]:
  """The preprocessing of one input of a cell."""
  name = plan.output.name

  level = source.horizontal
  features = plan.channels
  if source.diagonal is not None:
    features //= 2
    layers = _link_layers(links, source.diagonal, features, affine, True)
    if source.halve:
      layers += layers_lib.factorized_reduce_layers(
        features, features, level.height, level.width, affine
      )
    yield CostRow(
      (source.diagonal.name,),
      f'{state}.diagonal',
      plan.height * plan.width * features,
      layers,
      plan.step,
      name,
    )
  if source.halve:
    layers = layers_lib.factorized_reduce_layers(
      level.channels, features, level.height, level.width, affine
    )
  else:
    layers = layers_lib.conv_norm_layers(
      level.channels, features, level.height, level.width, affine=affine
    )
  yield CostRow(
    (level.name,),
    f'{state}.horizontal',
    plan.height * plan.width * features,
    layers,
    plan.step,
    name,
  )


def _cell_rows(
  plan: grid.Cell,
  wiring: cell_lib.Wiring,
  operations: ops.Primitives,
  search: bool,
  partial_channels: int,
  links: str,
) -> Iterator[CostRow]:
  name = plan.output.name
  channels = plan.channels // partial_channels
  state_names: list[tuple[str, ...]] = []
  for position, source in enumerate(plan.inputs):
    made = list(
      _input_rows(source, plan, f'{name}/{position}', not search, links)
    )
    yield from made
    state_names.append(tuple(row.output for row in made))
  elements = plan.output.height * plan.output.width * plan.channels
  passing = state_names
  if partial_channels > 1:
    passing, pools = _passing(plan, state_names, channels)
    yield from pools
  for node in range(wiring.nodes):
    state = f'{name}/{edges_lib.NUM_INPUTS + node}'
    incoming = [e for e in enumerate(wiring.edges) if e[1].node == node]
    # By their states, however a genotype lists them.
    for row, edge in sorted(incoming, key=lambda e: e[1].state):
      strided = plan.reduction and edge.state < edges_lib.NUM_INPUTS
      first = edge.state < edges_lib.NUM_INPUTS
      height = plan.height if first else plan.output.height
      width = plan.width if first else plan.output.width
      if partial_channels > 1:
        yield CostRow(passing[edge.state], state, elements, (), plan.step, name)
      for operation in edge.operations:
        if isinstance(operations[operation], ops.Zero):
          continue
        yield CostRow(
          state_names[edge.state],
          state,
          elements,
          operations[operation].layers(
            channels, 2 if strided else 1, height, width, search
          ),
          plan.step,
          name,
          (row, operation),
        )
    state_names.append((state,))
    if passing is not state_names:
      passing.append((state,))


def _passing(
  plan: grid.Cell, state_names: Sequence[tuple[str, ...]], channels: int
) -> tuple[list[tuple[str, ...]], list[CostRow]]:
  """What goes past the mixtures of partial channels, and the pools for it."""
  if not plan.reduction:
    return list(state_names), []
  output = plan.output
  layer = layer_cost.pool(
    output.height, output.width, plan.channels - channels, kernel=2
  )
  pools = [
    CostRow(
      names,
      f'{output.name}/{state}/passing',
      layer.elements,
      (layer,),
      plan.step,
      output.name,
    )
    for state, names in enumerate(state_names)
  ]
  return [(row.output,) for row in pools], pools


def cost_rows(
  plan: grid.Plan,
  normal: cell_lib.Wiring,
  reduction: cell_lib.Wiring,
  operations: ops.Primitives,
  search: bool,
  partial_channels: int = 1,
) -> tuple[CostRow, ...]:
  """Spells out a network.

  Args:
    plan: the grid.
    normal: wiring of the normal cells.
    reduction: wiring of the reduction cells.
    operations: name -> operation.
    search: whether the BNs of cells have no scale and bias.
    partial_channels: K of mixed cells, see `cell.Cell`.

  Returns:
    The rows in an order in which they can be run, step after step. The tensor
    of a cell's node i is named `FEATURE/i`; a cell's feature is the nodes that
    it concatenates, which `tensors` resolves.
  """
  rows = []
  links = plan.spec.links
  for stem in plan.stems:
    output, source = stem.output, stem.source
    if source is not None and stem.is_link:
      layers = _link_layers(links, source, output.channels, True, False)
    else:
      height, width, channels = plan.spec.image_shape
      if source is not None:
        height, width, channels = source.height, source.width, source.channels
      layers = layers_lib.conv_norm_layers(
        channels,
        output.channels,
        height,
        width,
        kernel=3,
        stride=stem.stride,
        rectify=stem.rectify,
      )
    name = protocol.IMAGES if source is None else source.name
    rows.append(
      CostRow(
        (name,),
        output.name,
        output.height * output.width * output.channels,
        layers,
        stem.step,
        output.name,
      )
    )
  for cell in plan.cells:
    rows += _cell_rows(
      cell,
      reduction if cell.reduction else normal,
      operations,
      search,
      partial_channels,
      links,
    )
  for exit_ in plan.exits:
    feature = exit_.feature
    rows.append(
      CostRow(
        (feature.name,),
        exit_.name,
        plan.spec.num_classes,
        (
          layer_cost.global_pool(
            feature.height, feature.width, feature.channels
          ),
          layer_cost.dense(feature.channels, plan.spec.num_classes),
        ),
        exit_.index,
        exit_.name,
      )
    )
  rows += protocol.boosted_rows(plan)
  return tuple(sorted(rows, key=lambda row: row.step))


def tensors(
  plan: grid.Plan, normal: cell_lib.Wiring, reduction: cell_lib.Wiring
) -> dict[str, tuple[str, ...]]:
  """Returns the name of a cell's feature -> the tensors it consists of."""
  return {
    cell.output.name: tuple(
      f'{cell.output.name}/{state}'
      for state in (reduction if cell.reduction else normal).concat
    )
    for cell in plan.cells
  }
