"""The network: stems, the grid of cells and the exits of a plan.

One module serves the search (mixed cells, `weights` passed in) and the
derived network (fixed cells). `params` are keyed by the names of the plan's
features: `stem_S`, `cell_L_S`, `exit_L`.
"""

from __future__ import annotations

from collections.abc import Mapping

from flax import linen as nn
import jax
import jax.numpy as jnp

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.kernels import gradient_scale
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.kernels import recompute
from ms_ranas_jax.space import cell as cell_lib
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import grid_cost_rows
from ms_ranas_jax.space import layers
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space import protocol
from ms_ranas_jax.space.genotype import Genotype
from ms_ranas_jax.space.genotype import check_operations

Weights = edges_lib.PerKind


def _link(
  links: str, features: int, affine: bool, axis_name: str | None, name: str
) -> nn.Module:
  """Returns a 3x3 convolution of stride 2, from a scale to the next."""
  fields = {'affine': affine, 'axis_name': axis_name, 'name': name}
  if links == grid.SEPARABLE:
    return layers.SeparableNorm(features, stride=2, **fields)
  return layers.ConvNorm(features, kernel=3, stride=2, **fields)


class CellInput(nn.Module):
  """Brings one input of a cell to the cell's scale and channels.

  At scale 0 a horizontal convolution (ReLU, 1x1, BN; a factorized reduce where
  the input has to be halved). At coarser scales half of the channels come from
  a diagonal convolution (ReLU, 3x3 stride 2, BN) of the next finer scale, and
  half from a horizontal one; where both have to be halved, the diagonal one is
  by a factorized reduce after it.

  Attributes:
    plan: the plan's entry.
    channels: output channels.
    affine: whether BNs have a scale and a bias.
    links: of the sizes: a diagonal convolution may be separable.
    axis_name: the device axis that shares the BN statistics.
  """

  plan: grid.CellInput
  channels: int
  affine: bool
  links: str = grid.DENSE
  axis_name: str | None = None

  def _reduce(self, x: jax.Array, features: int, name: str, train: bool):
    return layers.FactorizedReduce(
      features, affine=self.affine, axis_name=self.axis_name, name=name
    )(x, train)[0]

  def _conv(self, x: jax.Array, features: int, name: str, train: bool):
    return layers.ConvNorm(
      features, affine=self.affine, axis_name=self.axis_name, name=name
    )(x, train)

  @nn.compact
  def __call__(
    self, horizontal: jax.Array, diagonal: jax.Array | None, train: bool
  ) -> jax.Array:
    """Maps features (batch, height, width, channels) to the cell's state."""
    along = self._reduce if self.plan.halve else self._conv
    if diagonal is None:
      return along(horizontal, self.channels, 'horizontal', train=train)
    half = self.channels // 2
    down = _link(self.links, half, self.affine, self.axis_name, 'diagonal')(
      diagonal, train
    )
    if self.plan.halve:
      down = self._reduce(down, half, 'diagonal_reduce', train)
    level = along(horizontal, half, 'horizontal', train=train)
    return jnp.concatenate([down, level], axis=-1)


