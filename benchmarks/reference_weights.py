"""The process that gives a checkout's network drawn weights, and asks it.

CHECKOUT FOLDER CASE, the latter as JSON: writes the state dict to
FOLDER/weights.npz, and the logits of all exits to FOLDER/logits.npz. Both
checkouts are as they are; none of their code is here.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
import pathlib
import sys
from typing import Any

import drawn
import numpy as np
import reference_darts
import reference_msdnet
import torch
from torch import nn


def drawn_network(
  checkout: str, case: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, np.ndarray]]:
  """Returns a checkout's network with drawn weights, and its state dict.

  Args:
    checkout: of the code that the case is of.
    case: its `source`, `seed` and sizes.
  """
  if case['source'] == 'darts':
    sys.path.insert(0, f'{checkout}/cnn')
    reference_darts.stand_in_for_torchvision()
    network = reference_darts.derived(case)
  else:
    sys.path.insert(0, checkout)
    network = reference_msdnet.build(case)
  state = {
    name: drawn.tensor(name, tuple(tensor.shape), case['seed'])
    for name, tensor in network.state_dict().items()
  }
  network.load_state_dict({n: torch.from_numpy(a) for n, a in state.items()})
  return network.eval(), state


def normalized_images(case: Mapping[str, Any]) -> torch.Tensor:
  """Returns the images of a case, (images, 3, side, side) float32."""
  images = drawn.images(case['images'], case['side'], case['seed'])
  pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
  mean, std = (
    torch.tensor(case[name]).reshape(1, 3, 1, 1) for name in ('mean', 'std')
  )
  return (pixels - mean) / std


def main() -> None:
  """Writes both files, and prints the version of torch."""
  checkout, folder, text = sys.argv[1:]
  case = json.loads(text)
  network, state = drawn_network(checkout, case)
  np.savez(pathlib.Path(folder) / 'weights.npz', **state)
  with torch.no_grad():
    found = network(normalized_images(case))
  # Of DARTS the second answer is that of the auxiliary classifier.
  exits = [found[0]] if case['source'] == 'darts' else found
  logits = np.stack([logits.numpy() for logits in exits])
  np.savez(pathlib.Path(folder) / 'logits.npz', logits=logits)
  print(torch.__version__)


if __name__ == '__main__':
  main()
