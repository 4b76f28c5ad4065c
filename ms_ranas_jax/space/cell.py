"""The cell: mixed operations in the search, chosen ones once it is derived.

Both are one module. A `Wiring` says which edges there are and which operations
stand on each: all of them in a mixed cell, one in a fixed cell. All operations
that read the same state are computed together.

A mixed cell may have partial channels (PC-DARTS, Xu et al. 2020, eq. 3): with
K, the first 1/K of a state's channels go through the mixtures, the others go
past them, and what arrives at a node is shuffled so that the first 1/K of it
holds some of both. Past a reduction they go through a 2x2 max pool. The mixture
of an edge is its operations times their weights, and what goes past it counts
as much as these sum to: one, or with edge normalisation the edge's share. The
sum over edges comes first here, then one concatenation and shuffle per node.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.kernels import convolution
from ms_ranas_jax.kernels import depthwise
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.kernels import pooling
from ms_ranas_jax.kernels import recompute
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import layers
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space.genotype import Genotype


@dataclasses.dataclass(frozen=True)
class Edge:
  """An edge from a state to a node, with the operations on it."""

  state: int
  node: int
  operations: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Wiring:
  """The edges of a cell and what it returns.

  Attributes:
    nodes: number of nodes; node i is state 2 + i.
    edges: in the order of the rows of `weights`: node by node.
    concat: the states whose concatenation is the output.
    mixed: whether every edge carries all operations, with weights.

  Example:
    >>> import ms_ranas_jax as mr
    >>> wiring = mr.fixed_wiring(mr.DARTS_V2, reduction=False)
    >>> wiring.nodes, len(wiring.edges), wiring.concat, wiring.mixed
    (4, 8, (2, 3, 4, 5), False)
  """

  nodes: int
  edges: tuple[Edge, ...]
  concat: tuple[int, ...]
  mixed: bool

  def rows(self, state: int) -> list[int]:
    """Returns the edges that leave a state, as places in `edges`."""
    return [row for row, e in enumerate(self.edges) if e.state == state]

  def groups(self, state: int) -> dict[str, list[int]]:
    """Returns operation name -> the edges that carry it from a state.

    In this order a module of `StateEdges` has its operations, and each of its
    arrays the edges of one.

    Args:
      state: which the edges leave.
    """
    groups: dict[str, list[int]] = {}
    for row in self.rows(state):
      for name in self.edges[row].operations:
        groups.setdefault(name, []).append(row)
    return groups


def mixed_wiring(nodes: int, primitives: Sequence[str]) -> Wiring:
  """Returns the wiring of a search cell: all edges, all operations.

  Example:
    >>> import ms_ranas_jax as mr
    >>> len(mr.mixed_wiring(nodes=4, primitives=mr.PRIMITIVES).edges)
    14
  """
  return Wiring(
    nodes=nodes,
    edges=tuple(
      Edge(state, node, tuple(primitives))
      for node, state in edges_lib.edge_list(nodes)
    ),
    concat=edges_lib.all_nodes(nodes),
    mixed=True,
  )


def fixed_wiring(genotype: Genotype, reduction: bool) -> Wiring:
  """Returns the wiring of a derived cell.

  Example:
    >>> import ms_ranas_jax as mr
    >>> mr.fixed_wiring(mr.DARTS_V2, reduction=True).concat
    (2, 3, 4, 5)
  """
  return Wiring(
    nodes=genotype.nodes,
    edges=tuple(
      Edge(state, index // 2, (operation,))
      for index, (operation, state) in enumerate(genotype.edges(reduction))
    ),
    concat=genotype.concat(reduction),
    mixed=False,
  )


def check_partial_channels(count: int, channels: int, mixed: bool) -> None:
  """Refuses partial channels that a cell cannot have.

  Args:
    count: K.
    channels: of the cell.
    mixed: whether it is a mixed cell.

  Raises:
    UsageError: K is below 1 or does not divide the channels, or the cell is
      not a mixed one.
  """
  if count < 1 or channels % count:
    raise UsageError(
      f'partial_channels = {count} must divide the {channels} channels; change '
      'one of them.'
    )
  if count > 1 and not mixed:
    raise UsageError(
      f'partial_channels = {count}: a derived cell uses all channels; leave it '
      'at 1.'
    )


def _slices(x: jax.Array) -> tuple[jax.Array, ...]:
  return tuple(x[n] for n in range(x.shape[0]))


@lowering.noinline
def _stack(parts_: Sequence[jax.Array]) -> jax.Array:
  return lax.concatenate([lax.expand_dims(p, (0,)) for p in parts_], 0)


# Takes the leading axis apart; its gradient is one stack, not many adds.
_unstack = lowering.custom_vjp(
  lambda x: (_slices(x), None), lambda _, d: (_stack(d),)
)


@lowering.noinline
def _split(joined: jax.Array, *, parts: int) -> tuple[jax.Array, ...]:
  channels = joined.shape[-1] // parts
  axis = joined.ndim - 1
  return tuple(
    lax.slice_in_dim(joined, i * channels, (i + 1) * channels, axis=axis)
    for i in range(parts)
  )


# Puts states side by side. Without a fence, a CPU would make the gradient, a
# sum over all readers of the cell, once again for every state.
_concatenate = lowering.custom_vjp(
  lambda *states: (lax.concatenate(states, states[0].ndim - 1), len(states)),
  lambda count, d: _split(d, parts=count),
)


class StateEdges(nn.Module):
  """All operations on all edges that leave one state of a cell.

  Attributes:
    groups: (name, operation, number of edges that carry it).
    channels: channels of the state.
    stride: 1 or 2.
    search: BNs without scale and bias, and one after every pool.
    mixed: sum the groups with weights; they all have the same edges then.
    axis_name: the device axis that shares the BN statistics.
  """

  groups: tuple[tuple[str, ops.Operation, int], ...]
  channels: int
  stride: int
  search: bool
  mixed: bool
  axis_name: str | None = None

  def _norm(self, name: str, **fields) -> layers.NormalizedSum:
    return layers.NormalizedSum(
      affine=not self.search, axis_name=self.axis_name, name=name, **fields
    )

  def _separable(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
    """Returns name -> (edges, batch, H', W', channels), the last BN left."""
    found = [
      (name, operation, edges)
      for name, operation, edges in self.groups
      if isinstance(operation, ops.Separable)
    ]
    if not found:
      return {}

    def kernels(name: str, size: int, edges: int, repeat: int):
      return (
        layers.param(
          self,
          f'{name}_depthwise_{repeat}',
          layers.uniform_fan_in(size * size),
          (edges, size, size, self.channels),
        ),
        layers.param(
          self,
          f'{name}_pointwise_{repeat}',
          layers.uniform_fan_in(self.channels),
          (edges, self.channels, self.channels),
        ),
      )

    def convolve(x, entries, repeat, stride, norm=None):
      """One repeat of some of the operations, on the same input."""
      shapes = [
        depthwise.KernelShape(o.kernel, o.dilation) for _, o, _ in entries
      ]

      def compute(x, norm, pairs):
        depthwise_outputs = depthwise.relu_depthwise(
          x, [k for k, _ in pairs], shapes, stride, norm
        )
        return [
          convolution.pointwise(y, pointwise)
          for y, (_, pointwise) in zip(depthwise_outputs, pairs, strict=True)
        ]

      pairs = [kernels(n, o.kernel, edges, repeat) for n, o, edges in entries]
      outputs = recompute.where_asked(compute)(x, norm, pairs)
      return {n: y for (n, _, _), y in zip(entries, outputs, strict=True)}

    outputs = convolve(x[None], found, 0, self.stride)
    for repeat in range(1, max(o.repeats for _, o, _ in found)):
      again = [entry for entry in found if entry[1].repeats > repeat]
      norms = layers.NormAffine(
        affine=not self.search,
        axis_name=self.axis_name,
        name=f'separable_norm_{repeat - 1}',
      )([outputs[name] for name, _, _ in again], train=train)
      for entry, norm in zip(again, norms, strict=True):
        outputs |= convolve(outputs[entry[0]], [entry], repeat, 1, norm)
    return outputs

  @nn.compact
  def __call__(
    self, x: jax.Array, weights: jax.Array | None, train: bool
  ) -> tuple[tuple[jax.Array, ...], ...]:
    """Computes the edges.

    Args:
      x: (batch, height, width, channels).
      weights: (edges, groups) of a mixed cell, else None.
      train: whether BNs use the statistics of the batch.

    Returns:
      Per group the outputs of its edges, (batch, H', W', channels) each; of a
      mixed cell one entry, the mixtures.
    """
    separable = self._separable(x, train)
    normalized, plain = {}, {}  # column -> output
    for column, (name, operation, edges) in enumerate(self.groups):
      match operation:
        case ops.Zero():
          pass
        case ops.Separable():
          normalized[column] = separable[name]
        case ops.Pool():
          pool = (
            pooling.max_pool
            if operation.kind == 'max'
            else pooling.average_pool
          )
          z = pool(x[None], self.stride)
          (normalized if self.search else plain)[column] = z
        case ops.Skip() if self.stride == 1:
          plain[column] = x[None]
        case ops.Skip():
          normalized[column] = layers.FactorizedReduce(
            self.channels, edges, normalized=False, name=f'{name}_reduce'
          )(x, train)
        case _:
          made = operation.make(self.channels, self.stride, not self.search)
          shared: dict[str, Any] = {}
          if hasattr(made, 'axis_name'):
            shared['axis_name'] = self.axis_name
          plain[column] = jnp.stack(
            [
              made.clone(parent=self, name=f'{name}_{edge}', **shared)(
                x, train=train
              )
              for edge in range(edges)
            ]
          )

    if self.mixed:
      terms = normalized | plain
      assert weights is not None
      columns = jnp.array(list(terms), jnp.int32)
      total = self._norm('norm', num_normalized=len(normalized))(
        list(terms.values()), weights[:, columns], train=train
      )
      return (_unstack(total),)
    outputs = []
    for column, (name, _, edges) in enumerate(self.groups):
      if column in normalized:
        z = self._norm(f'{name}_norm')((normalized[column],), train=train)
      else:
        z = plain[column]
      outputs.append(_unstack(z) if z.shape[0] == edges else (z[0],) * edges)
    return tuple(outputs)


def _shuffle(x: jax.Array, groups: int) -> jax.Array:
  """Deals channels out: the first of every group, then the second, and so on.

  Args:
    x: (batch, height, width, channels).
    groups: K, of channels / K each.
  """
  parts_ = x.reshape(*x.shape[:-1], groups, -1)
  return jnp.swapaxes(parts_, -1, -2).reshape(x.shape)


class Cell(nn.Module):
  """A cell of nodes; node i sums its incoming edges.

  Attributes:
    wiring: its edges; `mixed_wiring` or `fixed_wiring` makes one.
    operations: name -> operation; holds all that the wiring names.
    channels: channels of the two inputs and of every node.
    reduction: stride 2 on the edges from the inputs.
    search: BNs without scale and bias, and one after every pool, as in the
      DARTS search; by default of mixed cells only.
    partial_channels: K, which divides the channels, of a mixed cell; 1 is all.
    axis_name: the device axis that shares the BN statistics.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> import jax.numpy as jnp
    >>> primitives = {'skip': mr.Skip(), 'conv': mr.Separable(3)}
    >>> wiring = mr.mixed_wiring(nodes=1, primitives=tuple(primitives))
    >>> cell = mr.Cell(wiring, primitives, channels=4)
    >>> state = jnp.ones((1, 8, 8, 4))
    >>> output, variables = cell.init_with_output(
    ...   jax.random.key(0), (state, state), jnp.full((2, 2), 0.5), train=True
    ... )
    >>> output.shape
    (1, 8, 8, 4)
  """

  wiring: Wiring
  operations: ops.Primitives
  channels: int
  reduction: bool = False
  search: bool | None = None
  partial_channels: int = 1
  axis_name: str | None = None

  @nn.compact
  def __call__(
    self,
    inputs: Sequence[jax.Array],
    weights: jax.Array | None = None,
    *,
    train: bool,
    drop_path: jax.Array | float | None = None,
  ) -> jax.Array:
    """Computes the cell.

    Args:
      inputs: states 0 and 1, (batch, height, width, channels) each.
      weights: (edges, operations) of a mixed cell only; rows that sum to one,
        or with edge normalisation to the edge's share of its node.
      train: whether BNs use the statistics of the batch.
      drop_path: probability to drop an operation other than the identity, for
        each image of a fixed cell; needs the rng 'drop_path'. None is never.

    Returns:
      (batch, H', W', channels * number of concatenated nodes).
    """
    wiring = self.wiring
    self._check(inputs, weights)
    search = wiring.mixed if self.search is None else self.search
    channels = self.channels // self.partial_channels
    states = list(inputs)
    incoming: list[list[jax.Array]] = [[] for _ in range(wiring.nodes)]
    # Of partial channels, what goes past the mixtures into each node.
    passing: list[list[jax.Array]] = [[] for _ in range(wiring.nodes)]
    for state in range(edges_lib.NUM_INPUTS + wiring.nodes):
      if state >= edges_lib.NUM_INPUTS:
        node = state - edges_lib.NUM_INPUTS
        x = sum(incoming[node][1:], start=incoming[node][0])
        if passing[node]:
          past = sum(passing[node][1:], start=passing[node][0])
          x = _shuffle(
            jnp.concatenate([x, past], axis=-1), self.partial_channels
          )
        states.append(x)
      rows = wiring.rows(state)
      if not rows:
        continue
      stride = 2 if self.reduction and state < edges_lib.NUM_INPUTS else 1
      groups = wiring.groups(state)
      x, past = states[state], None
      own = jnp.asarray(weights)[jnp.array(rows)] if wiring.mixed else None
      if own is not None and self.partial_channels > 1:
        x, past = x[..., :channels], x[..., channels:]
        if stride > 1:
          past = pooling.max_pool_2x2(past)
        for row, share in zip(rows, jnp.sum(own, axis=1), strict=True):
          passing[wiring.edges[row].node].append(past * share.astype(x.dtype))
      outputs = StateEdges(
        groups=tuple(
          (name, self.operations[name], len(group))
          for name, group in groups.items()
        ),
        channels=channels,
        stride=stride,
        search=search,
        mixed=wiring.mixed,
        axis_name=self.axis_name,
        name=f'state_{state}',
      )(x, own, train)
      targets = {'': rows} if wiring.mixed else groups
      for (name, group), values in zip(targets.items(), outputs, strict=True):
        for row, value in zip(group, values, strict=True):
          if train and drop_path is not None and self._drops(name, stride):
            value = self._drop(value, drop_path)
          incoming[wiring.edges[row].node].append(value)
    return _concatenate(*(states[s] for s in wiring.concat))

  def _drops(self, name: str, stride: int) -> bool:
    """Whether drop-path applies: to all but identities and mixtures."""
    if self.wiring.mixed:
      return False
    return stride > 1 or not isinstance(self.operations[name], ops.Skip)

  def _drop(self, x: jax.Array, rate: jax.Array | float) -> jax.Array:
    keep = 1.0 - rate
    mask = jax.random.bernoulli(
      self.make_rng('drop_path'), keep, (x.shape[0], 1, 1, 1)
    )
    return x * (mask / keep).astype(x.dtype)

  def _check(self, inputs, weights) -> None:
    for position, x in enumerate(inputs):
      if x.ndim != 4 or x.shape[-1] != self.channels:
        raise UsageError(
          f'input {position} of a cell has shape {x.shape}; bring it to '
          f'(batch, height, width, {self.channels}) first, with `ConvNorm`.'
        )
    check_partial_channels(
      self.partial_channels, self.channels, self.wiring.mixed
    )
    if self.wiring.mixed:
      expected = (
        len(self.wiring.edges),
        len(self.wiring.edges[0].operations),
      )
      if weights is None or weights.shape != expected:
        raise UsageError(
          'a mixed cell takes weights of shape (edges, operations) = '
          f'{expected}, not {None if weights is None else weights.shape}.'
        )
    for edge in self.wiring.edges:
      for name in edge.operations:
        if name not in self.operations:
          raise UsageError(f'a cell uses the unknown operation "{name}".')
        if not self.wiring.mixed and isinstance(
          self.operations[name], ops.Zero
        ):
          raise UsageError(
            f'a derived cell cannot hold "{name}", which connects nothing; '
            'leave the edge out.'
          )
