"""The process that runs a local checkout of quark0/darts, on a CPU.

None of that code is here. What was written for an old torch and a GPU is made
to run from outside: `.cuda()` does nothing, and calls that torch has dropped
since get the meaning that they had.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
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


def _stay_on_cpu() -> None:
  torch.Tensor.cuda = lambda self, *args, **kwargs: self
  nn.Module.cuda = lambda self, *args, **kwargs: self


def _accept_old_calls() -> None:
  """x.sub(alpha, y), x.add_(alpha, y): x -+ alpha y, as they once were."""

  def wrap(name: str) -> None:
    method = getattr(torch.Tensor, name)

    def call(self, *args, **kwargs):
      if len(args) == 2:
        return method(self, args[1], alpha=args[0])
      return method(self, *args, **kwargs)

    setattr(torch.Tensor, name, call)

  for name in ('add_', 'sub', 'sub_'):
    wrap(name)


def _import(checkout: str) -> None:
  sys.path.insert(0, f'{checkout}/cnn')
  try:
    import torchvision.transforms  # noqa: F401, PLC0415
  except ImportError:
    # The checkout imports it for images, which are not read here.
    parent, child = types.ModuleType('torchvision'), types.ModuleType('t')
    parent.transforms = child
    sys.modules['torchvision'] = parent
    sys.modules['torchvision.transforms'] = child


def _batch(case: Case, count: int):
  torch.manual_seed(0)
  layout = (
    torch.channels_last if case['channels_last'] else torch.contiguous_format
  )
  size = case['image']
  return [
    (
      torch.randn(case['batch'], 3, size, size).contiguous(
        memory_format=layout
      ),
      torch.randint(0, 10, (case['batch'],)),
    )
    for _ in range(count)
  ], layout


def _timed(step: Callable[[], object]) -> Served:
  def run(steps: int) -> float:
    start = time.monotonic()
    for _ in range(steps):
      step()
    return (time.monotonic() - start) / steps

  return run, {'compile_s': None, 'version': f'torch {torch.__version__}'}


def search_step(case: Case) -> Served:
  """The body of the loop of train_search.py."""
  import architect  # noqa: PLC0415
  import model_search  # noqa: PLC0415

  ((train, train_labels), (valid, valid_labels)), layout = _batch(case, 2)
  nodes = case['nodes']
  criterion = nn.CrossEntropyLoss()

  def build(*args):
    return model_search.Network(*args, steps=nodes, multiplier=nodes)

  def new(self):
    # The original forgets the number of nodes where it is not 4.
    copy = build(self._C, self._num_classes, self._layers, self._criterion)
    for x, y in zip(
      copy.arch_parameters(), self.arch_parameters(), strict=True
    ):
      x.data.copy_(y.data)
    return copy.to(memory_format=layout)

  model_search.Network.new = new
  model = build(case['channels'], 10, case['layers'], criterion)
  model = model.to(memory_format=layout)
  optimizer = torch.optim.SGD(
    model.parameters(), 0.025, momentum=0.9, weight_decay=3e-4
  )
  alphas = architect.Architect(
    model,
    argparse.Namespace(
      momentum=0.9,
      weight_decay=3e-4,
      arch_learning_rate=3e-4,
      arch_weight_decay=1e-3,
    ),
  )

  def step():
    model.train()
    alphas.step(
      train,
      train_labels,
      valid,
      valid_labels,
      0.025,
      optimizer,
      unrolled=case['order'] == 2,
    )
    optimizer.zero_grad()
    criterion(model(train), train_labels).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()

  return _timed(step)


def _derived(case: Case, layout: torch.memory_format) -> nn.Module:
  import genotypes  # noqa: PLC0415
  import model  # noqa: PLC0415

  network = model.NetworkCIFAR(
    case['channels'],
    10,
    case['layers'],
    False,
    getattr(genotypes, case['genotype']),
  )
  network.drop_path_prob = case['drop_path']
  return network.to(memory_format=layout)


def train_step(case: Case) -> Served:
  """The body of the loop of train.py, without the auxiliary classifier."""
  ((images, labels),), layout = _batch(case, 1)
  model = _derived(case, layout)
  criterion = nn.CrossEntropyLoss()
  optimizer = torch.optim.SGD(
    model.parameters(), 0.025, momentum=0.9, weight_decay=3e-4
  )

  def step():
    model.train()
    optimizer.zero_grad()
    criterion(model(images)[0], labels).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()

  return _timed(step)


def inference(case: Case) -> Served:
  """The logits, in evaluation mode."""
  ((images, _),), layout = _batch(case, 1)
  model = _derived(case, layout).eval()

  def step():
    with torch.no_grad():
      model(images)

  return _timed(step)


def main() -> None:
  """Serves a task: CHECKOUT TASK CASE, the latter as JSON."""
  checkout, task, text = sys.argv[1:]
  case = json.loads(text)
  _import(checkout)
  _stay_on_cpu()
  _accept_old_calls()
  tasks = {
    'search_step': search_step,
    'train_step': train_step,
    'inference': inference,
  }
  protocol.serve(lambda: tasks[task](case))


if __name__ == '__main__':
  main()
