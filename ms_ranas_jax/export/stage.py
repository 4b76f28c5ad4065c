"""The export stage: the files, what 8 bits cost, and milliseconds."""

from __future__ import annotations

from collections.abc import Callable
import os
from typing import Any

import numpy as np

from ms_ranas_jax.data.datasets import Dataset
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.export import folder as folder_lib
from ms_ranas_jax.export import latency as latency_lib
from ms_ranas_jax.export import onnx_file
from ms_ranas_jax.export import runners
from ms_ranas_jax.model import fingerprint
from ms_ranas_jax.model import model as model_lib
from ms_ranas_jax.runtime import files
from ms_ranas_jax.sections import ONNX
from ms_ranas_jax.sections import TFLITE
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
    tflite=TFLITE in config.formats,
    int8=config.int8,
    calibration_q=config.calibration_q,
    test_vectors=config.test_vectors,
  )
  about = folder_lib.manifest(model, exported)
  folder_lib.write(target, exported, about)
  say(f'export: {target}')
  found = None
  if config.latency:
    found = latency_lib.measure(model_folder, target)
    path = os.path.join(workdir, 'evaluate', latency_lib.FILE)
    files.write_json(path, found)
  if config.int8:
    compared = _compare(exported, dataset, found)
    content = {
      'model': about['model'],
      'dataset': dataset.name,
      'num_examples': len(dataset.test_labels),
      'test_images': {
        name: fingerprint.of_array(getattr(dataset, name))
        for name in fingerprint.TEST
      },
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
  forms = (folder_lib.FLOAT32, folder_lib.INT8)
  columns: dict[str, list[list[dict[str, Any]]]] = {ONNX: []}
  for form, runtime in zip(forms, (latency_lib.ONNX, latency_lib.ONNX_INT8)):
    steps = exported.steps(form)
    column = _judged(runners.load_onnx(steps), dataset, 64, latency, runtime)
    weights = np.cumsum([onnx_file.weight_bytes(step) for step in steps])
    sizes = np.cumsum([len(step) for step in steps])
    for entry, weight, size in zip(column, weights, sizes, strict=True):
      entry |= {'weight_bytes': weight, 'file_bytes': size}
    columns[ONNX].append(column)
  if folder_lib.tflite_file() in exported.files:
    from ms_ranas_jax.export import litert  # an extra of its own

    columns[TFLITE] = []
    for form, runtime in zip(
      forms, (latency_lib.LITERT, latency_lib.LITERT_INT8)
    ):
      model = exported.files[folder_lib.tflite_file(form)]
      column = _judged(litert.load(model), dataset, 1, latency, runtime)
      for entry in column:
        entry['file_bytes'] = len(model)  # of all exits: it is one file
      columns[TFLITE].append(column)
  return [
    {
      'exit': exit_,
      **{
        name: {
          form: column[exit_]
          for form, column in zip(forms, of_form, strict=True)
        }
        for name, of_form in columns.items()
      },
    }
    for exit_ in range(len(columns[ONNX][0]))
  ]


def _judged(
  runner: runners.Runner,
  dataset: Dataset,
  batch_size: int,
  latency: dict[str, Any] | None,
  runtime: str,
) -> list[dict[str, Any]]:
  """Returns the accuracy of each exit, and its milliseconds if measured."""
  logits = runners.logits(runner, dataset.test_images, batch_size)
  right = logits.argmax(axis=-1) == dataset.test_labels
  column: list[dict[str, Any]] = [
    {'accuracy': accuracy} for accuracy in right.mean(axis=-1)
  ]
  if latency is not None:
    (entry,) = (
      entry
      for entry in latency['entries']
      if (entry['runtime'], entry['threads'], entry['batch_size'])
      == (runtime, 1, 1)
    )
    for cells, times in zip(column, entry['exits'], strict=True):
      cells['milliseconds'] = times['median']
  return column
