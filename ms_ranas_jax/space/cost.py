"""What a network costs, by arithmetic over its plan.

A network is spelled out as tasks: the chains of layers that make one tensor
from others. Multiply-adds and parameters add up over the tasks that an exit
needs; the activation memory comes from playing the tasks through in order and
freeing each tensor after its last use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import cell as cell_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import layer_cost
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space import parts
from ms_ranas_jax.space.genotype import Genotype

METRICS = ('macs', 'flops_msdnet', 'params')
_BYTES_PER_FLOAT32 = 4


@dataclasses.dataclass(frozen=True)
class Task:
  """A chain of layers that makes one tensor, or adds to it.

  Attributes:
    inputs: names of the tensors that it reads.
    output: name of the tensor that it writes, or adds to if it is there.
    elements: elements of the output, for one image.
    layers: what is computed.
    step: the first exit that needs it.
    where: the feature or exit that it belongs to.
    edge: the row of the edge in a cell's wiring, and its operation; else None.
  """

  inputs: tuple[str, ...]
  output: str
  elements: int
  layers: tuple[layer_cost.Layer, ...]
  step: int
  where: str
  edge: tuple[int, str] | None = None

  def total(self, metric: str) -> int:
    """Returns the sum of a metric over the layers."""
    return sum(getattr(layer, metric) for layer in self.layers)


@dataclasses.dataclass(frozen=True)
class ExitCost:
  """The cost of an answer at one exit.

  Attributes:
    exit: index of the exit.
    layer: the layer after which it stands.
    macs: multiply-adds up to this exit, earlier exits' classifiers included.
    flops_msdnet: the same in the convention of the MSDNet op counter.
    params: parameters read up to this exit.
    total_params: parameters of the whole network.
    peak_activation_bytes: the most activation memory at any time up to this
      exit, batch 1, of the network cut off after it. ReLU, BN and sums are in
      place; the working memory of a convolution is not counted.
  """

  exit: int
  layer: int
  macs: int
  flops_msdnet: int
  params: int
  total_params: int
  peak_activation_bytes: int


@dataclasses.dataclass(frozen=True)
class NetworkCost:
  """The cost of a network and of each of its exits."""

  params: int
  macs: int
  flops_msdnet: int
  exits: tuple[ExitCost, ...]

  def to_dict(self) -> dict[str, Any]:
    """Returns the form that `describe` writes as JSON."""
    return {
      'params': self.params,
      'macs': self.macs,
      'flops_msdnet': self.flops_msdnet,
      'exits': [dataclasses.asdict(exit_) for exit_ in self.exits],
    }


def _input_tasks(
  source: grid.CellInput, plan: grid.Cell, state: str, affine: bool
) -> Iterator[Task]:
  """The preprocessing of one input of a cell."""
  name = plan.output.name

  def conv(feature: grid.Feature, features: int, **fields):
    return parts.conv_norm_layers(
      feature.channels,
      features,
      feature.height,
      feature.width,
      affine=affine,
      **fields,
    )

  level = source.horizontal
  features = plan.channels
  if source.diagonal is not None:
    features //= 2
    layers = conv(source.diagonal, features, kernel=3, stride=2)
    if source.halve:
      layers += parts.factorized_reduce_layers(
        features, features, level.height, level.width, affine
      )
    yield Task(
      (source.diagonal.name,),
      f'{state}.diagonal',
      plan.height * plan.width * features,
      layers,
      plan.step,
      name,
    )
  if source.halve:
    layers = parts.factorized_reduce_layers(
      level.channels, features, level.height, level.width, affine
    )
  else:
    layers = conv(level, features)
  yield Task(
    (level.name,),
    f'{state}.horizontal',
    plan.height * plan.width * features,
    layers,
    plan.step,
    name,
  )


def _cell_tasks(
  plan: grid.Cell,
  wiring: cell_lib.Wiring,
  operations: ops.Primitives,
  search: bool,
) -> Iterator[Task]:
  name = plan.output.name
  state_names: list[tuple[str, ...]] = []
  for position, source in enumerate(plan.inputs):
    made = list(
      _input_tasks(source, plan, f'{name}/{position}', affine=not search)
    )
    yield from made
    state_names.append(tuple(task.output for task in made))
  elements = plan.output.height * plan.output.width * plan.channels
  for node in range(wiring.nodes):
    state = f'{name}/{cell_lib.NUM_INPUTS + node}'
    for row, edge in enumerate(wiring.edges):
      if edge.node != node:
        continue
      strided = plan.reduction and edge.state < cell_lib.NUM_INPUTS
      first = edge.state < cell_lib.NUM_INPUTS
      height = plan.height if first else plan.output.height
      width = plan.width if first else plan.output.width
      for operation in edge.operations:
        if isinstance(operations[operation], ops.Zero):
          continue
        yield Task(
          state_names[edge.state],
          state,
          elements,
          operations[operation].layers(
            plan.channels, 2 if strided else 1, height, width, search
          ),
          plan.step,
          name,
          (row, operation),
        )
    state_names.append((state,))


def tasks(network: network_lib.Network) -> tuple[Task, ...]:
  """Spells out a network.

  Args:
    network: the network; its params are not needed.

  Returns:
    The tasks in an order in which they can be run, step after step. The tensor
    of a cell's node i is named `FEATURE/i`; a cell's feature is the nodes that
    it concatenates, which `_tensors_of` resolves.
  """
  plan = network.plan
  rows = []
  for stem in plan.stems:
    source = plan.stems[stem.output.scale - 1].output
    height, width, channels = plan.spec.image_shape
    if stem.output.scale:
      height, width, channels = source.height, source.width, source.channels
    rows.append(
      Task(
        (source.name if stem.output.scale else 'images',),
        stem.output.name,
        stem.output.height * stem.output.width * stem.output.channels,
        parts.conv_norm_layers(
          channels,
          stem.output.channels,
          height,
          width,
          kernel=3,
          stride=2 if stem.output.scale else 1,
          rectify=False,
        ),
        stem.step,
        stem.output.name,
      )
    )
  for cell in plan.cells:
    rows += _cell_tasks(
      cell,
      network.reduction if cell.reduction else network.normal,
      network.operations,
      network.search,
    )
  for exit_ in plan.exits:
    feature = exit_.feature
    rows.append(
      Task(
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
  return tuple(sorted(rows, key=lambda task: task.step))


def _tensors_of(network: network_lib.Network) -> dict[str, tuple[str, ...]]:
  """Returns the name of a cell's feature -> the tensors it consists of."""
  features = {}
  for cell in network.plan.cells:
    wiring = network.reduction if cell.reduction else network.normal
    features[cell.output.name] = tuple(
      f'{cell.output.name}/{state}' for state in wiring.concat
    )
  return features


