"""The export stage: the files, what 8 bits cost, and milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import os
from typing import Any

import numpy as np

from ms_ranas_jax.data.datasets import Dataset
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.export import folder as folder_lib
from ms_ranas_jax.export import latency as latency_lib
from ms_ranas_jax.export import onnx_file
from ms_ranas_jax.export import runners
from ms_ranas_jax.model import model as model_lib
from ms_ranas_jax.runtime import files
from ms_ranas_jax.sections import ExportConfig

FOLDER = 'export'
QUANTIZED = 'quantized.json'


def check(config: ExportConfig, num_holdout: int, evaluated: bool) -> None:
  """Refuses an export that cannot come to its end, before anything is started.

  Args:
    config: `config.export`.
    num_holdout: how many training images are held out.
    evaluated: whether the network is evaluated, or will be before.

  Raises:
    UsageError: names the field.
  """
  if not num_holdout:
    raise UsageError(
      "config.dataset.holdout = 0, but config.stages has 'export', which "
      'compares its files with the network on held-out images; set it.'
    )
  if config.int8 and not evaluated:
    raise UsageError(
      'config.export.int8 needs the thresholds of an evaluation; add '
      "'evaluate' to config.stages, or set config.export.int8 = False."
    )


def run_export(
  config: ExportConfig,
  model_folder: str,
  workdir: str,
  held_out: np.ndarray,
  dataset: Dataset,
  say: Callable[[str], None],
) -> None:
  """Writes `export/` and, where it is asked for, `evaluate/latency.json`.

  Args:
    config: `config.export`.
    model_folder: of the network.
    workdir: the work directory.
    held_out: (images, height, width, channels) uint8, held-out training images.
    dataset: its test images are judged.
    say: told what came out.
  """
  model = model_lib.load_model(model_folder)
  target = os.path.join(workdir, FOLDER)
  exported = folder_lib.export(
    model,
    held_out[: config.calibration_images],
    int8=config.int8,
    calibration_q=config.calibration_q,
    test_vectors=config.test_vectors,
  )
  folder_lib.write(target, exported, folder_lib.manifest(model, exported))
  say(f'export: {target}')
  found = None
  if config.latency:
    found = latency_lib.measure(model_folder, target)
    path = os.path.join(workdir, 'evaluate', latency_lib.FILE)
    files.write_json(path, found)
  if config.int8:
    compared = _compare(exported, dataset, found)
    content = {
      'dataset': dataset.name,
      'num_examples': len(dataset.test_labels),
      'calibration_q': config.calibration_q,
      'calibration_images': exported.calibration,
      'exits': compared,
    }
    files.write_json(os.path.join(target, QUANTIZED), content)


def _compare(
  exported: folder_lib.Exported,
  dataset: Dataset,
  latency: dict[str, Any] | None,
) -> list[dict[str, Any]]:
  """Returns floats beside 8 bits, per exit; bytes are of all steps up to it."""
  columns = {
    form: _column(exported.steps(form), dataset, latency, runtime)
    for form, runtime in (
      (folder_lib.FLOAT32, latency_lib.ONNX),
      (folder_lib.INT8, latency_lib.ONNX_INT8),
    )
  }
  return [
    {'exit': exit_, **dict(zip(columns, of_exit, strict=True))}
    for exit_, of_exit in enumerate(zip(*columns.values(), strict=True))
  ]


def _column(
  steps: Sequence[bytes],
  dataset: Dataset,
  latency: dict[str, Any] | None,
  runtime: str,
) -> list[dict[str, Any]]:
  logits = runners.logits(runners.load_onnx(steps), dataset.test_images)
  accuracies = (logits.argmax(axis=-1) == dataset.test_labels).mean(axis=-1)
  weights = np.cumsum([onnx_file.weight_bytes(step) for step in steps])
  sizes = np.cumsum([len(step) for step in steps])
  column: list[dict[str, Any]] = [
    {'accuracy': accuracy, 'weight_bytes': weight, 'file_bytes': size}
    for accuracy, weight, size in zip(accuracies, weights, sizes, strict=True)
  ]
  if latency is not None:
    (entry,) = (
      e
      for e in latency['entries']
      if (e['runtime'], e['threads'], e['batch_size']) == (runtime, 1, 1)
    )
    for cells, times in zip(column, entry['exits'], strict=True):
      cells['milliseconds'] = times['median']
  return column
