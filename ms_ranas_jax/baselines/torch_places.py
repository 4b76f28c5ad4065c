"""Where the tensors of a PyTorch network stand among the variables of ours.

A state dict has one tensor for every layer. Ours have arrays that hold the
layers which are computed together, channels last, under names of their own. A
mapping from their names to a `Place` says all that there is to say of both, and
`assemble` reads it; `darts_weights` and `msdnet_weights` write one each.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax import errors
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space.protocol import AnytimeNetwork

Path = tuple[str, ...]
Index = tuple[int | slice, ...]
# Between their letters and ours.
_TO = '->'
# What a norm of PyTorch has -> what ours has; it counts its batches besides.
_NORM = {
  'weight': ('params', 'scale'),
  'bias': ('params', 'bias'),
  'running_mean': ('batch_stats', 'mean'),
  'running_var': ('batch_stats', 'var'),
}
COUNTER = re.compile(r'.*\.num_batches_tracked')


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a tensor goes.

      Place(('params', 'stem_0', 'kernel'), 'oihw->hwio')

  Attributes:
    path: of our variable, its collection first.
    axes: the axes of theirs, then those of the part of ours, by letters: output
      and input channels, height, width. A 1 is an axis of one, which ours has
      not.
    index: the part of our variable that it is; () is all of it.
  """

  path: Path
  axes: str
  index: Index = ()

  def shape(self, variable: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of theirs.

    Args:
      variable: the shape of the whole of ours.
    """
    theirs, ours = self.axes.split(_TO)
    part = np.broadcast_to(0, variable)[self.index].shape
    size = dict(zip(ours, part, strict=True)) | {'1': 1}
    return tuple(size[letter] for letter in theirs)


Places = Mapping[str, Place]


def norm(name: str, path: Path, index: Index = ()) -> dict[str, Place]:
  """Returns the places of a batch normalisation.

  Args:
    name: theirs, such as 'stem.1'.
    path: of our module, without the collection.
    index: the part of each of its variables.
  """
  return {
    f'{name}.{field}': Place((collection, *path, ours), 'o->o', index)
    for field, (collection, ours) in _NORM.items()
  }


def dense(name: str, path: Path) -> dict[str, Place]:
  """Returns the places of a linear layer with a bias, see `norm`."""
  return {
    f'{name}.weight': Place(('params', *path, 'kernel'), 'oi->io'),
    f'{name}.bias': Place(('params', *path, 'bias'), 'o->o'),
  }


def assemble(
  network: AnytimeNetwork,
  places: Places,
  arrays: Mapping[str, np.ndarray],
  unused: re.Pattern[str],
  sizes: str,
) -> dict[str, Any]:
  """Makes the variables of a network out of a state dict.

  Args:
    network: ours, on one device.
    places: of all tensors that theirs has; together they are all of ours.
    arrays: name -> array of floats, any width.
    unused: names that may be there besides.
    sizes: what decides which tensors there are, for messages.

  Returns:
    {'params': ..., 'batch_stats': ...}, float32.

  Raises:
    UsageError: a name is missing or not known, or an array is of another shape
      or not of finite floats; names it.
  """
  mend = f'give {sizes} that it was trained with'
  missing = [name for name in places if name not in arrays]
  unknown = [n for n in arrays if n not in places and not unused.fullmatch(n)]
  if missing:
    instead = f', but {errors.listed(unknown, most=1)}' if unknown else ''
    raise UsageError(
      f'there is no {errors.listed(missing, most=2)}{instead}; {mend}, and the '
      'whole state dict.'
    )
  if unknown:
    raise UsageError(
      f'there is {errors.listed(unknown, most=2)}, which a network of these '
      f'sizes has not; {mend}, or leave that out.'
    )
  # What no tensor has filled is refused where it is written.
  made = {
    path: np.full(shape, np.nan, np.float32)
    for path, shape in variable_shapes(network).items()
  }
  for name, place in places.items():
    array, variable = arrays[name], made[place.path]
    expected = place.shape(variable.shape)
    if array.shape != expected:
      raise UsageError(
        f'{name} is {array.shape}, and {expected} in a network of these sizes; '
        f'{mend}.'
      )
    theirs, ours = place.axes.split(_TO)
    ones = tuple(n for n, letter in enumerate(theirs) if letter == '1')
    plain = theirs.replace('1', '')
    variable[place.index] = (
      _floats(name, array)
      .squeeze(ones)
      .transpose([plain.index(letter) for letter in ours])
    )
  return traverse_util.unflatten_dict(made)


def variable_shapes(network: AnytimeNetwork) -> dict[Path, tuple[int, ...]]:
  """Returns path -> shape of the variables of a network, computing nothing.

  Args:
    network: on one device.
  """
  image = (1, *network.plan.spec.image_shape)
  variables = jax.eval_shape(
    lambda: network.init(jax.random.key(0), jnp.zeros(image), train=False)
  )
  flat: Mapping[Path, Any] = traverse_util.flatten_dict(dict(variables))
  return {path: tuple(entry.shape) for path, entry in flat.items()}


def _floats(name: str, array: np.ndarray) -> np.ndarray:
  """Returns an array in float32."""
  if array.dtype.kind != 'f':
    raise UsageError(
      f'{name} is of the type {array.dtype}; write it as float32.'
    )
  with np.errstate(over='ignore'):  # told below
    plain = array.astype(np.float32)
  if not np.isfinite(plain).all():
    raise UsageError(
      f'{name} holds numbers that are not finite in float32; give the weights '
      'of a training that has not diverged.'
    )
  return plain