def _peak_elements(
  rows: Sequence[Task], features: Mapping[str, tuple[str, ...]], image: int
) -> int:
  """Plays tasks through and returns the most elements alive at any time."""

  def reads(task: Task) -> set[str]:
    return {
      tensor for name in task.inputs for tensor in features.get(name, (name,))
    }

  last_use: dict[str, int] = {}
  for index, task in enumerate(rows):
    for tensor in reads(task) | {task.output}:
      last_use[tensor] = index
  alive = {'images': image}
  peak = image
  for index, task in enumerate(rows):
    held = sum(alive.values())
    adds = task.output in alive
    working = 0
    for layer in task.layers:
      if layer.in_place:
        continue
      peak = max(peak, held + working + layer.elements)
      working = layer.elements
    if not adds:
      alive[task.output] = task.elements
    peak = max(peak, held + (working if adds else task.elements))
    alive = {
      tensor: size
      for tensor, size in alive.items()
      if last_use.get(tensor, -1) > index
    }
  return peak


def network_cost(network: network_lib.Network) -> NetworkCost:
  """Returns what a network costs, in total and at each exit.

  Args:
    network: a search or a derived network; its params are not needed.

  Returns:
    The cost; the totals are those of the last exit.
  """
  rows = tasks(network)
  features = _tensors_of(network)
  image = int(np.prod(network.plan.spec.image_shape))
  total_params = sum(task.total('params') for task in rows)
  exits = []
  for exit_ in network.plan.exits:
    needed = [task for task in rows if task.step <= exit_.index]
    exits.append(
      ExitCost(
        exit=exit_.index,
        layer=exit_.layer,
        total_params=total_params,
        peak_activation_bytes=_BYTES_PER_FLOAT32
        * _peak_elements(needed, features, image),
        **{m: sum(task.total(m) for task in needed) for m in METRICS},
      )
    )
  last = exits[-1]
  return NetworkCost(last.params, last.macs, last.flops_msdnet, tuple(exits))


