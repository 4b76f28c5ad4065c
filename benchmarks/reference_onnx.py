"""The process that exports a checkout's network by torch.onnx.export.

CHECKOUT FOLDER CASE, the latter as JSON: writes the state dict to
FOLDER/weights.npz, and the network to FOLDER/torch.onnx, from normalised images
(batch, 3, side, side) to the logits of every exit.
"""

from __future__ import annotations

from collections.abc import Mapping
import contextlib
import io
import json
import pathlib
import sys
from typing import Any
import warnings

import numpy as np
import reference_weights
import torch
from torch import nn

DYNAMO, SCRIPT = 'dynamo=True', 'dynamo=False'


class _Exits(nn.Module):
  """A network whose answers are those of its exits, and nothing else."""

  def __init__(self, network: nn.Module, source: str) -> None:
    super().__init__()
    self.network, self.source = network, source

  def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Returns the logits of all exits."""
    found = self.network(images)
    # Of DARTS the second answer is that of the auxiliary classifier.
    return (found[0],) if self.source == 'darts' else tuple(found)


def export(
  network: nn.Module, images: torch.Tensor, path: str, exporter: str
) -> None:
  """Writes an ONNX file for any number of images.

  Args:
    network: in evaluation mode.
    images: an example, of two or more.
    path: of the file.
    exporter: `DYNAMO`, or `SCRIPT`, the older one.
  """
  with torch.no_grad():
    exits = [f'logits_{k}' for k in range(len(network(images)))]
  options: dict[str, Any] = {
    'dynamic_shapes': ({0: torch.export.Dim('batch')},)
  }
  if exporter == SCRIPT:
    options = {
      'dynamic_axes': {name: {0: 'batch'} for name in ('images', *exits)},
      'do_constant_folding': True,
      'training': torch.onnx.TrainingMode.EVAL,
    }
  torch.onnx.export(
    network,
    (images,),
    path,
    input_names=['images'],
    output_names=exits,
    dynamo=exporter == DYNAMO,
    external_data=False,
    **options,
  )


def exported(
  network: nn.Module, images: torch.Tensor, case: Mapping[str, Any], path: str
) -> tuple[str, str]:
  """Exports by the exporter of the case, or by the first that can.

  Args:
    network: in evaluation mode.
    images: an example.
    case: its `exporter` is one of them, or ''.
    path: of the file.

  Returns:
    The exporter, and why it was not the newer one, '' where it was.
  """
  why = ''
  for exporter in [case['exporter']] if case['exporter'] else [DYNAMO, SCRIPT]:
    try:
      export(network, images, path, exporter)
      return exporter, why
    except Exception as error:  # noqa: BLE001  # of any kind that torch has
      if exporter in (case['exporter'], SCRIPT):
        raise
      why = f'{type(error).__name__}: {error}'.splitlines()[0]
  raise AssertionError('the last exporter returns or raises')


def main() -> None:
  """Writes both files, and prints what was used as JSON."""
  checkout, folder, text = sys.argv[1:]
  case = json.loads(text)
  # What is built tells of itself; the answer is to be the only line.
  with contextlib.redirect_stdout(io.StringIO()):
    network, state = reference_weights.drawn_network(checkout, case)
    np.savez(pathlib.Path(folder) / 'weights.npz', **state)
    # The exporter asks what can be imported, and stand-ins cannot.
    for name in ('torchvision', 'torchvision.transforms'):
      if getattr(sys.modules.get(name), '__spec__', None) is None:
        sys.modules.pop(name, None)
    images = reference_weights.normalized_images({**case, 'images': 2})
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      exporter, why = exported(
        _Exits(network, case['source']).eval(),
        images,
        case,
        f'{folder}/torch.onnx',
      )
  print(
    json.dumps({'torch': torch.__version__, 'exporter': exporter, 'why': why})
  )


if __name__ == '__main__':
  main()