class Network(protocol.SteppedNetwork):
  """A network with exits on a grid of cells.

  Attributes:
    plan: the plan.
    normal: wiring of the normal cells.
    reduction: wiring of the reduction cells.
    operations: name -> operation.
    search: BNs of cells without scale and bias, see `Cell`.
    partial_channels: K of the mixed cells, see `Cell`.
    dtype: of the computation: 'float32' or 'bfloat16'. BN statistics and
      logits are float32.
    remat: compute depthwise convolutions again on the way back, which takes
      time and saves the memory of their outputs.
    lowering: how operations are computed, see `use_lowering`.
    axis_name: the device axis that shares the BN statistics.
    gradient_equilibrium: whether all exits count the same for what is below
      them, see `gradient_scale.in_equilibrium`.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> spec = mr.NetworkSpec(channels=4, layers=2, nodes=4)
    >>> network = mr.derived_network(spec, mr.DARTS_V2)
    >>> variables = mr.init_variables(network, jax.random.key(0))
    >>> images = jax.numpy.zeros((2, 32, 32, 3))
    >>> logits = jax.eval_shape(
    ...   lambda *x: network.apply(*x, train=False), variables, images
    ... )
    >>> logits.shape
    (1, 2, 10)
  """

  plan: grid.Plan
  normal: cell_lib.Wiring
  reduction: cell_lib.Wiring
  operations: ops.Primitives
  search: bool
  partial_channels: int = 1
  dtype: str = 'float32'
  remat: bool = False
  lowering: str = lowering.AUTO
  axis_name: str | None = None
  gradient_equilibrium: bool = False

  def cost_rows(self) -> tuple[protocol.CostRow, ...]:
    """Returns what is computed, for the cost model."""
    return grid_cost_rows.cost_rows(
      self.plan,
      self.normal,
      self.reduction,
      self.operations,
      self.search,
      self.partial_channels,
    )

  def tensors(self) -> Mapping[str, tuple[str, ...]]:
    """Returns the tensors that a cell's output consists of, by its name."""
    return grid_cost_rows.tensors(self.plan, self.normal, self.reduction)

  @nn.compact
  def advance(
    self,
    carried: protocol.Carried,
    weights: Weights | None = None,
    *,
    step: int,
    train: bool,
    drop_path: jax.Array | float | None = None,
  ) -> tuple[protocol.Carried, jax.Array]:
    """Computes one step, from the features at hand; see `protocol`.

    Args:
      carried: what the step before returned; `{'images': images}` at first,
        (batch, height, width, channels), normalised.
      weights: {'normal': (edges, operations), 'reduction': ...} of the mixed
        cells, rows that sum to one; None for a derived network.
      step: index of the exit to come to, that after the one before.
      train: normalise with the statistics of the batch, and write running
        averages if the collection `batch_stats` is mutable.
      drop_path: probability to drop an operation, see `Cell`.

    Returns:
      The features that later steps read, by name, and the logits
      (batch, classes), float32.

    Raises:
      UsageError: the weights are none, see `edges.check_weights`.
    """
    with lowering.using(self.lowering), recompute.using(self.remat):
      return self._step(carried, weights, step, train, drop_path)

  def modules_of_step(self, step: int) -> frozenset[str]:
    """Returns the modules, keys of `params`, that a step computes with."""
    names = {self.plan.exits[step].name}
    names.update(s.output.name for s in self.plan.stems if s.step == step)
    for cell in (c for c in self.plan.cells if c.step == step):
      name = cell.output.name
      names.add(name)
      names.update(f'{name}_input_{i}' for i in range(len(cell.inputs)))
    return frozenset(names)

  def _step(self, carried, weights, step, train, drop_path):
    features = dict(carried)
    images = features.pop(protocol.IMAGES, None)
    if images is not None:
      protocol.check_images(self.plan, images)
      images = images.astype(jnp.dtype(self.dtype))
    for stem in (s for s in self.plan.stems if s.step == step):
      name, source = stem.output.name, stem.source
      if stem.is_link and self.plan.spec.links == grid.SEPARABLE:
        module = layers.SeparableNorm(
          stem.output.channels,
          stride=stem.stride,
          axis_name=self.axis_name,
          name=name,
        )
      else:
        module = layers.ConvNorm(
          stem.output.channels,
          kernel=3,
          stride=stem.stride,
          rectify=stem.rectify,
          axis_name=self.axis_name,
          name=name,
        )
      x = images if source is None else features[source.name]
      features[name] = module(x, train)
    for plan in (c for c in self.plan.cells if c.step == step):
      features[plan.output.name] = self._cell(
        plan, features, weights, train, drop_path
      )
    exit_ = self.plan.exits[step]
    x = features[exit_.feature.name]
    if self.gradient_equilibrium and train:
      x, onward = gradient_scale.in_equilibrium(x, step, self.num_exits)
      features[exit_.feature.name] = onward
    logits = layers.classify(x, self.plan.spec.num_classes, exit_.name)
    kept = grid.carried_features(self.plan, step)
    return self.boosted(
      carried, {name: features[name] for name in kept}, logits, step
    )

  def _cell(self, plan: grid.Cell, features, weights, train, drop_path):
    name = plan.output.name
    states = []
    for position, source in enumerate(plan.inputs):
      level, finer = source.horizontal, source.diagonal
      states.append(
        CellInput(
          source,
          plan.channels,
          affine=not self.search,
          links=self.plan.spec.links,
          axis_name=self.axis_name,
          name=f'{name}_input_{position}',
        )(
          features[level.name],
          None if finer is None else features[finer.name],
          train,
        )
      )
    return self._from_states(plan, tuple(states), weights, train, drop_path)

  def _from_states(
    self, plan: grid.Cell, states, weights, train, drop_path
  ) -> jax.Array:
    """Computes a cell from its two inputs."""
    kind = edges_lib.REDUCTION if plan.reduction else edges_lib.NORMAL
    table = None if weights is None else weights[kind]
    if table is not None:
      edges_lib.check_table(table, kind)
    return cell_lib.Cell(
      self.reduction if plan.reduction else self.normal,
      self.operations,
      plan.channels,
      reduction=plan.reduction,
      search=self.search,
      partial_channels=self.partial_channels,
      axis_name=self.axis_name,
      name=plan.output.name,
    )(
      states,
      table,
      train=train,
      drop_path=drop_path,
    )


