"""The export folder: a trained network as files that need no JAX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import inspect
import io
import os
import types
from typing import Any

import numpy as np

from ms_ranas_jax import families
from ms_ranas_jax import plain_form
from ms_ranas_jax.anytime import early_exit
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.export import int8 as int8_lib
from ms_ranas_jax.export import onnx_file
from ms_ranas_jax.export import run_exported
from ms_ranas_jax.export import runners
from ms_ranas_jax.export.preprocessing import Preprocessing
from ms_ranas_jax.model import model as model_lib
from ms_ranas_jax.runtime import files
from ms_ranas_jax.version import __version__

FORMAT = 'ms_ranas_jax export'
VERSION = 1
MANIFEST = 'manifest.json'
ANYTIME = 'onnx/anytime.onnx'
ALL_EXITS = 'onnx/all_exits.onnx'
VECTORS = 'test_vectors.npz'
FLOAT32, INT8 = 'float32', 'int8'
_SUFFIXES = types.MappingProxyType({FLOAT32: '', INT8: '_int8'})
# Logits of a runtime may differ so much from JAX's, as a share of the largest.
TOLERANCE = 1e-4


def step_file(step: int, form: str = FLOAT32) -> str:
  """Returns where the ONNX file of a step stands in the folder."""
  return f'onnx/step_{step}{_SUFFIXES[form]}.onnx'


def tflite_file(form: str = FLOAT32) -> str:
  """Returns where the file of LiteRT stands in the folder."""
  return f'tflite/anytime{_SUFFIXES[form]}.tflite'


@dataclasses.dataclass(frozen=True, eq=False)
class Exported:
  """The files of a network, by their names in the folder.

  Attributes:
    files: name -> content.
    calibration: how many images each step in 8 bits was calibrated on; ()
      where there is none.
  """

  files: Mapping[str, bytes]
  calibration: tuple[int, ...] = ()

  def steps(self, form: str) -> list[bytes]:
    """Returns the ONNX files of the steps, [] where that form is not there."""
    found = []
    while step_file(len(found), form) in self.files:
      found.append(self.files[step_file(len(found), form)])
    return found


def export(
  model: model_lib.Model,
  images: np.ndarray,
  *,
  tflite: bool = False,
  int8: bool = True,
  calibration_q: float = 1.0,
  test_vectors: int = 16,
) -> Exported:
  """Makes the files of a trained network, and compares them with it.

  Args:
    model: the network.
    images: (images, height, width, channels) uint8 that were not trained on:
      the files are compared and, in 8 bits, calibrated on them.
    tflite: whether there is a file of LiteRT too.
    int8: whether there are files in 8 bits too.
    calibration_q: the stored thresholds that decide which images reach a step
      when it is calibrated.
    test_vectors: so many of the images go into the folder with their logits.

  Raises:
    UsageError: the network has no plain form or is not of float32, there are no
      images, or no thresholds for `calibration_q`.
    RuntimeError: a file does not compute what the network computes.
  """
  if not len(images):
    raise UsageError(
      'there are no images to compare an export with; set config.dataset.'
      'holdout, or give some.'
    )
  description = model.description
  if description.dtype != 'float32':
    raise UsageError(
      f'the network computes in {description.dtype}, and what is exported in '
      "float32, so its answers would differ; train it with dtype = 'float32'."
    )
  thresholds = _thresholds(model, calibration_q) if int8 else ()
  form = families.plain_form(
    description.network, model.network, model.variables
  )
  if plain_form.macs(form) != tuple(e.macs for e in model.exits):
    raise RuntimeError(
      f'the plain form of {description.network["family"]} takes other '
      'multiply-adds than its cost rows say; its translation is wrong.'
    )
  before = Preprocessing(description.mean, description.std)
  vectors = images[:test_vectors]
  expected = model.compiled_steps.logits(vectors, model_lib.BATCH_SIZE)
  steps = [
    onnx_file.step_model(form, step, before).SerializeToString()
    for step in range(len(form.steps))
  ]
  _check(runners.load_onnx(steps), 'ONNX', vectors, expected)
  found = {step_file(step): content for step, content in enumerate(steps)}
  anytime = onnx_file.anytime_model(form, before, model.temperatures)
  found[ANYTIME] = anytime.SerializeToString()
  whole = onnx_file.all_exits_model(form, before)
  found[ALL_EXITS] = whole.SerializeToString()
  (answers,) = runners.session(found[ALL_EXITS]).run(
    None, {onnx_file.IMAGES: vectors}
  )
  _compare(np.asarray(answers), ALL_EXITS, expected)
  thorough = np.full(len(expected), early_exit.NOBODY)
  last, *_ = runners.session(found[ANYTIME]).run(
    None, {onnx_file.IMAGE: vectors[:1], onnx_file.THRESHOLDS: thorough}
  )
  _compare(np.asarray(last), ANYTIME, expected[-1, :1])
  calibration = (
    int8_lib.reaching(steps, images, thresholds, model.temperatures)
    if int8
    else []
  )
  for step, fed in enumerate(calibration):
    found[step_file(step, INT8)] = int8_lib.quantize_step(steps[step], fed)
  if tflite:
    found |= _tflite(form, before, vectors, expected, calibration)
  buffer = io.BytesIO()
  np.savez(buffer, images=vectors, logits=expected)
  found[VECTORS] = buffer.getvalue()
  found['run.py'] = inspect.getsource(run_exported).encode('utf-8')
  return Exported(
    found, tuple(len(next(iter(fed.values()))) for fed in calibration)
  )


def _tflite(
  form: plain_form.PlainForm,
  before: Preprocessing,
  images: np.ndarray,
  expected: np.ndarray,
  calibration: Sequence[Mapping[str, np.ndarray]],
) -> dict[str, bytes]:
  """Returns the files of LiteRT by their names."""
  from ms_ranas_jax.export import litert  # an extra of its own

  model = litert.anytime_model(form, before)
  _check(litert.load(model), 'LiteRT', images, expected, batch_size=1)
  found = {tflite_file(): model}
  if calibration:
    # Features of ONNX have their channels first.
    channels_last = [
      {
        name: value
        if name == plain_form.IMAGES
        else value.transpose(0, 2, 3, 1)
        for name, value in fed.items()
      }
      for fed in calibration
    ]
    found[tflite_file(INT8)] = litert.quantize(model, channels_last)
  return found


def _thresholds(model: model_lib.Model, q: float) -> tuple[float, ...]:
  evaluation = model.description.evaluation
  known = {} if evaluation is None else evaluation.thresholds
  if q not in known:
    raise UsageError(
      f'there are no thresholds of q = {q:g} in the model folder, which say '
      'what reaches a step in 8 bits; evaluate the network on held-out images, '
      'set config.export.calibration_q to one of its q, or config.export.int8 '
      'to False.'
    )
  return known[q]


def _check(
  runner: runners.Runner,
  name: str,
  images: np.ndarray,
  expected: np.ndarray,
  batch_size: int = 64,
) -> None:
  """Refuses files that do not compute what the network computes."""
  _compare(runners.logits(runner, images, batch_size), name, expected)


def _compare(found: np.ndarray, name: str, expected: np.ndarray) -> None:
  """Refuses logits that are not those of the network."""
  off = np.abs(found - expected).max() / max(1.0, np.abs(expected).max())
  if not off <= TOLERANCE:
    raise RuntimeError(
      f'what was exported for {name} differs from the network by {off:.1e} of '
      'its largest logit; nothing was written.'
    )


def _signature(name: str, content: bytes) -> dict[str, Any]:
  """Returns what a file takes and gives, {} where it is not one to be run."""
  if name.endswith('.onnx'):
    return onnx_file.signature(content)
  if name.endswith('.tflite'):
    from ms_ranas_jax.export import litert  # an extra of its own

    return {'signatures': litert.signatures(content)}
  return {}


def manifest(model: model_lib.Model, exported: Exported) -> dict[str, Any]:
  """Returns what `manifest.json` says.

  Args:
    model: the network.
    exported: its files.
  """
  description = model.description
  evaluation = description.evaluation
  accuracies: Sequence[float | None] = [None] * len(model.exits)
  if evaluation is not None:
    accuracies = evaluation.accuracies
  tensors = description.tensors
  return {
    'format': FORMAT,
    'version': VERSION,
    'written_by': f'ms_ranas_jax {__version__}',
    'model': None if tensors is None else tensors.sha256,
    'image_shape': model.image_shape,
    'mean': description.mean,
    'std': description.std,
    'class_names': model.class_names,
    'exits': [
      {
        **exit_.to_dict(),
        'accuracy': accuracy,
        'temperature': temperature,
      }
      for exit_, accuracy, temperature in zip(
        model.exits, accuracies, model.temperatures, strict=True
      )
    ],
    'thresholds': [
      {'q': q, 'thresholds': row}
      for q, row in (evaluation.thresholds if evaluation else {}).items()
    ],
    'steps': {
      form: [step_file(step, form) for step in range(len(exported.steps(form)))]
      for form in _SUFFIXES
    },
    'tflite': {
      form: tflite_file(form)
      for form in _SUFFIXES
      if tflite_file(form) in exported.files
    },
    'files': {
      name: {
        'sha256': hashlib.sha256(content).hexdigest(),
        'bytes': len(content),
        **_signature(name, content),
      }
      for name, content in exported.files.items()
    },
  }


def write(folder: str, exported: Exported, about: Mapping[str, Any]) -> None:
  """Writes an export folder, and the manifest last: then all is there.

  Args:
    folder: where to; made where it is missing.
    exported: the files.
    about: what `manifest` returned.
  """
  for name, content in exported.files.items():
    files.write_bytes(os.path.join(folder, name), content)
  files.write_json(os.path.join(folder, MANIFEST), about)


def read_manifest(folder: str) -> dict[str, Any]:
  """Reads the manifest of an export folder.

  Args:
    folder: that `write` has written.

  Raises:
    UsageError: it is not there, or of another version.
  """
  path = os.path.join(folder, MANIFEST)
  found = files.read_json(path)
  if not isinstance(found, dict) or found.get('format') != FORMAT:
    raise UsageError(f'{path} is no manifest of an export; export again.')
  if found.get('version') != VERSION:
    raise UsageError(
      f'{path} is of version {found.get("version")!r}, and this program reads '
      f'version {VERSION}; export again.'
    )
  return found
