"""The process that runs a local checkout of kalviny/MSDNet-PyTorch, on a CPU.

None of that code is here; it is given the sizes that its own parser would give
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import contextlib
import importlib
import io
import json
import sys
import time
import types
from typing import Any

import protocol
import torch
from torch import nn

Case = Mapping[str, Any]
Served = tuple[Callable[[int], float], dict[str, Any]]


def _network(case: Case) -> nn.Module:
  factors = [2**scale for scale in range(case['scales'])]
  sizes = types.SimpleNamespace(
    data='cifar10',
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


def _prepared(case: Case):
  torch.manual_seed(0)
  layout = (
    torch.channels_last if case['channels_last'] else torch.contiguous_format
  )
  size = case['image']
  images = torch.randn(case['batch'], 3, size, size)
  labels = torch.randint(0, 10, (case['batch'],))
  return (
    _network(case).to(memory_format=layout),
    images.contiguous(memory_format=layout),
    labels,
  )


def _timed(step: Callable[[], object]) -> Served:
  def run(steps: int) -> float:
    start = time.monotonic()
    for _ in range(steps):
      step()
    return (time.monotonic() - start) / steps

  return run, {'compile_s': None, 'version': f'torch {torch.__version__}'}


def train_step(case: Case) -> Served:
  """The body of the loop of main.py: the sum of the exits' losses, SGD."""
  model, images, labels = _prepared(case)
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

  return _timed(step)


def inference(case: Case) -> Served:
  """The logits of all exits, in evaluation mode."""
  model, images, _ = _prepared(case)
  model = model.eval()

  def step():
    with torch.no_grad():
      model(images)

  return _timed(step)


def main() -> None:
  """Serves a task: CHECKOUT TASK CASE, the latter as JSON."""
  checkout, task, text = sys.argv[1:]
  case = json.loads(text)
  # The package of models imports its module under the name of a class.
  sys.path.insert(0, checkout)
  torch.Tensor.cuda = lambda self, *args, **kwargs: self
  nn.Module.cuda = lambda self, *args, **kwargs: self
  tasks = {'train_step': train_step, 'inference': inference}
  protocol.serve(lambda: tasks[task](case))


if __name__ == '__main__':
  main()
