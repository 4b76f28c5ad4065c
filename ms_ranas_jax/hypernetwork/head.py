"""From the state of an operator to its params.

One hidden layer serves all: the state of an operator, the part that a param
plays in it (its slot) and the place of a tile in it are added. From what comes
out, one dense layer for each kind of param makes a tile of it: at most `tile`
channels in and out. Wider params are put together of several tiles, smaller
windows are the first entries of the largest one, so that no width has a layer
of its own.

Params are brought to the size that networks train with, as in ppuda
(Knyazev et al., "Parameter Prediction for Unseen Deep Architectures", 2021):
kernels are divided by the square root of their fan-in; with x of unit size,
scales of BNs are 2 sigmoid(x / 2) and biases tanh(x / 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.errors import UsageError

# Kinds of params.
KERNEL = 'kernel'  # (..., channels in, channels out)
DEPTHWISE = 'depthwise'  # (..., channels)
SCALE = 'scale'  # (..., channels), of a BN
BIAS = 'bias'  # the same
CLASSIFIER = 'classifier'  # (channels in, classes)
CLASSIFIER_BIAS = 'classifier_bias'  # (classes,)


@dataclasses.dataclass(frozen=True)
class Leaf:
  """A param of an operator.

  Attributes:
    slot: its name, without that of its operator.
    kind: one of those above.
    shape: its shape.
  """

  slot: str
  kind: str
  shape: tuple[int, ...]

  @property
  def channels(self) -> tuple[int, int]:
    """Channels in and out; 1 where there is no such axis."""
    if self.kind in (KERNEL, CLASSIFIER):
      return self.shape[-2], self.shape[-1]
    return 1, self.shape[-1]

  @property
  def window(self) -> int:
    """How many matrices of channels there are, such as 9 of a 3x3 kernel."""
    return math.prod(self.shape) // math.prod(self.channels)

  @property
  def fan_in(self) -> int:
    """How many products are summed in an entry of the output."""
    return self.window * self.channels[0]


def leaf(path: Sequence[str], shape: tuple[int, ...], of_exit: bool) -> Leaf:
  """Returns what a param is, by its name.

  Args:
    path: of it in its operator, without the operator's name.
    shape: its shape.
    of_exit: whether it belongs to a classifier.

  Raises:
    UsageError: it is neither a kernel nor of a BN.
  """
  slot, last = '/'.join(path), path[-1]
  if of_exit:
    return Leaf(slot, CLASSIFIER if len(shape) > 1 else CLASSIFIER_BIAS, shape)
  if last in (SCALE, BIAS):
    found = Leaf(slot, last, shape)
  elif last.startswith(DEPTHWISE):
    found = Leaf(slot, DEPTHWISE, shape)
  else:
    found = Leaf(slot, KERNEL, shape)
  if found.kind == KERNEL and len(shape) < 2:
    raise UsageError(
      f'a hypernetwork makes no param "{slot}" of shape {shape}, but kernels '
      'of channels in and out, and "scale" and "bias" of BNs; name it so, or '
      'leave its operation out of search.primitives.'
    )
  return found


@dataclasses.dataclass(frozen=True)
class Head:
  """Makes the params of operators.

  Attributes:
    leaves: all that it can be asked for; they decide its sizes.
    width: of the states of operators.
    hidden: of the layer that all share.
    tile: channels in and out that one output makes.
    num_classes: of the classifiers.
  """

  leaves: tuple[Leaf, ...]
  width: int
  hidden: int
  tile: int
  num_classes: int

  @functools.cached_property
  def slots(self) -> tuple[str, ...]:
    """The names of all parts that a param plays."""
    return tuple(sorted({leaf.slot for leaf in self.leaves}))

  def tiles(self, leaf: Leaf) -> tuple[int, int]:
    """Returns the tiles that a param is put together of, in and out."""
    channels_in, channels_out = leaf.channels
    return -(-channels_in // self.tile), -(-channels_out // self.tile)

  def _tile_shape(self, kind: str) -> tuple[int, int]:
    """Returns the channels in and out of one output."""
    return {
      KERNEL: (self.tile, self.tile),
      CLASSIFIER: (self.tile, self.num_classes),
      CLASSIFIER_BIAS: (1, self.num_classes),
    }.get(kind, (1, self.tile))

  def params(self) -> dict[str, tuple[tuple[int, ...], float]]:
    """Returns name -> shape of its own params, and their first deviation."""
    tiles_in, tiles_out = (
      max(self.tiles(leaf)[axis] for leaf in self.leaves) for axis in (0, 1)
    )
    codes = {'slot': len(self.slots), 'in': tiles_in, 'out': tiles_out}
    # A ReLU halves the second moment of what comes in.
    gain = (2 / self.hidden) ** 0.5
    return {
      'kernel': ((self.width, self.hidden), self.width**-0.5),
      'bias': ((self.hidden,), 0.0),
      **{
        f'{name}_codes': ((count, self.hidden), 0.5)
        for name, count in codes.items()
      },
      **{
        f'make_{kind}': (
          (
            self.hidden,
            max(leaf.window for leaf in self.leaves if leaf.kind == kind)
            * math.prod(self._tile_shape(kind)),
          ),
          gain,
        )
        for kind in sorted({leaf.kind for leaf in self.leaves})
      },
    }

  @functools.partial(jax.jit, static_argnums=(0, 3))
  def make(
    self,
    params: Mapping[str, jax.Array],
    state: jax.Array,
    leaves: tuple[Leaf, ...],
  ) -> tuple[jax.Array, ...]:
    """Returns the params of one operator.

    Args:
      params: its own, see `params`.
      state: (width,), of the operator's node after all messages.
      leaves: those among `self.leaves` that the operator has.

    Returns:
      A float32 array for each.
    """
    shared = state @ params['kernel'] + params['bias']
    # Those that differ in their slots alone are made together.
    alike: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for place, one in enumerate(leaves):
      alike.setdefault((one.kind, one.shape), []).append(place)
    made: dict[int, jax.Array] = {}
    for places in alike.values():
      arrays = self._make(params, shared, [leaves[p] for p in places])
      made |= dict(zip(places, arrays, strict=True))
    return tuple(made[place] for place in range(len(leaves)))

  def _make(
    self,
    params: Mapping[str, jax.Array],
    shared: jax.Array,
    leaves: Sequence[Leaf],
  ) -> jax.Array:
    """Returns params of one kind and shape, one after the other."""
    one = leaves[0]
    tiles_in, tiles_out = self.tiles(one)
    slots = np.array([self.slots.index(leaf.slot) for leaf in leaves])
    # (params, tiles in, tiles out, hidden)
    hidden = jax.nn.relu(
      shared[None, None, None]
      + params['slot_codes'][slots][:, None, None]
      + params['in_codes'][None, :tiles_in, None]
      + params['out_codes'][None, None, :tiles_out]
    )
    rows, columns = self._tile_shape(one.kind)
    # What is left over of a larger window is not computed.
    kernel = params[f'make_{one.kind}'][:, : one.window * rows * columns]
    x = hidden.reshape(-1, self.hidden) @ kernel
    x = x.reshape(len(leaves), tiles_in, tiles_out, one.window, rows, columns)
    x = x.transpose(0, 3, 1, 4, 2, 5).reshape(
      len(leaves), one.window, tiles_in * rows, tiles_out * columns
    )
    channels_in, channels_out = one.channels
    x = x[:, :, :channels_in, :channels_out]
    return _normalized(x.reshape(len(leaves), *one.shape), one)


def _normalized(x: jax.Array, leaf: Leaf) -> jax.Array:
  """Brings params of unit size to the size of their kind, see the module."""
  if leaf.kind == SCALE:
    return 2 * jax.nn.sigmoid(x / 2)
  if leaf.kind in (BIAS, CLASSIFIER_BIAS):
    return jnp.tanh(x / 5)
  return x * leaf.fan_in**-0.5