def search_network(
  spec: grid.NetworkSpec,
  primitives: ops.Primitives = ops.PRIMITIVES,
  *,
  field: str = 'spec',
  **fields,
) -> Network:
  """Returns the network of the search: mixed cells.

  Args:
    spec: the sizes.
    primitives: name -> operation, in the order of the columns of the weights.
    field: the config section that error messages name.
    **fields: further attributes of `Network`.

  Raises:
    UsageError: the sizes make no network.

  Example:
    >>> import ms_ranas_jax as mr
    >>> spec = mr.NetworkSpec(channels=4, layers=3, nodes=1, scales=2)
    >>> network = mr.search_network(spec, mr.PRIMITIVES)
    >>> network.num_exits, network.search
    (2, True)
  """
  wiring = cell_lib.mixed_wiring(spec.nodes, tuple(primitives))
  return Network(
    plan=grid.build_plan(spec, field=field),
    normal=wiring,
    reduction=wiring,
    operations=primitives,
    search=True,
    **fields,
  )


def derived_network(
  spec: grid.NetworkSpec,
  genotype: Genotype,
  operations: ops.Primitives = ops.OPERATIONS,
  *,
  field: str = 'spec',
  **fields,
) -> Network:
  """Returns the network that a genotype stands for.

  Args:
    spec: the sizes; `nodes` must be the genotype's.
    genotype: the cells.
    operations: name -> operation; holds all that the genotype names.
    field: the config section that error messages name.
    **fields: further attributes of `Network`.

  Raises:
    UsageError: the sizes make no network, or do not fit the genotype.

  Example:
    >>> import ms_ranas_jax as mr
    >>> spec = mr.NetworkSpec(channels=4, layers=3, nodes=4, scales=2)
    >>> mr.derived_network(spec, mr.DARTS_V2).num_exits
    2
  """
  check_operations(
    genotype,
    {n for n, o in operations.items() if not isinstance(o, ops.Zero)},
  )
  if spec.nodes != genotype.nodes:
    raise UsageError(
      f'{field}.nodes = {spec.nodes}, but the genotype has cells of '
      f'{genotype.nodes} nodes; set {field}.nodes = {genotype.nodes} or give '
      'another genotype.'
    )
  return Network(
    plan=grid.build_plan(
      spec,
      len(genotype.normal_concat),
      len(genotype.reduction_concat),
      field=field,
    ),
    normal=cell_lib.fixed_wiring(genotype, reduction=False),
    reduction=cell_lib.fixed_wiring(genotype, reduction=True),
    operations=operations,
    search=False,
    **fields,
  )
