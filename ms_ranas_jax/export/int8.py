"""ONNX files in 8 bits: static, per channel, a step at a time.

Activations are calibrated on images that reach the step: later steps only ever
see what earlier exits were not sure of. Between steps features stay float32, so
a step of 8 bits goes on from one in floats, and the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import os
import tempfile
from typing import Any

import numpy as np
from onnxruntime import quantization
from onnxruntime.quantization import shape_inference

from ms_ranas_jax import plain_form
from ms_ranas_jax.anytime import calibration as calibration_lib
from ms_ranas_jax.export import runners
from ms_ranas_jax.export.quiet import quiet
from ms_ranas_jax.runtime import files

# With fewer images than this a range is chance, and all are taken instead.
_FEWEST = 16
_BATCH = 32


def reaching(
  models: Sequence[bytes],
  images: np.ndarray,
  thresholds: Sequence[float],
  temperatures: Sequence[float],
) -> list[dict[str, np.ndarray]]:
  """Returns what images bring to the steps that they reach.

  Args:
    models: the files of the steps in floats.
    images: (images, height, width, channels) uint8, that are neither trained
      on nor judged.
    thresholds: one per exit; an image that is surer does not reach the next
      step. Where fewer than 16 do, it is all of them.
    temperatures: one per exit.

  Returns:
    Per step its inputs by name, an axis of images first.
  """
  runner = runners.load_onnx(models)
  carried: runners.Carried = {plain_form.IMAGES: images}
  rows = np.arange(len(images))
  found = []
  for step, session in enumerate(runner.sessions):
    taken = rows if len(rows) >= _FEWEST else np.arange(len(images))
    names = [entry.name for entry in session.get_inputs()]
    found.append({name: carried[name][taken] for name in names})
    # All of them at once would take the memory of as many feature maps.
    parts = [
      runner.take(
        {n: value[start : start + _BATCH] for n, value in carried.items()}, step
      )
      for start in range(0, len(images), _BATCH)
    ]
    logits = np.concatenate([answer for _, answer in parts])
    carried = {
      name: np.concatenate([kept[name] for kept, _ in parts])
      for name in parts[0][0]
    }
    sure = calibration_lib.probabilities(logits, temperatures[step]).max(
      axis=-1
    )
    rows = rows[sure[rows] < thresholds[step]]
  return found


def quantize_step(model: bytes, calibration: Mapping[str, np.ndarray]) -> bytes:
  """Returns the file of a step in 8 bits.

  Args:
    model: the file in floats.
    calibration: what images that reach the step bring, see `reaching`.
  """
  with tempfile.TemporaryDirectory() as folder, quiet():
    before, prepared, after = (
      os.path.join(folder, f'{part}.onnx')
      for part in ('before', 'prepared', 'after')
    )
    files.write_bytes(before, model)
    shape_inference.quant_pre_process(
      before, prepared, skip_symbolic_shape=True
    )
    quantization.quantize_static(
      prepared,
      after,
      _Batches(calibration),
      quant_format=quantization.QuantFormat.QDQ,
      per_channel=True,
      # Unsigned activations are the faster ones on x86. There, where processors
      # have no instruction for it, pairs of products are added in 16 bits: with
      # 7 bits for weights none overflows, and all processors answer alike.
      activation_type=quantization.QuantType.QUInt8,
      weight_type=quantization.QuantType.QInt8,
      reduce_range=True,
    )
    return files.read_bytes(after)


class _Batches(quantization.CalibrationDataReader):
  """What a step is calibrated on, a batch at a time."""

  def __init__(self, fed: Mapping[str, np.ndarray]) -> None:
    count = len(next(iter(fed.values())))
    self._batches = iter(
      {name: value[start : start + _BATCH] for name, value in fed.items()}
      for start in range(0, count, _BATCH)
    )

  def get_next(self) -> Any:
    """Returns the next batch, None after the last."""
    return next(self._batches, None)
