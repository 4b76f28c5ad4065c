"""The process that runs a local checkout of kalviny/MSDNet-PyTorch.

None of that code is here; it is given the sizes that its own parser would give
it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import types

from reference_torch import Case
from reference_torch import Served
from reference_torch import place
from reference_torch import random_batch
from reference_torch import serve
from reference_torch import timed
import torch
from torch import nn


def build(case: Case) -> nn.Module:
  """Returns a network, for CIFAR-10 unless the case names other `data`."""
  factors = case.get('factors') or [2**s for s in range(case['scales'])]
  sizes = types.SimpleNamespace(
    data=case.get('data', 'cifar10'),
    nBlocks=case['blocks'],
    nChannels=case['channels'],
    base=case['base'],
    step=case['step'],
    stepmode=case['step_mode'],
    growthRate=case['growth'],
    grFactor=factors,
    bnFactor=factors,
    nScales=case['scales'],
    prune=case['prune'],
    bottleneck=True,
    reduction=0.5,
  )
  # It prints every layer that it builds.
  with contextlib.redirect_stdout(io.StringIO()):
    return importlib.import_module('models.msdnet').MSDNet(sizes)


def train_step(case: Case) -> Served:
  """The body of the loop of main.py: the sum of the exits' losses, SGD."""
  model = place(case, build(case))
  images, labels = random_batch(case)
  criterion = nn.CrossEntropyLoss()
  optimizer = torch.optim.SGD(
    model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4
  )

  def step():
    model.train()
    loss = sum(criterion(logits, labels) for logits in model(images))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

  return timed(case, step)


def inference(case: Case) -> Served:
  """The logits of all exits, in evaluation mode."""
  model = place(case, build(case)).eval()
  images, _ = random_batch(case)

  def step():
    with torch.no_grad():
      model(images)

  return timed(case, step, wait=True)


if __name__ == '__main__':
  # The package of models imports its module under the name of a class.
  serve({'train_step': train_step, 'inference': inference}, '')
