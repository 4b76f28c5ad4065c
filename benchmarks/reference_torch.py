"""What the processes that run a reference share: where it runs, and timing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import json
import sys
import time
from typing import Any

import protocol
import torch
from torch import nn

Case = Mapping[str, Any]
Served = tuple[Callable[[int], float], dict[str, Any]]
_CUDA = 'cuda'


def memory_layout(case: Case) -> torch.memory_format:
  """Returns that of images and networks."""
  return (
    torch.channels_last if case['channels_last'] else torch.contiguous_format
  )


def random_batch(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
  """Returns images and labels, where the network is to run."""
  size = case['image']
  images = torch.randn(case['batch'], 3, size, size)
  labels = torch.randint(0, 10, (case['batch'],))
  device = case['reference_device']
  return (
    images.to(device).contiguous(memory_format=memory_layout(case)),
    labels.to(device),
  )


def place(case: Case, network: nn.Module) -> nn.Module:
  """Returns the network where it is to run, laid out as the images."""
  network = network.to(case['reference_device']).to(
    memory_format=memory_layout(case)
  )
  if case.get('torch_compile'):
    network.compile()  # in place: it keeps its other methods
  return network


def timed(case: Case, step: Callable[[], object], wait: bool = False) -> Served:
  """Returns what `protocol.serve` wants for a step.

  Args:
    case: says where it runs.
    step: takes a step, or leaves it to the device.
    wait: for every step, not only for the last one.
  """
  on_gpu = case['reference_device'] == _CUDA
  mixed = torch.autocast(
    case['reference_device'], torch.bfloat16, case.get('amp', False)
  )

  def run(steps: int) -> float:
    start = time.monotonic()
    for done in range(1, steps + 1):
      with mixed:
        step()
      if on_gpu and (wait or done == steps):
        torch.cuda.synchronize()
    return (time.monotonic() - start) / steps

  device = torch.cuda.get_device_name() if on_gpu else 'cpu'
  version = f'torch {torch.__version__}, {device}'
  return run, {'compile_s': None, 'version': version}


def serve(tasks: Mapping[str, Callable[[Case], Served]], folder: str) -> None:
  """Serves a task: CHECKOUT TASK CASE, the latter as JSON.

  Args:
    tasks: name -> (case) -> what `protocol.serve` wants.
    folder: of the checkout, that it imports from.
  """
  checkout, task, text = sys.argv[1:]
  case = json.loads(text)
  sys.path.insert(0, f'{checkout}/{folder}')
  torch.manual_seed(0)
  if case['reference_device'] == _CUDA:
    torch.backends.cudnn.benchmark = True
    protocol.serve(
      lambda: tasks[task](case),
      torch.cuda.max_memory_allocated,
      torch.cuda.reset_peak_memory_stats,
    )
  else:
    # What was written for a GPU runs on a CPU.
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    nn.Module.cuda = lambda self, *args, **kwargs: self
    protocol.serve(lambda: tasks[task](case))
