"""Times a trained network step by step, and what leaving early saves.

python benchmarks/early_exit.py --model runs/digits --json FILE
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np

from ms_ranas_jax import paths
from ms_ranas_jax.model import model as model_lib
from ms_ranas_jax.runtime import files
from ms_ranas_jax.training import augmentation

_START = """
import sys, time
began = time.perf_counter()
import numpy as np
import ms_ranas_jax as mr
model = mr.load_model(sys.argv[1])
model.predict(np.zeros((1, *model.image_shape), np.uint8))
print(time.perf_counter() - began)
"""


def _turns(
  cases: Mapping[str, Callable[[], Any]], repeats: int
) -> dict[str, dict[str, float]]:
  """Times cases in turn; milliseconds: median, minimum and maximum."""
  seconds: dict[str, list[float]] = {name: [] for name in cases}
  for run in cases.values():
    run()  # compiles
  for _ in range(repeats):
    for name, run in cases.items():
      began = time.perf_counter()
      run()
      seconds[name].append(1e3 * (time.perf_counter() - began))
  return {
    name: {
      'median_ms': round(statistics.median(values), 4),
      'min_ms': round(min(values), 4),
      'max_ms': round(max(values), 4),
    }
    for name, values in seconds.items()
  }


def _whole(model: model_lib.Model) -> Callable[[np.ndarray], np.ndarray]:
  """Returns the whole network as one program, on uint8 images."""
  known = model.description

  @jax.jit
  def logits(variables, images):
    x = augmentation.normalize(images, known.mean, known.std)
    return model.network.apply(variables, x, train=False)

  variables = jax.device_put(dict(model.variables))
  return lambda images: np.asarray(logits(variables, images))


def measure(model: model_lib.Model, batch: int, repeats: int) -> dict[str, Any]:
  """Times exits, steps and early leaving of a batch of random images.

  Args:
    model: the model.
    batch: images.
    repeats: turns.
  """
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (batch, *model.image_shape), np.uint8)
  whole = _whole(model)
  # So that half of the images leave at the first exit, and nobody afterwards.
  first = model.predict(images, exit=0).confidence
  rest = [2.0] * (len(model.exits) - 1)
  confidence = [float(np.median(first)), *rest]
  left = model.predict(images, confidence=confidence).exits
  times = _turns(
    {
      'whole network, one program': lambda: whole(images),
      'one step after another': lambda: list(model.steps(images)),
      **{
        f'exit {k}': lambda k=k: model.predict(images, exit=k)
        for k in range(len(model.exits))
      },
      'half leave at exit 0': lambda: model.predict(
        images, confidence=confidence
      ),
    },
    repeats,
  )
  last = times[f'exit {len(model.exits) - 1}']['median_ms']
  for exit_ in model.exits:
    row = times[f'exit {exit_.exit}']
    row['share_of_time'] = round(row['median_ms'] / last, 4)
    row['share_of_macs'] = round(exit_.macs / model.exits[-1].macs, 4)
  half = times['half leave at exit 0']
  half['share_of_time'] = round(half['median_ms'] / last, 4)
  half['share_that_left'] = round(float((left == 0).mean()), 4)
  steps = times['one step after another']
  steps['over_whole'] = round(
    steps['median_ms'] / times['whole network, one program']['median_ms'], 4
  )
  return {'batch': batch, 'repeats': repeats, 'times': times}


def start_seconds(path: str, repeats: int) -> list[float]:
  """Times import, load and first prediction, each in a process of its own.

  Args:
    path: of the model.
    repeats: processes after a first one, which fills the cache.
  """
  seconds = []
  for _ in range(repeats + 1):
    done = subprocess.run(
      [sys.executable, '-c', _START, path],
      check=True,
      capture_output=True,
      text=True,
    )
    seconds.append(round(float(done.stdout), 3))
  return seconds[1:]


def main() -> None:
  """Parses the arguments, prints what was measured and writes it."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--model', required=True, help='a model folder')
  parser.add_argument('--batch', type=int, nargs='+', default=[1, 64])
  parser.add_argument('--repeats', type=int, default=30)
  parser.add_argument('--json', type=paths.expand, help='a file to write')
  args = parser.parse_args()
  model = model_lib.load_model(args.model)
  result = {
    'command': ' '.join(['python', *sys.argv]),
    'machine': f'{platform.machine()}, {jax.devices()[0].device_kind}',
    'jax': jax.__version__,
    'network': dict(model.description.network),
    'batches': [],
  }
  for batch in args.batch:
    found = measure(model, batch, args.repeats)
    result['batches'].append(found)
    print(f'batch {batch}')
    for name, row in found['times'].items():
      rest = ', '.join(
        f'{key.replace("_", " ")} {value:.2f}'
        for key, value in row.items()
        if not key.endswith('_ms')
      )
      print(
        f'  {name}: {row["median_ms"]:.2f} ms ({row["min_ms"]:.2f} to '
        f'{row["max_ms"]:.2f}){"; " * bool(rest)}{rest}'
      )
  result['start_seconds'] = start_seconds(args.model, 3)
  print(f'import, load, first prediction: {result["start_seconds"]} s')
  if args.json:
    files.write_json(args.json, result)


if __name__ == '__main__':
  main()
