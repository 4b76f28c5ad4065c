"""`model.json`: all that there is to know of a trained network but its params.

It is the one place of these facts in a work directory: what is evaluated, gone
on with, reported and shipped is what stands here, whatever has become of the
config, the genotype file and the data since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import Any

from ms_ranas_jax.costs.cost import ExitCost
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import files
from ms_ranas_jax.version import __version__

FILE = 'model.json'
FORMAT = 'ms_ranas_jax model'
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Tensors:
  """What the file with the params holds.

  Attributes:
    sha256: of the whole file and of what it is a network of, see
      `tensors.describe`.
    shapes: of every tensor, by its name.
  """

  sha256: str
  shapes: Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What an evaluation found, and what it settled.

  Attributes:
    dataset: whose test images were judged.
    test_images: fingerprints of these images and their labels.
    other_images: whether they are others than those of the training's dataset.
    accuracies: on them, one per exit.
    num_holdout: how many held-out training images the rest stands on.
    temperatures: one per exit.
    thresholds: q -> one threshold per exit.
  """

  dataset: str
  test_images: Mapping[str, Any]
  other_images: bool
  accuracies: tuple[float, ...]
  num_holdout: int
  temperatures: tuple[float, ...]
  thresholds: Mapping[float, tuple[float, ...]]


@dataclasses.dataclass(frozen=True)
class Description:
  """A trained network, or one that is being trained.

  Attributes:
    network: `family`, `sizes`, and `genotype` where the family takes one.
    dtype: of the computation.
    image_shape: (height, width, channels).
    mean: per channel, of images / 255.
    std: the same.
    class_names: one per class, in the order of the logits.
    exits: what each exit costs.
    data: the dataset's `name` and the fingerprints of its parts; empty where
      it was not trained by the program.
    tensors: of the params; None before the end of the training.
    evaluation: None before the first.
    start: what its training started from, see `start.Start.to_json`; empty
      where that was random params, or is not known.
  """

  network: Mapping[str, Any]
  dtype: str
  image_shape: tuple[int, int, int]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  class_names: tuple[str, ...]
  exits: tuple[ExitCost, ...]
  data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  tensors: Tensors | None = None
  evaluation: Evaluation | None = None
  start: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def folder_of(path: str) -> str:
  """Returns the model folder of a work directory."""
  return os.path.join(path, 'model')


def exists(folder: str) -> bool:
  """Returns whether a folder holds a description."""
  return files.is_file(os.path.join(folder, FILE))


def write(folder: str, description: Description) -> None:
  """Writes `model.json`, whole or not at all."""
  files.write_json(os.path.join(folder, FILE), _to_json(description))


def read(folder: str) -> Description:
  """Reads `model.json`.

  Args:
    folder: the model folder.

  Raises:
    UsageError: it is not there, is of another version, or is damaged; the
      message names the file and what to do.
  """
  path = os.path.join(folder, FILE)
  value = files.read_json(path)
  if not isinstance(value, dict) or value.get('format') != FORMAT:
    raise UsageError(
      f'{path} is no description of a model; name a model folder, or a work '
      'directory in which a network was trained.'
    )
  if value.get('version') != VERSION:
    raise UsageError(
      f'{path} is of version {value.get("version")!r}, and this program reads '
      f'version {VERSION}; use the release of ms_ranas_jax that wrote it '
      f'({value.get("written_by", "unknown")}), or train again.'
    )
  try:
    return _from_json(value)
  except _Malformed as error:
    raise UsageError(
      f'{path}: {error}; bring the file back from a copy, or train again.'
    ) from error


class _Malformed(ValueError):
  """Says which field is not what it should be."""


def _to_json(description: Description) -> dict[str, Any]:
  value: dict[str, Any] = dataclasses.asdict(description)
  value['exits'] = [exit_.to_dict() for exit_ in description.exits]
  if description.evaluation is not None:
    # The keys of a JSON object are texts, and these are numbers.
    thresholds = value['evaluation']['thresholds']
    value['evaluation']['thresholds'] = [
      {'q': q, 'thresholds': list(row)} for q, row in thresholds.items()
    ]
  return {
    'format': FORMAT,
    'version': VERSION,
    'written_by': f'ms_ranas_jax {__version__}',
    **value,
  }


