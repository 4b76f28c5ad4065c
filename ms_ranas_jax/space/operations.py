"""The operations of the search space, as data.

An operation says what it computes and what that costs. The kinds that cells
know how to compute together for many edges (separable convolutions, pools,
skip connections) carry their sizes only; any other operation brings a Flax
module. Networks, alphas and cost tables take a mapping from names to
operations as an argument, so that an operation of one's own needs no change
here:

    primitives = {**PRIMITIVES, 'conv_1x1': Custom(make=..., layers=...)}

`PRIMITIVES` are the choices of a search by default, `OPERATIONS` all that there
are.

>>> import ms_ranas_jax as mr
>>> list(mr.PRIMITIVES)[:4]
['none', 'max_pool_3x3', 'avg_pool_3x3', 'skip_connect']
>>> sorted(set(mr.OPERATIONS) - set(mr.PRIMITIVES))
['conv_7x1_1x7', 'sep_conv_7x7']
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import types

from flax import linen as nn
import jax

from ms_ranas_jax import importing
from ms_ranas_jax import plain_form
from ms_ranas_jax.kernels import convolution
from ms_ranas_jax.space import layer_cost
from ms_ranas_jax.space import layers as layers_lib

Layers = tuple[layer_cost.Layer, ...]


def _strided(size: int, stride: int) -> int:
  return -(-size // stride)


@dataclasses.dataclass(frozen=True)
class Separable:
  """(ReLU, depthwise, pointwise, BN), `repeats` times, stride in the first.

  Attributes:
    kernel: odd size of the depthwise window.
    dilation: 1 or 2.
    repeats: 2 for the separable, 1 for the dilated convolutions of DARTS.

  Example:
    >>> import ms_ranas_jax as mr
    >>> mr.PRIMITIVES['dil_conv_5x5'] == mr.Separable(5, dilation=2, repeats=1)
    True
  """

  kernel: int
  dilation: int = 1
  repeats: int = 2

  def layers(
    self, channels: int, stride: int, height: int, width: int, search: bool
  ) -> Layers:
    """Returns the layers of one edge; height and width are the input's."""
    rows = []
    for repeat in range(self.repeats):
      rows.append(layer_cost.relu(height, width, channels))
      if repeat == 0:
        height, width = _strided(height, stride), _strided(width, stride)
      window = (self.kernel, self.kernel)
      rows += [
        layer_cost.convolution(
          height, width, channels, channels, window, groups=channels
        ),
        layer_cost.convolution(height, width, channels, channels, (1, 1)),
        layer_cost.norm(height, width, channels, affine=not search),
      ]
    return tuple(rows)


@dataclasses.dataclass(frozen=True)
class Pool:
  """A 3x3 pool, followed by a BN without scale and bias in the search.

  Attributes:
    kind: 'max', or 'average' (padding not counted).

  Example:
    >>> import ms_ranas_jax as mr
    >>> mr.PRIMITIVES['max_pool_3x3'] == mr.Pool('max')
    True
  """

  kind: str

  def layers(
    self, channels: int, stride: int, height: int, width: int, search: bool
  ) -> Layers:
    """Returns the layers of one edge; height and width are the input's."""
    height, width = _strided(height, stride), _strided(width, stride)
    rows = [layer_cost.pool(height, width, channels, kernel=3)]
    if search:
      rows.append(
        layer_cost.norm(
          height, width, channels, affine=False, after_convolution=False
        )
      )
    return tuple(rows)


@dataclasses.dataclass(frozen=True)
class Skip:
  """The identity; with stride 2 a factorized reduce.

  Example:
    >>> import ms_ranas_jax as mr
    >>> mr.PRIMITIVES['skip_connect'] == mr.Skip()
    True
  """

  def layers(
    self, channels: int, stride: int, height: int, width: int, search: bool
  ) -> Layers:
    """Returns the layers of one edge; height and width are the input's."""
    if stride == 1:
      return ()
    return layers_lib.factorized_reduce_layers(
      channels, channels, height, width, affine=not search
    )


@dataclasses.dataclass(frozen=True)
class Zero:
  """No connection. A derived cell never holds one.

  Example:
    >>> import ms_ranas_jax as mr
    >>> mr.PRIMITIVES['none'] == mr.Zero()
    True
  """

  def layers(
    self, channels: int, stride: int, height: int, width: int, search: bool
  ) -> Layers:
    """Returns no layers."""
    del channels, stride, height, width, search
    return ()


