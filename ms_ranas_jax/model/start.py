"""The params of a trained network as those that another training starts from.

The network is the same, for images of any size. Where the classes are others
its classifiers are drawn anew, and all else is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import json
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from ms_ranas_jax import errors
from ms_ranas_jax import families
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.model import description as description_lib
from ms_ranas_jax.model import model as model_lib
from ms_ranas_jax.model import tensors
from ms_ranas_jax.space.genotype import Genotype
from ms_ranas_jax.space.protocol import AnytimeNetwork
from ms_ranas_jax.training import initialization

_FIELD = 'config.train.start_from'


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
  """What a training starts from.

  Attributes:
    folder: the model folder that it was read from.
    sha256: of its params, see `description.Tensors`.
    arrays: name -> array of all that is kept, by names of `tensors`.
    drawn: the names of what is not.
  """

  folder: str
  sha256: str
  arrays: Mapping[str, np.ndarray]
  drawn: tuple[str, ...]

  def to_json(self) -> dict[str, Any]:
    """Returns what the model folder of the training says of it."""
    return {
      'folder': self.folder,
      'sha256': self.sha256,
      'drawn': list(self.drawn),
    }


def description_of(path: str) -> tuple[str, description_lib.Description]:
  """Returns the model folder that a training starts from, and what it says.

  Args:
    path: as `model.find_folder` takes it.

  Raises:
    UsageError: there is none.
  """
  try:
    folder = model_lib.find_folder(path)
    return folder, description_lib.read(folder)
  except UsageError as error:
    raise UsageError(f'{_FIELD}: {error}') from error


def genotype_of(path: str) -> Genotype:
  """Returns the cells of the network that a training starts from.

  Args:
    path: as `model.find_folder` takes it.

  Raises:
    UsageError: there is no model, or its family has no cells.
  """
  folder, description = description_of(path)
  value = description.network.get('genotype')
  if value is None:
    raise UsageError(
      f'{_FIELD}: the network of {folder} is of the family '
      f'{description.network["family"]!r}, which has no cells; set '
      f'config.train.network.family, or take {_config(folder)}.'
    )
  return Genotype.from_json(json.dumps(value))


def _config(folder: str) -> str:
  """Returns the flag of the config that has the sizes of a model."""
  return f'--config=configs/fine_tune.py:{folder}'


def read(
  path: str, network: AnytimeNetwork, family: str, class_names: Sequence[str]
) -> Start:
  """Reads what a training starts from.

  Args:
    path: as `model.find_folder` takes it.
    network: that is trained.
    family: its name, as in a config.
    class_names: of the images that it is trained on.

  Raises:
    UsageError: there is no model, or one of another network.
  """
  folder, description = description_of(path)
  _check_network(folder, description, network, family)
  variables = tensors.read(folder, description)
  arrays: dict[str, Any] = traverse_util.flatten_dict(variables, sep='/')
  drawn: tuple[str, ...] = ()
  if tuple(class_names) != description.class_names:
    drawn = _classifiers(folder, description)
  tensors_ = description.tensors
  return Start(
    folder,
    tensors_.sha256 if tensors_ else '',
    {name: array for name, array in arrays.items() if name not in drawn},
    drawn,
  )


def _check_network(
  folder: str,
  description: description_lib.Description,
  network: AnytimeNetwork,
  family: str,
) -> None:
  """Refuses a network whose params are not those of a model."""
  there, here = description.image_shape[2], network.plan.spec.image_shape[2]
  if there != here:
    raise UsageError(
      f'{_FIELD}: {folder} takes images of {there} channels, and these have '
      f'{here}; bring them to as many, or name another model.'
    )
  # Once built, since folders of before lack sizes that are newer.
  built = model_lib.network_of(description, folder)
  old = families.network_to_json(built, description.network['family'])
  new = families.network_to_json(network, family)
  if old == new:
    return
  listed = []
  for name in 'family', 'genotype':
    if old.get(name) != new.get(name):
      listed.append(f'train.{"network." * (name == "family")}{name} is another')
  if old.get('family') == new['family']:
    listed += [
      f'train.network.{name} is {value!r}, and {old["sizes"].get(name)!r} there'
      for name, value in new['sizes'].items()
      if old['sizes'].get(name) != value
    ]
  raise UsageError(
    f'{_FIELD}: the network of {folder} is another one: '
    f'{errors.listed(listed)}; {_config(folder)} has its sizes.'
  )


def _classifiers(
  folder: str, description: description_lib.Description
) -> tuple[str, ...]:
  """Returns the names of the variables that depend on how many classes are."""
  shapes = []
  for more in ((), ('',)):
    network = model_lib.network_of(
      dataclasses.replace(
        description, class_names=(*description.class_names, *more)
      ),
      folder,
    )
    found = jax.eval_shape(
      lambda key, network=network: initialization.init_variables(network, key),
      jax.random.key(0),
    )
    flat: dict[str, Any] = traverse_util.flatten_dict(found, sep='/')
    shapes.append({name: leaf.shape for name, leaf in flat.items()})
  one, other = shapes
  return tuple(sorted(name for name in one if one[name] != other[name]))
