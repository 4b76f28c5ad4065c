"""A graph hypernetwork: params for every genotype of a space.

After Zhang, Ren and Urtasun, "Graph HyperNetworks for Neural Architecture
Search" (ICLR 2019, arXiv 1810.05749): the operators of a network are nodes of a
graph, messages along it give each a state, and a head makes the params of an
operator from its state. What is trained is the message passing and the head, by
the loss of networks with the params that they make.

The states are those of `embedding`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import itertools
import math
from typing import Any

from flax import traverse_util
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.hypernetwork import edge as edge_lib
from ms_ranas_jax.hypernetwork import embedding
from ms_ranas_jax.hypernetwork import graph
from ms_ranas_jax.hypernetwork import head as head_lib
from ms_ranas_jax.hypernetwork import network as network_lib
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.space import cell as cell_lib
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space.genotype import Genotype
from ms_ranas_jax.space.genotype import check_operations

PyTree = Any
Path = tuple[str, ...]


# Equal to itself alone, so that compiled functions can be kept for it.
@dataclasses.dataclass(frozen=True, eq=False)
class Hypernetwork:
  """What makes the params of the network of any genotype of a space.

  Attributes:
    spec: the sizes of the networks.
    primitives: name -> operation, the choices on every edge.
    rounds: of messages, forward and backward.
    width: of the states of nodes.
    hidden: of the layer of the head.
    tile: channels in and out that one output of the head makes.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> spec = mr.NetworkSpec(channels=4, layers=2, nodes=2)
    >>> hypernetwork = mr.Hypernetwork(spec, mr.PRIMITIVES, width=8, hidden=8)
    >>> params = mr.init_hypernetwork(hypernetwork, jax.random.key(0))
    >>> sorted(params)
    ['codes', 'gru', 'head', 'message']
  """

  spec: grid.NetworkSpec
  primitives: ops.Primitives
  rounds: int = 5
  width: int = 32
  hidden: int = 64
  tile: int = 8

  @functools.cached_property
  def plan(self) -> grid.Plan:
    """The grid as data."""
    return grid.build_plan(self.spec)

  @functools.cached_property
  def head(self) -> head_lib.Head:
    """What makes the params of an operator."""
    found = {
      leaf: None
      for leaves in fixed_leaves(self.spec).values()
      for leaf in leaves.values()
    }
    real = graph.real_primitives(self.primitives)
    for cell in self.plan.cells:
      for stride in (1, 2) if cell.reduction else (1,):
        for name, operation in real.items():
          leaves = edge_lib.leaves(name, operation, cell.channels, stride)
          found |= dict.fromkeys(leaves.values())
    return head_lib.Head(
      tuple(found), self.width, self.hidden, self.tile, self.spec.num_classes
    )

  def embed(
    self, params: PyTree, wires: graph.WiresPerKind
  ) -> embedding.Embeddings:
    """Returns the states of all nodes of a network, see `embedding.embed`.

    Args:
      params: its own.
      wires: of a genotype, see `graph.wires_of`.
    """
    return embedding.embed(self.spec, self.rounds, params, wires)

  def param_shapes(self) -> dict[Path, tuple[tuple[int, ...], float]]:
    """Returns path -> shape of its own params, and their first deviation."""
    width, unit = self.width, self.width**-0.5
    levels = len(grid.reduction_layers(self.spec.layers)) + 1
    codes = {
      'operators': len(graph.operators(self.primitives)),
      'scales': self.spec.scales,
      'levels': levels,
    }
    square, wide = (width, width), (width, 3 * width)
    of = {
      'message': {
        'kernel_0': (square, unit),
        'bias_0': ((width,), 0.0),
        'kernel_1': (square, unit),
        'bias_1': ((width,), 0.0),
      },
      'gru': {
        'message_kernel': (wide, unit),
        'state_kernel': (wide, unit),
        'bias': ((3 * width,), 0.0),
        'state_bias': ((width,), 0.0),
      },
    }
    return {
      **{('codes', name): ((n, width), 1.0) for name, n in codes.items()},
      **{
        (name, field): value
        for name, module in of.items()
        for field, value in module.items()
      },
      **{('head', name): value for name, value in self.head.params().items()},
    }


def init_params(
  hypernetwork: Hypernetwork, key: jax.Array
) -> dict[str, PyTree]:
  """Draws first params of a hypernetwork.

  Args:
    hypernetwork: makes params.
    key: random key.

  Returns:
    A tree of float32 arrays.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> spec = mr.NetworkSpec(channels=4, layers=2, nodes=2)
    >>> hypernetwork = mr.Hypernetwork(spec, mr.PRIMITIVES, width=8, hidden=8)
    >>> params = mr.init_hypernetwork(hypernetwork, jax.random.key(0))
    >>> {str(x.dtype) for x in jax.tree.leaves(params)}
    {'float32'}
  """
  shapes = hypernetwork.param_shapes()
  ends = np.cumsum([math.prod(shape) for shape, _ in shapes.values()])
  # At once: a draw takes long to compile, for every shape. So it does with the
  # partitionable generator, whose point is sharded arrays.
  with jax.threefry_partitionable(False):
    draw = jax.random.normal(key, (ends[-1],), jnp.float32)
  return traverse_util.unflatten_dict(
    {
      path: deviation * part.reshape(shape)
      for part, (path, (shape, deviation)) in zip(
        jnp.split(draw, ends[:-1]), shapes.items(), strict=True
      )
    }
  )


@functools.cache
def fixed_leaves(
  spec: grid.NetworkSpec,
) -> Mapping[str, Mapping[Path, head_lib.Leaf]]:
  """Returns the params that all genotypes have, by their module and path.

  Those are the params of stems, of inputs of cells and of exits.

  Args:
    spec: the sizes of the networks.
  """
  # Of the ways to compute it, the fastest to trace.
  network = network_lib.traced_network(spec, {}, lowering=lowering.CONV)
  image = jax.ShapeDtypeStruct((1, *spec.image_shape), jnp.float32)
  params = jax.eval_shape(
    lambda x: network.init(jax.random.key(0), x, train=True), image
  )['params']
  exits = {exit_.name for exit_ in network.plan.exits}
  found: dict[str, dict[Path, head_lib.Leaf]] = {name: {} for name in params}
  flat: Mapping[Path, Any] = traverse_util.flatten_dict(params)
  for (name, *path), array in flat.items():
    leaf = head_lib.leaf(path, array.shape, name in exits)
    found[name][tuple(path)] = leaf
  return found


def _fixed_params(
  hypernetwork: Hypernetwork, head: PyTree, embeddings: embedding.Embeddings
) -> dict[str, PyTree]:
  """Returns the params of stems, inputs of cells and exits."""
  plan, module = hypernetwork.plan, hypernetwork.head
  states = {
    stem.output.name: embeddings.stems[stem.output.scale] for stem in plan.stems
  }
  states |= {exit_.name: embeddings.exits[exit_.index] for exit_ in plan.exits}
  for cell in plan.cells:
    of_cell = embeddings.cells[cell.output.layer, cell.output.scale]
    for place in range(edges_lib.NUM_INPUTS):
      states[f'{cell.output.name}_input_{place}'] = of_cell[place]
  params = {}
  for name, leaves in fixed_leaves(hypernetwork.spec).items():
    made = module.make(head, states[name], tuple(leaves.values()))
    params[name] = traverse_util.unflatten_dict(
      dict(zip(leaves, made, strict=True))
    )
  return params


def _vectors(
  hypernetwork: Hypernetwork,
  head: PyTree,
  embeddings: embedding.Embeddings,
  wires: graph.WiresPerKind,
) -> dict[str, jax.Array]:
  """Returns the params of the operations of all cells, see `network.Chosen`.

  Cells of a width are made together, edge after edge, so that a program holds
  each operation once for a width.
  """
  places = graph.edge_places(hypernetwork.spec.nodes).ravel()
  found = {}
  for channels in sorted({cell.channels for cell in hypernetwork.plan.cells}):
    cells = [c for c in hypernetwork.plan.cells if c.channels == channels]
    wired = [
      wires[edges_lib.REDUCTION if cell.reduction else edges_lib.NORMAL]
      for cell in cells
    ]
    strided = [
      cell.reduction & (own.states.ravel() < edges_lib.NUM_INPUTS)
      for cell, own in zip(cells, wired, strict=True)
    ]
    states = [
      embeddings.cells[cell.output.layer, cell.output.scale][places]
      for cell in cells
    ]
    made = _vectors_at(
      hypernetwork,
      head,
      channels,
      jnp.concatenate([own.operations.ravel() for own in wired]),
      jnp.concatenate(strided).astype(jnp.int32),
      jnp.concatenate(states),
    )
    parts = jnp.split(made, len(cells))
    found |= {c.output.name: p for c, p in zip(cells, parts, strict=True)}
  return found


def _vectors_at(
  hypernetwork: Hypernetwork,
  head: PyTree,
  channels: int,
  operations: jax.Array,
  strided: jax.Array,
  states: jax.Array,
) -> jax.Array:
  """Returns the params of operations at some width.

  Args:
    hypernetwork: makes them.
    head: params of the head.
    channels: of all operations.
    operations: (edges,) int32.
    strided: (edges,) int32, 1 where the stride is 2.
    states: (edges, width).

  Returns:
    (edges, length), see `edge.pack`.
  """
  real = graph.real_primitives(hypernetwork.primitives)
  leaves = [
    [tuple(edge_lib.leaves(*o, channels, s).values()) for o in real.items()]
    for s in (1, 2)
  ]
  # The stride matters to few operations, such as the skip connection.
  choices = list(dict.fromkeys(itertools.chain(*leaves)))
  numbers = np.array([[choices.index(one) for one in row] for row in leaves])
  length = max(map(edge_lib.size, choices))

  def make(one: tuple[head_lib.Leaf, ...], state: jax.Array) -> jax.Array:
    return edge_lib.pack(hypernetwork.head.make(head, state, one), length)

  branches = [functools.partial(make, one) for one in choices]
  return lax.map(
    lambda x: lax.switch(x[0], branches, x[1]),
    (jnp.asarray(numbers)[strided, operations], states),
  )


def apply(
  hypernetwork: Hypernetwork,
  params: PyTree,
  wires: graph.WiresPerKind,
  images: jax.Array,
  **fields: Any,
) -> jax.Array:
  """Computes the network of a genotype with the params that are made for it.

  The genotype is data: a program that is compiled for one serves all.

  Args:
    hypernetwork: makes the params.
    params: of the hypernetwork.
    wires: of the genotype, see `graph.wires_of`.
    images: (batch, height, width, channels), normalised. BNs use their
      statistics.
    **fields: further attributes of a `Network`, such as `lowering`.

  Returns:
    Logits (exits, batch, classes), float32.
  """
  head = params['head']
  embeddings = hypernetwork.embed(params, wires)
  network = network_lib.traced_network(
    hypernetwork.spec, hypernetwork.primitives, **fields
  )
  chosen = network_lib.Chosen(
    wires, _vectors(hypernetwork, head, embeddings, wires)
  )
  variables = {'params': _fixed_params(hypernetwork, head, embeddings)}
  return jnp.asarray(network.apply(variables, images, chosen, train=True))


def logits(
  hypernetwork: Hypernetwork,
  params: PyTree,
  weights: edges_lib.PerKind,
  images: jax.Array,
  **fields: Any,
) -> jax.Array:
  """Computes the network of a genotype with the params that are made for it.

  As `apply`, for the weights by which search networks know a genotype.

      def loss(params, weights, images, labels):
        logits = hypernetwork_logits(hypernetwork, params, weights, images)
        return exit_losses(logits, labels).mean()

      weights = one_hot_weights(genotype, primitives)

  Args:
    hypernetwork: makes the params.
    params: of the hypernetwork.
    weights: {'normal': (edges, operations), 'reduction': ...}, one-hot; they
      may be traced, so that a program which is compiled once serves all.
    images: (batch, height, width, channels), normalised. BNs use their
      statistics.
    **fields: further attributes of a `Network`, such as `lowering`.

  Returns:
    Logits (exits, batch, classes), float32.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> spec = mr.NetworkSpec(channels=4, layers=2, nodes=2)
    >>> hypernetwork = mr.Hypernetwork(spec, mr.PRIMITIVES, width=8, hidden=8)
    >>> params = mr.init_hypernetwork(hypernetwork, jax.random.key(0))
    >>> (genotype,) = mr.random_genotypes(seed=0, count=1, nodes=2)
    >>> weights = mr.one_hot_weights(genotype)
    >>> images = jax.numpy.zeros((2, 32, 32, 3))
    >>> logits = jax.eval_shape(
    ...   lambda *x: mr.hypernetwork_logits(hypernetwork, *x),
    ...   params, weights, images,
    ... )
    >>> logits.shape
    (1, 2, 10)
  """
  wires = graph.wires_of(weights, hypernetwork.primitives)
  return apply(hypernetwork, params, wires, images, **fields)


def make_params(
  hypernetwork: Hypernetwork, params: PyTree, genotype: Genotype
) -> dict[str, PyTree]:
  """Returns the params that are made for a genotype.

  Args:
    hypernetwork: makes them.
    params: of the hypernetwork.
    genotype: of its primitives; all nodes are concatenated.

  Returns:
    The params of `derived_network(hypernetwork.spec, genotype)`.

  Raises:
    UsageError: it is no genotype of the space of the hypernetwork.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> spec = mr.NetworkSpec(channels=4, layers=2, nodes=2)
    >>> hypernetwork = mr.Hypernetwork(spec, mr.PRIMITIVES, width=8, hidden=8)
    >>> weights = mr.init_hypernetwork(hypernetwork, jax.random.key(0))
    >>> (genotype,) = mr.random_genotypes(seed=0, count=1, nodes=2)
    >>> params = jax.eval_shape(  # shapes alone, as it takes no time
    ...   lambda w: mr.make_params(hypernetwork, w, genotype), weights
    ... )
    >>> network = mr.derived_network(spec, genotype)
    >>> drawn = mr.init_variables(network, jax.random.key(1))['params']
    >>> jax.tree.structure(params) == jax.tree.structure(drawn)
    True
  """
  primitives = hypernetwork.primitives
  _check_genotype(hypernetwork, genotype)
  head, module = params['head'], hypernetwork.head
  tables = {
    kind: edges_lib.one_hot(getattr(genotype, kind), primitives)
    for kind in edges_lib.KINDS
  }
  wires = graph.wires_of(tables, primitives)
  embeddings = hypernetwork.embed(params, wires)
  found = _fixed_params(hypernetwork, head, embeddings)
  places = graph.edge_places(hypernetwork.spec.nodes)
  for cell in hypernetwork.plan.cells:
    states = embeddings.cells[cell.output.layer, cell.output.scale]
    edges = genotype.edges(cell.reduction)
    made = []
    for index, (name, state) in enumerate(edges):
      stride = 2 if cell.reduction and state < edges_lib.NUM_INPUTS else 1
      leaves = edge_lib.leaves(name, primitives[name], cell.channels, stride)
      # Wires list the two edges of a node by their states.
      node, other = index // 2, edges[index ^ 1][1]
      embedding = states[places[node, int(other < state)]]
      arrays = module.make(head, embedding, tuple(leaves.values()))
      made.append(dict(zip(leaves, arrays, strict=True)))
    wiring = cell_lib.fixed_wiring(genotype, cell.reduction)
    of_cell = dict(_side_by_side(wiring, made))
    if of_cell:
      found[cell.output.name] = traverse_util.unflatten_dict(of_cell)
  return found


def _check_genotype(hypernetwork: Hypernetwork, genotype: Genotype) -> None:
  """Refuses a genotype that no search in the space could find."""
  real = graph.real_primitives(hypernetwork.primitives)
  check_operations(genotype, real)
  nodes = hypernetwork.spec.nodes
  for kind in edges_lib.KINDS:
    rows = edges_lib.genotype_rows(getattr(genotype, kind))
    concat = getattr(genotype, f'{kind}_concat')
    if (
      genotype.nodes != nodes
      or concat != edges_lib.all_nodes(nodes)
      or len(set(rows)) < len(rows)
    ):
      raise UsageError(
        f'the {kind} cell of the genotype is none of the space of this '
        f'hypernetwork: give one of {nodes} nodes, each of which reads two '
        'states, and all of which are concatenated.'
      )


def _side_by_side(
  wiring: cell_lib.Wiring, made: list[dict[Path, jax.Array]]
) -> Iterator[tuple[Path, jax.Array]]:
  """Yields the params of a derived cell, from those of each of its edges.

  Edges of a state lie side by side in the arrays of its module, where they
  have the same operation; BNs in the middle of separable convolutions do so
  whatever the operation is.

  Args:
    wiring: of the cell.
    made: for every edge path -> array, see `edge.leaves`.
  """
  for state in range(edges_lib.NUM_INPUTS + wiring.nodes):
    arrays: dict[Path, list[jax.Array]] = {}
    for name, rows in wiring.groups(state).items():
      for place, row in enumerate(rows):
        for path, array in made[row].items():
          # Modules of one's own are one for each edge, and say which.
          if path[0] == f'{name}_0':
            path = (f'{name}_{place}', *path[1:])
          arrays.setdefault(path, []).append(array)
    for path, parts in arrays.items():
      # The kernels of a factorized reduce are two, before their edges.
      axis = 1 if path[-1] == 'kernel' and parts[0].ndim == 4 else 0
      yield (
        (f'state_{state}', *path),
        jnp.concatenate(parts, axis) if len(parts) > 1 else parts[0],
      )