@dataclasses.dataclass(frozen=True)
class Custom:
  """An operation that brings its own module, one per edge.

  Attributes:
    make: (channels, stride, affine) -> a linen module that maps
      (batch, height, width, channels) to the same with height and width
      divided by the stride, rounded up, and takes the keyword `train`.
      `affine` is False in the search: its BNs have no scale and bias. Where
      the module has the field `axis_name`, the cell sets it.
    layers: (channels, stride, height, width, search) -> its cost.
    plain: (builder, x, stride, variables of its module) -> the tensor that it
      writes: adds the same in plain layers, by which it is exported. Without
      it networks that have the operation are not exported.

  Example:
    >>> import ms_ranas_jax as mr
    >>> from flax import linen as nn
    >>> class Halved(nn.Module):
    ...   @nn.compact
    ...   def __call__(self, x, train):
    ...     return nn.avg_pool(x, (2, 2), (2, 2))
    ...
    >>> halved = mr.Custom(
    ...   make=lambda channels, stride, affine: Halved(),
    ...   layers=lambda channels, stride, height, width, search: (mr.Layer(),),
    ... )
    >>> primitives = {'none': mr.Zero(), 'halved': halved}
    >>> len(mr.mixed_wiring(nodes=2, primitives=tuple(primitives)).edges)
    5
  """

  make: Callable[[int, int, bool], nn.Module]
  layers: Callable[[int, int, int, int, bool], Layers]
  plain: (
    Callable[[plain_form.Builder, str, int, plain_form.ModuleVariables], str]
    | None
  ) = None


Operation = Separable | Pool | Skip | Zero | Custom
Primitives = Mapping[str, Operation]


class FactorizedConv7(nn.Module):
  """ReLU, 1x7 and 7x1 convolution, BN (`conv_7x1_1x7`)."""

  channels: int
  stride: int
  affine: bool
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps (batch, height, width, channels), see `Custom.make`."""
    x = nn.relu(x)
    for name, shape, strides in (
      ('row', (1, 7), (1, self.stride)),
      ('column', (7, 1), (self.stride, 1)),
    ):
      kernel = layers_lib.param(
        self,
        name,
        layers_lib.uniform_fan_in(7 * self.channels),
        (*shape, self.channels, self.channels),
      )
      x = convolution.convolution(x, kernel, strides)
    return layers_lib.NormalizedSum(
      affine=self.affine, axis_name=self.axis_name, name='norm'
    )((x[None],), train=train)[0]


def _factorized_conv_layers(
  channels: int, stride: int, height: int, width: int, search: bool
) -> Layers:
  narrow = _strided(width, stride)
  short = _strided(height, stride)
  return (
    layer_cost.relu(height, width, channels),
    layer_cost.convolution(height, narrow, channels, channels, (1, 7)),
    layer_cost.convolution(short, narrow, channels, channels, (7, 1)),
    layer_cost.norm(short, narrow, channels, affine=not search),
  )


def _factorized_conv_plain(
  builder: plain_form.Builder,
  x: str,
  stride: int,
  module: plain_form.ModuleVariables,
) -> str:
  x = builder.convolution(
    builder.relu(x), module.params['row'], stride=(1, stride)
  )
  return builder.convolution(
    x, module.params['column'], module.norm_of_one(), stride=(stride, 1)
  )


# The order is that of DARTS, which columns of published alphas follow.
PRIMITIVES: Primitives = types.MappingProxyType(
  {
    'none': Zero(),
    'max_pool_3x3': Pool('max'),
    'avg_pool_3x3': Pool('average'),
    'skip_connect': Skip(),
    'sep_conv_3x3': Separable(3),
    'sep_conv_5x5': Separable(5),
    'dil_conv_3x3': Separable(3, dilation=2, repeats=1),
    'dil_conv_5x5': Separable(5, dilation=2, repeats=1),
  }
)

# Those, and what the published NASNet and AmoebaNet cells use besides.
OPERATIONS: Primitives = types.MappingProxyType(
  {
    **PRIMITIVES,
    'sep_conv_7x7': Separable(7),
    'conv_7x1_1x7': Custom(
      FactorizedConv7, _factorized_conv_layers, _factorized_conv_plain
    ),
  }
)


def named(names: Iterable[str], field: str = 'operation') -> Primitives:
  """Returns operations of the package, and those of one's own.

  Args:
    names: of `OPERATIONS`, or 'my_module:my_operation'.
    field: where they are named, for the message.

  Returns:
    name -> operation, in the same order.

  Raises:
    UsageError: there is none of some name.
  """
  return {
    name: importing.find(
      name,
      OPERATIONS,
      field,
      lambda found: isinstance(found, Operation),
      'an operation, such as an ms_ranas_jax.Custom',
    )
    for name in names
  }


class _Real:
  """The names of operations that a derived cell can hold."""

  def __contains__(self, name: object) -> bool:
    if not isinstance(name, str) or (
      name not in OPERATIONS and ':' not in name
    ):
      return False
    return not isinstance(named([name], 'genotype')[name], Zero)


REAL = _Real()
