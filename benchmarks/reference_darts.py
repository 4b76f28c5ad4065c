"""The process that runs a local checkout of quark0/darts.

None of that code is here. What was written for an old torch is made to run from
outside: calls that torch has dropped since get the meaning that they had.
"""

from __future__ import annotations

import argparse
import sys
import types

from reference_torch import Case
from reference_torch import Served
from reference_torch import memory_layout
from reference_torch import place
from reference_torch import random_batch
from reference_torch import serve
from reference_torch import timed
import torch
from torch import nn


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


def stand_in_for_torchvision() -> None:
  """Lets the checkout import a library that it needs for images alone."""
  try:
    import torchvision.transforms  # noqa: F401, PLC0415
  except ImportError:
    parent, child = types.ModuleType('torchvision'), types.ModuleType('t')
    parent.transforms = child
    sys.modules['torchvision'] = parent
    sys.modules['torchvision.transforms'] = child


def search_step(case: Case) -> Served:
  """The body of the loop of train_search.py."""
  import architect  # noqa: PLC0415
  import model_search  # noqa: PLC0415

  (train, train_labels), (valid, valid_labels) = (
    random_batch(case) for _ in range(2)
  )
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
    return copy.to(memory_format=memory_layout(case))

  model_search.Network.new = new
  model = place(case, build(case['channels'], 10, case['layers'], criterion))
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

  return timed(case, step)


def derived(case: Case) -> nn.Module:
  """Returns a derived network.

  Args:
    case: its `genotype` is a published one, or its fields as DARTS calls them.
  """
  import genotypes  # noqa: PLC0415
  import model  # noqa: PLC0415

  genotype = case['genotype']
  if isinstance(genotype, str):
    genotype = getattr(genotypes, genotype)
  else:
    genotype = genotypes.Genotype(**genotype)
  network = model.NetworkCIFAR(
    case['channels'],
    10,
    case['layers'],
    case.get('auxiliary', False),
    genotype,
  )
  network.drop_path_prob = case['drop_path']
  return place(case, network)


def train_step(case: Case) -> Served:
  """The body of the loop of train.py, without the auxiliary classifier."""
  images, labels = random_batch(case)
  model = derived(case)
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

  return timed(case, step)


def inference(case: Case) -> Served:
  """The logits, in evaluation mode."""
  images, _ = random_batch(case)
  model = derived(case).eval()

  def step():
    with torch.no_grad():
      model(images)

  return timed(case, step, wait=True)


if __name__ == '__main__':
  stand_in_for_torchvision()
  _accept_old_calls()
  serve(
    {
      'search_step': search_step,
      'train_step': train_step,
      'inference': inference,
    },
    'cnn',
  )
