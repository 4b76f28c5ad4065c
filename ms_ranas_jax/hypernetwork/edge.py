"""One operation on one edge of a derived cell, and its params.

Where the operation is data, so are its params: one vector, long enough for any
operation at that width, whose first entries are the params one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import functools
import math
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp

from ms_ranas_jax.hypernetwork import head as head_lib
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.space import cell as cell_lib
from ms_ranas_jax.space import operations as ops

Path = tuple[str, ...]


def module(
  name: str,
  operation: ops.Operation,
  channels: int,
  stride: int,
  axis_name: str | None = None,
) -> cell_lib.StateEdges:
  """Returns the module that computes an operation as derived cells do.

  Args:
    name: of the operation.
    operation: it.
    channels: of its input and output.
    stride: 1 or 2.
    axis_name: the device axis that shares the BN statistics.
  """
  return cell_lib.StateEdges(
    groups=((name, operation, 1),),
    channels=channels,
    stride=stride,
    search=False,
    mixed=False,
    axis_name=axis_name,
    parent=None,
  )


@functools.cache
def leaves(
  name: str, operation: ops.Operation, channels: int, stride: int
) -> Mapping[Path, head_lib.Leaf]:
  """Returns the params of an operation, by their paths in `module`.

  Args:
    name: of the operation.
    operation: it.
    channels: of its input and output.
    stride: 1 or 2.

  Raises:
    UsageError: it has one that no hypernetwork makes.
  """
  made = module(name, operation, channels, stride)
  # The size of the map is of no account.
  x = jax.ShapeDtypeStruct((1, 8, 8, channels), jnp.float32)
  with lowering.using(lowering.CONV):  # the fastest to trace
    variables = jax.eval_shape(
      lambda x: made.init(jax.random.key(0), x, None, train=True), x
    )
  params: Mapping[Path, Any] = traverse_util.flatten_dict(
    variables.get('params', {})
  )
  return {
    path: head_lib.leaf(
      (path[0].removeprefix(f'{name}_'), *path[1:]), array.shape, of_exit=False
    )
    for path, array in params.items()
  }


def size(leaves_: Iterable[head_lib.Leaf]) -> int:
  """Returns how many numbers the params of an operation are."""
  return sum(math.prod(leaf.shape) for leaf in leaves_)


def pack(arrays: Sequence[jax.Array], length: int) -> jax.Array:
  """Returns params as a vector.

  Args:
    arrays: the params, in the order of `leaves`.
    length: of the vector; what is left over is zero.
  """
  flat = [array.ravel() for array in arrays]
  rest = length - sum(map(len, flat))
  return jnp.concatenate([*flat, jnp.zeros(rest, jnp.float32)])


def unpack(
  vector: jax.Array, leaves_: Mapping[Path, head_lib.Leaf]
) -> dict[str, Any]:
  """Returns params as their module takes them.

  Args:
    vector: see `pack`.
    leaves_: of the operation, see `leaves`.
  """
  found, start = {}, 0
  for path, leaf in leaves_.items():
    end = start + math.prod(leaf.shape)
    found[path] = vector[start:end].reshape(leaf.shape)
    start = end
  return traverse_util.unflatten_dict(found)
