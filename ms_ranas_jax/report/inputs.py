"""What the report reads of a work directory: whole and sound, or refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
from typing import Any

import numpy as np

from ms_ranas_jax.anytime import classes
from ms_ranas_jax.baselines import cells
from ms_ranas_jax.data import summary as summary_lib
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.model import description as description_lib
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import metrics
from ms_ranas_jax.sections import FORMATS
from ms_ranas_jax.sections import ONNX
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import genotype as genotype_lib

# What the report is written to.
PAGE_NAME = 'report.html'

LATENCY = 'evaluate/latency.json'
QUANTIZED = 'export/quantized.json'
_EXAMPLES = ('images', 'labels')
_IMAGES_AGAIN = 'run any stage that reads images again.'
_AGAIN = 'run the search stage again.'
_EXPORT_AGAIN = 'run the export stage again.'


@dataclasses.dataclass(frozen=True)
class Results:
  """What the stages have left in a work directory; None where nothing.

  Attributes:
    config: content of `config.json`, of which nothing is sure.
    summary: see `read_summary`.
    examples: content of `images/examples.npz`; None without a summary.
    genotype: that the search found.
    alphas: see `read_alphas`.
    anytime: content of `evaluate/anytime.json`.
    budgeted: content of `evaluate/budgeted.json`.
    classes: see `read_classes`.
    latency: see `read_latency`; None where it is of another model.
    quantized: see `read_quantized`; None where it is of another model.
    of_another_model: names of the files that were left out because they are
      not of the model in the work directory.
    search_cost: content of `describe/search_network.json`.
    candidates: see `read_candidates`.
    seeds: see `read_seeds`.
    search_records: lines of `search/metrics.jsonl`, or none.
    train_records: lines of `train/metrics.jsonl`, or none.
  """

  config: Any
  summary: Mapping[str, Any] | None
  examples: Mapping[str, np.ndarray] | None
  genotype: genotype_lib.Genotype | None
  alphas: Mapping[str, np.ndarray] | None
  anytime: Mapping[str, Any] | None
  budgeted: Mapping[str, Any] | None
  classes: Mapping[str, Any] | None
  latency: Mapping[str, Any] | None
  quantized: Mapping[str, Any] | None
  of_another_model: Sequence[str]
  search_cost: Mapping[str, Any] | None
  candidates: Mapping[str, Any] | None
  seeds: Mapping[str, Any] | None
  search_records: Sequence[Mapping[str, Any]]
  train_records: Sequence[Mapping[str, Any]]


def read(workdir: str, primitives: Sequence[str]) -> Results:
  """Returns all that the report reads of a work directory.

  Args:
    workdir: the work directory.
    primitives: the operations of the search, in the order of the alphas.

  Raises:
    UsageError: a file is broken; the message names it.
  """
  anytime = read_anytime(workdir)
  exported = {
    LATENCY: read_latency(workdir),
    QUANTIZED: read_quantized(workdir),
  }
  others = _of_another_model(workdir, exported)
  latency, quantized = (
    None if name in others else content for name, content in exported.items()
  )
  _check_exits(workdir, anytime, latency, quantized)
  summary = read_summary(workdir)
  return Results(
    config=read_json(workdir, 'config.json'),
    summary=summary,
    examples=None if summary is None else read_examples(workdir, summary),
    genotype=read_genotype(workdir, 'search/genotype.json'),
    alphas=read_alphas(workdir, primitives),
    anytime=anytime,
    budgeted=read_budgeted(workdir),
    classes=None if anytime is None else read_classes(workdir, anytime),
    latency=latency,
    quantized=quantized,
    of_another_model=others,
    search_cost=read_object(
      workdir, 'describe/search_network.json', 'exits', ('macs',)
    ),
    candidates=read_candidates(workdir),
    seeds=read_seeds(workdir),
    search_records=read_metrics(workdir, 'search/metrics.jsonl'),
    train_records=read_metrics(workdir, 'train/metrics.jsonl'),
  )


def read_json(workdir: str, name: str) -> Any:
  """Returns the content of a file of the work directory, or None."""
  path = os.path.join(workdir, name)
  return files.read_json(path) if files.is_file(path) else None


def read_object(
  workdir: str, name: str, field: str, needed: Sequence[str]
) -> dict[str, Any] | None:
  """Reads a JSON object with a list of records under `field`, or None."""
  content = read_json(workdir, name)
  if content is None:
    return None
  path = os.path.join(workdir, name)
  records = content.get(field) if isinstance(content, dict) else None
  if not isinstance(records, list) or not records:
    raise UsageError(
      f'{path} has no list "{field}"; run the stage that writes it again.'
    )
  for index, record in enumerate(records):
    for key in needed:
      value = record.get(key) if isinstance(record, dict) else None
      if not _is_number(value):
        raise UsageError(
          f'{path}, "{field}" {index}: "{key}" is not a number; run the stage '
          'that writes it again.'
        )
  return content


def read_summary(workdir: str) -> dict[str, Any] | None:
  """Returns the content of `images/summary.json`, or None."""
  content = read_object(
    workdir, summary_lib.SUMMARY_FILE, 'classes', ('train', 'test')
  )
  if content is None:
    return None
  shape, notes = content.get('image_shape'), content.get('notes')
  if (
    not isinstance(content.get('name'), str)
    or not all(isinstance(c.get('name'), str) for c in content['classes'])
    or not _are_rows([shape], 3, _is_count)
    or not isinstance(notes, list)
    or not all(isinstance(note, str) and note for note in notes)
  ):
    raise UsageError(
      f'{os.path.join(workdir, summary_lib.SUMMARY_FILE)} has no "name", '
      f'"image_shape" and "notes" of images; {_IMAGES_AGAIN}'
    )
  return content


def read_examples(
  workdir: str, summary: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """Returns the content of `images/examples.npz`.

  Args:
    workdir: the work directory.
    summary: content of `images/summary.json`, of the same images.

  Raises:
    UsageError: it is not there, or not of these images.
  """
  path = os.path.join(workdir, summary_lib.EXAMPLES_FILE)
  arrays = files.read_npz(path, _IMAGES_AGAIN)
  images, labels = (arrays.get(key, np.empty(0)) for key in _EXAMPLES)
  if (
    images.dtype != np.uint8
    or images.ndim != 4
    or images.shape[-1:] != tuple(summary['image_shape'][-1:])
    or labels.dtype != np.int32
    or labels.shape != images.shape[:1]
    or not labels.size
    or labels.min() < 0
    or labels.max() >= len(summary['classes'])
    or (np.diff(labels) < 0).any()
  ):
    raise UsageError(
      f'{path} holds no images of the classes of the summary beside it; '
      f'{_IMAGES_AGAIN}'
    )
  return arrays


def read_anytime(workdir: str) -> dict[str, Any] | None:
  """Returns the content of `evaluate/anytime.json`, or None."""
  return read_object(
    workdir, 'evaluate/anytime.json', 'exits', ('accuracy', 'macs')
  )


def read_budgeted(workdir: str) -> dict[str, Any] | None:
  """Returns the content of `evaluate/budgeted.json`, or None.

  Its list of points is empty where no images were held out.
  """
  name = 'evaluate/budgeted.json'
  content = read_json(workdir, name)
  if isinstance(content, dict) and (
    (content.get('num_holdout'), content.get('points')) == (0, [])
  ):
    return content
  return read_object(workdir, name, 'points', ('accuracy', 'macs'))


def read_classes(
  workdir: str, anytime: Mapping[str, Any]
) -> dict[str, Any] | None:
  """Returns the content of `evaluate/classes.json`, or None.

  Args:
    workdir: the work directory.
    anytime: content of `evaluate/anytime.json`, of the same evaluation.
  """
  name = 'evaluate/classes.json'
  content = read_json(workdir, name)
  if content is None:
    return None
  held: dict[str, Any] = content if isinstance(content, dict) else {}
  names, table, accuracies = (
    held.get(key, []) for key in ('class_names', 'confusion', 'accuracies')
  )
  path = os.path.join(workdir, name)
  again = 'run the evaluate stage again.'
  if (
    not isinstance(names, list)
    or not names
    or not all(isinstance(class_name, str) for class_name in names)
    or not _are_rows(table, len(names), _is_count)
    or len(table) != len(names)
    or not _are_rows(
      accuracies,
      len(names),
      lambda v: v is None or _is_number(v) and 0 <= v <= 1,
    )
  ):
    raise UsageError(
      f'{path} holds no "class_names" with a table "confusion" and '
      f'"accuracies" of them; {again}'
    )
  matrix = np.array(table)
  exits = anytime['exits']
  unknown = [[value is None for value in of_exit] for of_exit in accuracies]
  if (
    not matrix.sum()
    or len(accuracies) != len(exits)
    or accuracies[-1] != classes.accuracies(matrix)
    or any(of_exit != unknown[-1] for of_exit in unknown)
    or not np.isclose(matrix.trace() / matrix.sum(), exits[-1]['accuracy'])
  ):
    raise UsageError(
      f'{path} is not of the same evaluation as anytime.json beside it; {again}'
    )
  return content


def read_latency(workdir: str) -> dict[str, Any] | None:
  """Returns the content of `evaluate/latency.json`, or None."""
  content = read_object(
    workdir, LATENCY, 'entries', ('threads', 'batch_size', 'rounds')
  )
  if content is None:
    return None
  path = os.path.join(workdir, LATENCY)
  for name in ('machine', 'versions'):
    if not isinstance(content.get(name), dict):
      raise UsageError(f'{path}: "{name}" is not an object; {_EXPORT_AGAIN}')
  for index, entry in enumerate(content['entries']):
    exits = entry.get('exits')
    if (
      not isinstance(entry.get('runtime'), str)
      or not isinstance(exits, list)
      or len(exits) != len(content['entries'][0]['exits'])
      or not exits
      or not all(map(_are_times, exits))
    ):
      raise UsageError(
        f'{path}, "entries" {index}: no "runtime" with the milliseconds of '
        f'each of the "exits"; {_EXPORT_AGAIN}'
      )
  return content


def _are_times(times: Any) -> bool:
  """Returns whether these are a median and quartiles that a clock may give."""
  return isinstance(times, dict) and all(
    _is_number(times.get(name)) and 0 < times[name] < np.inf
    for name in ('median', 'low', 'high')
  )


def read_quantized(workdir: str) -> dict[str, Any] | None:
  """Returns the content of `export/quantized.json`, or None."""
  content = read_object(workdir, QUANTIZED, 'exits', ('exit',))
  if content is None:
    return None
  path = os.path.join(workdir, QUANTIZED)
  reaching = content.get('calibration_images')
  if (
    not isinstance(content.get('dataset'), str)
    or not _is_count(content.get('num_examples'))
    or not _is_number(content.get('calibration_q'))
    or not isinstance(reaching, list)
    or not all(map(_is_count, reaching))
  ):
    raise UsageError(
      f'{path} does not say what was judged ("dataset", "num_examples") or '
      f'calibrated ("calibration_q", "calibration_images"); {_EXPORT_AGAIN}'
    )
  formats = [name for name in FORMATS if name in content['exits'][0]]
  for index, record in enumerate(content['exits']):
    if (
      ONNX not in formats
      or [name for name in FORMATS if name in record] != formats
      or not all(_is_comparison(record[name]) for name in formats)
    ):
      raise UsageError(
        f'{path}, "exits" {index}: no "accuracy" and numbers of "float32" and '
        f'"int8"; {_EXPORT_AGAIN}'
      )
  return content


def _is_comparison(forms: Any) -> bool:
  """Returns whether this says how floats and 8 bits do."""
  if not isinstance(forms, dict):
    return False
  cells = [forms.get(form) for form in ('float32', 'int8')]
  return all(
    isinstance(cell, dict)
    and all(
      _is_number(value) and 0 <= value < np.inf for value in cell.values()
    )
    and cell.get('accuracy', 2) <= 1
    for cell in cells
  )


def _of_another_model(
  workdir: str, exported: Mapping[str, Mapping[str, Any] | None]
) -> tuple[str, ...]:
  """Returns the names of files that are not of the model in `model/`."""
  there = {
    name: content for name, content in exported.items() if content is not None
  }
  model = None
  folder = description_lib.folder_of(workdir)
  if there and description_lib.exists(folder):
    tensors = description_lib.read(folder).tensors
    model = None if tensors is None else tensors.sha256
  return tuple(
    name
    for name, content in there.items()
    if model is None or content.get('model') != model
  )


def _check_exits(
  workdir: str,
  anytime: Mapping[str, Any] | None,
  latency: Mapping[str, Any] | None,
  quantized: Mapping[str, Any] | None,
) -> None:
  """Refuses files of one model that have different numbers of exits."""
  counts = {}
  if anytime is not None:
    counts['evaluate/anytime.json'] = len(anytime['exits'])
  if latency is not None:
    counts[LATENCY] = len(latency['entries'][0]['exits'])
  if quantized is not None:
    counts[QUANTIZED] = len(quantized['exits'])
  if len(set(counts.values())) > 1:
    listed = ', '.join(f'{count} in {name}' for name, count in counts.items())
    raise UsageError(
      f'the files of one model in {workdir} have different numbers of exits: '
      f'{listed}; run the stages evaluate and export again.'
    )


def _are_rows(rows: Any, columns: int, holds: Callable[[Any], bool]) -> bool:
  """Returns whether these are lists of so many values that are right."""
  return isinstance(rows, list) and all(
    isinstance(row, list) and len(row) == columns and all(map(holds, row))
    for row in rows
  )


def _is_count(value: Any) -> bool:
  return type(value) is int and 0 <= value < 2**31


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def read_candidates(workdir: str) -> dict[str, Any] | None:
  """Returns the content of `search/candidates.json`, or None."""
  name = 'search/candidates.json'
  content = read_object(workdir, name, 'candidates', ('score',))
  if content is None:
    return None
  path = os.path.join(workdir, name)
  if not _are_numbers(content.get('budget_range'), 2):
    raise UsageError(f'{path}: "budget_range" is not two numbers; {_AGAIN}')
  for index, candidate in enumerate(content['candidates']):
    sources = candidate.get('sources')
    if not isinstance(sources, list) or not all(
      isinstance(source, dict) for source in sources
    ):
      raise UsageError(
        f'{path}, "candidates" {index}: "sources" is not a list of objects; '
        f'{_AGAIN}'
      )
    if not _are_numbers(candidate.get('macs')):
      raise UsageError(
        f'{path}, "candidates" {index}: "macs" is not a list of numbers; '
        f'{_AGAIN}'
      )
  return content


def read_seeds(workdir: str) -> dict[str, Any] | None:
  """Returns the content of `search/seeds.json`, or None."""
  name = 'search/seeds.json'
  content = read_object(workdir, name, 'seeds', ('seed',))
  if content is None:
    return None
  seeds = [record['seed'] for record in content['seeds']]
  shares = content.get('agreement')
  shares = shares.get('operations') if isinstance(shares, dict) else None
  if (
    content.get('chosen') not in seeds
    or not isinstance(shares, list)
    or len(shares) != len(seeds)
    or not all(_are_numbers(row, len(seeds)) for row in shares)
  ):
    raise UsageError(
      f'{os.path.join(workdir, name)}: "agreement" is no table of the seeds, '
      f'or "chosen" none of them; {_AGAIN}'
    )
  return content


def _are_numbers(values: Any, count: int | None = None) -> bool:
  """Returns whether this is a list of numbers, and of so many."""
  return (
    isinstance(values, list)
    and len(values) > 0
    and count in (None, len(values))
    and all(map(_is_number, values))
  )


def read_genotype(workdir: str, name: str) -> genotype_lib.Genotype | None:
  """Returns the genotype in a file of the work directory, or None."""
  path = os.path.join(workdir, name)
  return cells.load_genotype(path) if files.is_file(path) else None


def read_metrics(workdir: str, name: str) -> list[dict[str, Any]]:
  """Returns the records of a metrics file of the work directory, or none."""
  path = os.path.join(workdir, name)
  return metrics.read_metrics(path) if files.is_file(path) else []


def read_alphas(
  workdir: str, primitives: Sequence[str]
) -> dict[str, np.ndarray] | None:
  """Returns the alphas, see `space.edges`, with epochs + 1 in front, or None.

  The logits of edges are among them where the search had any.
  """
  path = os.path.join(workdir, 'search', 'alphas.npz')
  if not files.is_file(path):
    return None
  arrays = files.read_npz(path)
  kind_of = {edges_lib.logits_key(kind): kind for kind in edges_lib.KINDS}
  names = edges_lib.KINDS
  if not arrays.keys().isdisjoint(kind_of):
    names = *names, *kind_of
  if not set(names) <= set(arrays):
    held = ' and '.join(f'"{name}"' for name in names)
    raise UsageError(f'{path} does not hold {held}; {_AGAIN}')
  for name in names:
    array = arrays[name]
    axes = 'epochs + 1, edges'
    if name in edges_lib.KINDS:
      axes += ', operations'
      shape = array.shape
    else:
      shape = arrays[kind_of[name]].shape[:-1]
    if (
      array.ndim != 1 + axes.count(',')
      or array.shape != shape
      or not array.size
      or array.dtype.kind != 'f'
      or not np.isfinite(array).all()
    ):
      raise UsageError(
        f'{path}, "{name}": expected finite numbers, ({axes}), not '
        f'{array.dtype} {array.shape}; {_AGAIN}'
      )
  for kind in edges_lib.KINDS:
    _, edges, operations = arrays[kind].shape
    if operations != len(primitives):
      raise UsageError(
        f'{path}, "{kind}" has {operations} operations, but '
        f'{len(primitives)} primitives were given; give those that it was '
        'searched with.'
      )
    try:
      edges_lib.num_nodes(edges)
    except UsageError as error:
      raise UsageError(f'{path}, "{kind}": {error}') from error
  return {name: arrays[name] for name in names}