def _from_json(value: Mapping[str, Any]) -> Description:
  exits = _list(value, 'exits')
  description = Description(
    network=_mapping(value, 'network'),
    dtype=_text(value, 'dtype'),
    image_shape=_numbers(value, 'image_shape', int, 3),
    mean=_numbers(value, 'mean'),
    std=_numbers(value, 'std'),
    class_names=tuple(_list(value, 'class_names')),
    exits=tuple(map(_exit, exits)),
    data=_mapping(value, 'data'),
    tensors=_optional(value, 'tensors', _tensors),
    evaluation=_optional(value, 'evaluation', _evaluation),
    # Files of earlier versions lack it.
    start=_mapping(value, 'start') if 'start' in value else {},
  )
  if not all(isinstance(name, str) for name in description.class_names):
    raise _Malformed('"class_names" is no list of texts')
  channels = description.image_shape[2]
  if not len(description.mean) == len(description.std) == channels:
    raise _Malformed(f'"mean" and "std" are not of {channels} channels')
  evaluation = description.evaluation
  if evaluation is not None and {len(exits)} != set(
    map(len, (evaluation.temperatures, *evaluation.thresholds.values()))
  ):
    raise _Malformed(
      '"temperatures" or "thresholds" are not as many as "exits"'
    )
  if min(description.std) <= 0:
    raise _Malformed('"std" holds a number that is not positive')
  return description


def _exit(value: Any) -> ExitCost:
  names = [field.name for field in dataclasses.fields(ExitCost)]
  # Files of earlier versions lack one.
  if not isinstance(value, dict) or {*value, 'params_deployed'} != set(names):
    raise _Malformed(f'an entry of "exits" has not the fields {names}')
  for name, number in value.items():
    if type(number) is not int or number < 0:
      raise _Malformed(f'"exits": {name} = {number!r} is no whole number')
  return ExitCost(**value)


def _tensors(value: Mapping[str, Any]) -> Tensors:
  shapes = _mapping(value, 'shapes')
  return Tensors(
    _text(value, 'sha256'),
    {name: _numbers(shapes, name, int) for name in shapes},
  )


def _evaluation(value: Mapping[str, Any]) -> Evaluation:
  thresholds = {}
  for row in _list(value, 'thresholds'):
    if not isinstance(row, dict):
      raise _Malformed('an entry of "thresholds" is no object')
    (q,) = _numbers({'q': [row.get('q')]}, 'q')
    thresholds[q] = _numbers(row, 'thresholds')
  return Evaluation(
    dataset=_text(value, 'dataset'),
    test_images=_mapping(value, 'test_images'),
    other_images=value.get('other_images') is True,
    accuracies=_numbers(value, 'accuracies'),
    num_holdout=_numbers({'n': [value.get('num_holdout')]}, 'n', int)[0],
    temperatures=_numbers(value, 'temperatures'),
    thresholds=thresholds,
  )


def _optional(value: Mapping[str, Any], name: str, parse: Any) -> Any:
  if value.get(name) is None:
    return None
  return parse(_mapping(value, name))


def _mapping(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
  if not isinstance(value.get(name), dict):
    raise _Malformed(f'"{name}" is no object')
  return value[name]


def _list(value: Mapping[str, Any], name: str) -> Sequence[Any]:
  if not isinstance(value.get(name), list):
    raise _Malformed(f'"{name}" is no list')
  return value[name]


def _text(value: Mapping[str, Any], name: str) -> str:
  if not isinstance(value.get(name), str):
    raise _Malformed(f'"{name}" is no text')
  return value[name]


def _numbers(
  value: Mapping[str, Any],
  name: str,
  kind: type[int] | type[float] = float,
  count: int | None = None,
) -> tuple[Any, ...]:
  numbers = _list(value, name)
  kinds = (int,) if kind is int else (int, float)
  if not all(type(number) in kinds for number in numbers):
    raise _Malformed(f'"{name}" is no list of numbers')
  if count not in (None, len(numbers)):
    raise _Malformed(f'"{name}" has {len(numbers)} entries, not {count}')
  return tuple(kind(number) for number in numbers)