@dataclasses.dataclass(frozen=True)
class CostTables:
  """The cost of a network as a linear function of a search's weights.

  Attributes:
    base: what does not depend on the weights.
    normal: (edges, operations), what an operation on an edge of the normal
      cell costs, summed over all normal cells.
    reduction: the same for the reduction cells.
  """

  base: float
  normal: np.ndarray
  reduction: np.ndarray


def cost_tables(
  spec: grid.NetworkSpec,
  primitives: ops.Primitives = ops.PRIMITIVES,
  metric: str = 'macs',
  exit_index: int | None = None,
) -> CostTables:
  """Returns the cost of the derived network for any choice of operations.

  Args:
    spec: the sizes of the network to be derived.
    primitives: name -> operation, in the order of the columns of the weights.
    metric: 'macs', 'flops_msdnet' or 'params'.
    exit_index: count up to this exit; None is the last.

  Returns:
    The tables.

  Raises:
    UsageError: there is no such metric.
  """
  if metric not in METRICS:
    raise UsageError(f'cost metric "{metric}": give one of {METRICS}.')
  network = dataclasses.replace(
    network_lib.search_network(spec, primitives), search=False
  )
  last = len(network.plan.exits) - 1 if exit_index is None else exit_index
  if not 0 <= last < len(network.plan.exits):
    raise UsageError(
      f'exit_index = {last}: the network has exits 0 to '
      f'{len(network.plan.exits) - 1}.'
    )
  kinds = {c.output.name: c.reduction for c in network.plan.cells}
  columns = {name: column for column, name in enumerate(primitives)}
  shape = cell_lib.num_edges(spec.nodes), len(primitives)
  tables = {False: np.zeros(shape), True: np.zeros(shape)}
  base = 0
  for task in tasks(network):
    if task.step > last:
      continue
    if task.edge is None:
      base += task.total(metric)
    else:
      row, operation = task.edge
      tables[kinds[task.where]][row, columns[operation]] += task.total(metric)
  return CostTables(float(base), tables[False], tables[True])


def expected_cost(
  weights: network_lib.Weights, tables: CostTables
) -> jax.Array:
  """The expected cost under the weights; differentiable, exact at one-hot.

  An edge with weight one on `none` costs nothing, so that one-hot weights on
  the edges of a genotype and `none` elsewhere give the derived network's cost.

  Args:
    weights: {'normal': (edges, operations), 'reduction': ...}.
    tables: of the same primitives.

  Returns:
    A scalar in the unit of the tables.
  """
  return (
    tables.base
    + jnp.sum(weights[network_lib.NORMAL] * tables.normal)
    + jnp.sum(weights[network_lib.REDUCTION] * tables.reduction)
  )


def genotype_cost(
  genotype: Genotype,
  tables: CostTables,
  primitives: ops.Primitives = ops.PRIMITIVES,
) -> float:
  """The cost of the network that a genotype stands for, from tables.

  Args:
    genotype: of operations among the primitives; all nodes concatenated.
    tables: of the same number of nodes and the same primitives.
    primitives: name -> operation, in the order of the tables' columns.

  Returns:
    The cost in the unit of the tables, that of `network_cost`.
  """
  columns = {name: column for column, name in enumerate(primitives)}
  total = tables.base
  for table, reduction in ((tables.normal, False), (tables.reduction, True)):
    for index, (operation, state) in enumerate(genotype.edges(reduction)):
      row = cell_lib.num_edges(index // 2) + state
      total += table[row, columns[operation]]
  return float(total)
