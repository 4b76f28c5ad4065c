"""Milliseconds to every exit, of every form of a network, on this machine.

Each number of threads is measured in a process of its own, since XLA settles
its threads when it starts. All forms take turns in it, round after round, so
that what else the machine does falls on all of them alike.

  python -m ms_ranas_jax.export.latency --model=DIR --export=DIR --json=FILE
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from typing import Any

from ms_ranas_jax.runtime import files

FILE = 'latency.json'
XLA = 'xla'
ONNX, ONNX_INT8 = 'onnxruntime', 'onnxruntime_int8'
ONNX_ANYTIME = 'onnxruntime_anytime'
LITERT, LITERT_INT8 = 'litert', 'litert_int8'
BATCH_SIZES = (1, 64)
_OF_ONE_IMAGE = (ONNX_ANYTIME, LITERT, LITERT_INT8)
_WARM = 3
_FEWEST_ROUNDS = 11
_MOST_ROUNDS = 200
_SECONDS = 8.0  # of rounds, for each batch size
_TIMEOUT = 1800

# Images -> the milliseconds to every exit.
_Round = Callable[[Any], list[float]]


def measure(
  model_folder: str, export_folder: str, seconds: float | None = None
) -> dict[str, Any]:
  """Measures with one thread, and with all cores.

  Args:
    model_folder: of the network.
    export_folder: its files, see `folder`.
    seconds: of rounds, for each batch size and number of threads; None is 8.

  Returns:
    What `evaluate/latency.json` holds: `machine`, `versions`, `model` (the
    sha256 of the params), and `entries`, each with `runtime`, `threads`,
    `batch_size`, `rounds` and `exits`, per exit the milliseconds up to its
    logits: `median` and the quartiles `low` and `high`.

  Raises:
    RuntimeError: a process has failed.
  """
  seconds = _SECONDS if seconds is None else seconds
  entries = []
  found: dict[str, Any] = {}
  for threads in dict.fromkeys((1, _cores())):
    found = _in_a_process(model_folder, export_folder, threads, seconds)
    entries += found['entries']
  return {**found, 'entries': entries}


def _cores() -> int:
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _in_a_process(
  model_folder: str, export_folder: str, threads: int, seconds: float
) -> dict[str, Any]:
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, FILE)
    command = [sys.executable, '-m', 'ms_ranas_jax.export.latency']
    command += [f'--model={model_folder}', f'--export={export_folder}']
    command += [f'--threads={threads}', f'--seconds={seconds}']
    end = subprocess.run(
      [*command, f'--json={path}'],
      env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      check=False,
      text=True,
      timeout=_TIMEOUT,
    )
    if end.returncode:
      raise RuntimeError(f'no milliseconds: {end.stderr[-2000:]}')
    return json.loads(files.read_bytes(path))


def machine() -> dict[str, Any]:
  """Returns what was measured on: `processor`, `cores` and `system`."""
  name = platform.processor() or platform.machine()
  if os.path.isfile('/proc/cpuinfo'):
    with open('/proc/cpuinfo', encoding='utf-8') as file:
      for line in file:
        if line.startswith('model name'):
          name = line.partition(':')[2].strip()
          break
  return {
    'processor': name,
    'cores': _cores(),
    'system': f'{platform.system()} {platform.machine()}',
  }


def _measure_here(
  model_folder: str, export_folder: str, threads: int, seconds: float
) -> dict[str, Any]:
  """Measures in this process, whose threads are settled."""
  # Imported here, where XLA sees as many cores as it may have.
  import jax
  import numpy as np
  import onnxruntime

  from ms_ranas_jax.export import folder
  from ms_ranas_jax.export import runners
  from ms_ranas_jax.model import model as model_lib

  model = model_lib.load_model(model_folder)

  def through(runner: runners.Runner) -> _Round:
    return functools.partial(_go_through, runner)

  forms: dict[str, _Round] = {XLA: through(runners.JaxSteps(model))}
  about = folder.read_manifest(export_folder)
  versions = {'jax': jax.__version__, 'onnxruntime': onnxruntime.__version__}

  def read(name: str) -> bytes:
    return files.read_bytes(os.path.join(export_folder, name))

  for name, form in ((ONNX, folder.FLOAT32), (ONNX_INT8, folder.INT8)):
    if about['steps'][form]:
      steps = [read(step) for step in about['steps'][form]]
      forms[name] = through(runners.load_onnx(steps, threads))
  stopping = runners.session(read(folder.ANYTIME), threads, several=True)
  forms[ONNX_ANYTIME] = functools.partial(
    _stop_at_each, stopping, len(model.exits)
  )
  for name, form in ((LITERT, folder.FLOAT32), (LITERT_INT8, folder.INT8)):
    if form in about['tflite']:
      from ms_ranas_jax.export import litert  # an extra of its own

      found = litert.load(read(about['tflite'][form]), threads)
      forms[name] = through(found)
      versions['litert'] = importlib.metadata.version('ai-edge-litert')
  entries = []
  rng = np.random.default_rng(0)
  for size in BATCH_SIZES:
    shape = (size, *model.image_shape)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    turns = {
      name: run
      for name, run in forms.items()
      if size == 1 or name not in _OF_ONE_IMAGE
    }
    for name, times in _take_turns(turns, images, seconds).items():
      low, median, high = np.percentile(times, (25, 50, 75), axis=0).tolist()
      entries.append(
        {
          'runtime': name,
          'threads': threads,
          'batch_size': size,
          'rounds': len(times),
          'exits': [
            {'median': middle, 'low': below, 'high': above}
            for middle, below, above in zip(median, low, high, strict=True)
          ],
        }
      )
  tensors = model.description.tensors
  return {
    'machine': machine(),
    'versions': versions,
    'model': tensors.sha256 if tensors else None,
    'entries': entries,
  }


def _take_turns(
  forms: Mapping[str, _Round], images: Any, seconds: float
) -> dict[str, list[list[float]]]:
  """Returns the milliseconds to every exit, round after round, by form."""
  times: dict[str, list[list[float]]] = {name: [] for name in forms}
  for _ in range(_WARM):
    for run in forms.values():
      run(images)
  end = time.perf_counter() + seconds
  for count in range(_MOST_ROUNDS):
    if count >= _FEWEST_ROUNDS and time.perf_counter() > end:
      break
    for name, run in forms.items():
      # Threads of the form before may still look for work in the first one.
      run(images)
      times[name].append(run(images))
  return times


def _go_through(runner: Any, images: Any) -> list[float]:
  """Goes through all exits; each answer is there before the next step."""
  import numpy as np

  found = []
  carried = {'images': images}
  began = time.perf_counter()
  for step in range(runner.num_exits):
    carried, logits = runner.take(carried, step)
    np.asarray(logits)
    found.append(1e3 * (time.perf_counter() - began))
  return found


def _stop_at_each(session: Any, num_exits: int, image: Any) -> list[float]:
  """Stops at one exit after the other; each of them is a run from the start."""
  import numpy as np

  found = []
  for exit_ in range(num_exits):
    # Nobody is as sure as 2, and everybody as 0.
    thresholds = np.where(np.arange(num_exits) < exit_, 2.0, 0.0)
    began = time.perf_counter()
    session.run(None, {'image': image, 'thresholds': thresholds})
    found.append(1e3 * (time.perf_counter() - began))
  return found


def main(argv: Sequence[str] | None = None) -> None:
  """Measures in a process of its own; the command of one number of threads.

  Args:
    argv: without the name of the program; by default that of the process.
  """
  parser = argparse.ArgumentParser(description=main.__doc__)
  parser.add_argument('--model', required=True)
  parser.add_argument('--export', required=True)
  parser.add_argument('--json', required=True)
  parser.add_argument('--threads', type=int, default=1)
  parser.add_argument('--seconds', type=float, default=_SECONDS)
  args = parser.parse_args(argv)
  if hasattr(os, 'sched_setaffinity'):
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    os.sched_setaffinity(0, cores)
  files.write_json(
    args.json,
    _measure_here(args.model, args.export, args.threads, args.seconds),
  )


if __name__ == '__main__':
  main()
