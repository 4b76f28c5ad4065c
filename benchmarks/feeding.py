"""Training from images on disk: the same bits, how fast, in how much memory.

python benchmarks/feeding.py --dataset-dir CIFAR10 --workdir DIR --json FILE

Two parts, each of the program's own command:

- `cached`: CIFAR-10 as an npz file, trained with all images on the device, and
  from a decoded file, of which few may lie there; once undisturbed, and once
  killed in the middle and started again. Rounds alternate.
- `large`: an epoch over images that are drawn at random, 5.5 GB of them by
  default. The memory of its own is what the system calls anonymous: pages of
  mapped files, which it may take back at any time, are not of it.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from typing import Any
import zipfile

import experiments
import numpy as np

from ms_ranas_jax import paths
from ms_ranas_jax.data import datasets
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import metrics

_POLL_SECONDS = 0.2
_BLOCK = 1000


def write_images(
  path: pathlib.Path, count: int, side: int, classes: int
) -> None:
  """Writes an npz file of images block by block.

  Args:
    path: of the file.
    count: training images.
    side: of an image, in pixels.
    classes: whose labels are dealt out in turn.
  """
  generator = np.random.default_rng(0)
  tests = 10 * classes
  with zipfile.ZipFile(path, 'w') as archive:
    for part, images in ('train', count), ('test', tests):
      name = f'x_{part}.npy'
      with archive.open(name, 'w', force_zip64=True) as member:
        shape = (images, side, side, 3)
        np.lib.format.write_array_header_1_0(
          member, {'descr': '|u1', 'fortran_order': False, 'shape': shape}
        )
        for first in range(0, images, _BLOCK):
          size = (min(_BLOCK, images - first), *shape[1:])
          member.write(generator.bytes(math.prod(size)))
      with archive.open(f'y_{part}.npy', 'w') as member:
        np.lib.format.write_array(member, np.arange(images) % classes)


def command(workdir: pathlib.Path, fields: dict[str, Any]) -> list[str]:
  """Returns the command of a training.

  Args:
    workdir: its work directory.
    fields: of its config.
  """
  return [
    *(sys.executable, '-m', 'ms_ranas_jax.main', '--config=default'),
    f'--workdir={workdir}',
    *(f'--config.{name}={value}' for name, value in fields.items()),
  ]


def own_bytes(pid: int) -> int:
  """Returns the anonymous memory of a process, 0 where it has ended."""
  try:
    text = pathlib.Path(f'/proc/{pid}/status').read_text(encoding='utf-8')
  except OSError:
    return 0
  for line in text.splitlines():
    if line.startswith('RssAnon:'):
      return int(line.split()[1]) * 1024
  return 0


def run(
  line: list[str], log: pathlib.Path, kill_at: pathlib.Path | None = None
) -> dict[str, Any]:
  """Runs a command, and watches its memory.

  Args:
    line: the command.
    log: of what it says.
    kill_at: where it is killed once there are lines of metrics.
  """
  began, most = time.monotonic(), 0
  with open(log, 'a', encoding='utf-8') as file:
    process = subprocess.Popen(line, stdout=file, stderr=file)
    while process.poll() is None:
      most = max(most, own_bytes(process.pid))
      if kill_at is not None and kill_at.is_file():
        lines = kill_at.read_text(encoding='utf-8').count('\n')
        if lines >= 3:
          process.send_signal(signal.SIGKILL)
          kill_at = None
      time.sleep(_POLL_SECONDS)
  if process.returncode not in (0, -signal.SIGKILL):
    raise SystemExit(f'a training failed: see {log}')
  return {
    'killed': process.returncode != 0,
    'seconds': round(time.monotonic() - began, 1),
    'own_bytes': most,
  }


def result_of(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns what a training left: its params, its metrics, its speed.

  Args:
    workdir: its work directory.
  """
  records = metrics.read_metrics(workdir / 'train' / 'metrics.jsonl')
  steps = [0, *(record['step'] for record in records)]
  rates = [
    (stop - start) / record['seconds']
    for start, stop, record in zip(steps, steps[1:], records)
  ]
  kept = [{k: v for k, v in r.items() if k != 'seconds'} for r in records]
  params = (workdir / 'model' / 'params.safetensors').read_bytes()
  return {
    'params_sha256': hashlib.sha256(params).hexdigest(),
    'metrics_sha256': hashlib.sha256(repr(kept).encode()).hexdigest(),
    # The first line has what is compiled in it.
    'steps_per_second': statistics.median(rates[1:]),
  }


def _fields(data: pathlib.Path, cache: pathlib.Path, **more: Any):
  return {
    'stages': '("train",)',
    'dataset.name': 'npz',
    'dataset.dir': data,
    'dataset.cache_dir': cache,
    'train.genotype': 'DARTS_V2',
    'train.drop_path': 0.0,
    'train.network.nodes': 4,
    'train.network.scales': 1,
    **more,
  }


def cached(args: argparse.Namespace) -> dict[str, Any]:
  """Returns the part `cached`, see the module."""
  work = pathlib.Path(args.workdir) / 'cached'
  work.mkdir(parents=True, exist_ok=True)
  data = work / 'cifar10.npz'
  if not data.is_file():
    found = datasets.load_dataset('cifar10', args.dataset_dir, args.images)
    files.write_npz(
      data,
      x_train=found.train_images,
      y_train=found.train_labels,
      x_test=found.test_images,
      y_test=found.test_labels,
    )
  fields = _fields(data, work / 'cache')
  fields |= {
    'dataset.crop_padding': 4,
    'dataset.flip': True,
    'train.epochs': args.epochs,
    'train.batch_size': 64,
    'train.network.layers': 4,
    'train.network.channels': 8,
  }
  lies = {'resident': 2**31, 'disk': args.cached_bytes}
  found: dict[str, list[dict[str, Any]]] = {name: [] for name in lies}
  for number in range(args.rounds):
    for name, resident_bytes in lies.items():
      folder = work / f'{name}_{number}'
      line = command(
        folder, fields | {'dataset.resident_bytes': resident_bytes}
      )
      watched = run(line, work / 'log')
      found[name].append({**watched, **result_of(folder)})
  folder = work / 'killed'
  line = command(folder, fields | {'dataset.resident_bytes': args.cached_bytes})
  watched = run(line, work / 'log', folder / 'train' / 'metrics.jsonl')
  if not watched['killed']:
    raise SystemExit('it ended before it was killed; give more --epochs')
  run(line, work / 'log')
  killed = result_of(folder)
  speeds = {
    name: statistics.median(one['steps_per_second'] for one in runs)
    for name, runs in found.items()
  }
  every = [*found['resident'], *found['disk'], killed]
  same = {
    name: len({one[name] for one in every}) == 1
    for name in ('params_sha256', 'metrics_sha256')
  }
  return {
    'images': args.images,
    'epochs': args.epochs,
    'resident_bytes': args.cached_bytes,
    'runs': found,
    'killed_and_resumed': killed,
    'same_params': same['params_sha256'],
    'same_metrics': same['metrics_sha256'],
    'speed_over_resident': speeds['disk'] / speeds['resident'],
  }


def large(args: argparse.Namespace) -> dict[str, Any]:
  """Returns the part `large`, see the module."""
  work = pathlib.Path(args.workdir) / 'large'
  work.mkdir(parents=True, exist_ok=True)
  data = work / 'images.npz'
  if not data.is_file():
    partial = work / 'partial.npz'
    write_images(partial, args.large_images, args.side, 10)
    os.replace(partial, data)
  fields = _fields(data, work / 'cache')
  fields |= {
    'dataset.resident_bytes': args.large_bytes,
    'train.epochs': 1,
    'train.batch_size': 64,
    'train.network.layers': 3,
    'train.network.channels': 4,
    'train.network.stem': 'stride2',
  }
  folder = work / 'run'
  watched = run(command(folder, fields), work / 'log')
  return {
    'images': args.large_images,
    'side': args.side,
    'image_bytes': args.large_images * args.side**2 * 3,
    'resident_bytes': args.large_bytes,
    **watched,
    **result_of(folder),
  }


def main() -> None:
  """Measures what is not measured yet."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--dataset-dir', type=paths.expand, default='')
  parser.add_argument('--workdir', type=paths.expand, default='runs/feeding')
  parser.add_argument('--json', type=paths.expand, required=True)
  parser.add_argument('--parts', nargs='+', default=['cached', 'large'])
  parser.add_argument('--images', type=int, default=20000)
  parser.add_argument('--epochs', type=int, default=2)
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument('--cached-bytes', type=int, default=20_000_000)
  parser.add_argument('--large-images', type=int, default=200_000)
  parser.add_argument('--side', type=int, default=96)
  parser.add_argument('--large-bytes', type=int, default=1_000_000_000)
  args = parser.parse_args()
  build = {'cached': cached, 'large': large}
  result: dict[str, Any] = {}
  if os.path.isfile(args.json):
    result = files.read_json(args.json)
  places = ('dataset_dir', 'workdir', 'json', 'parts')
  changed = [
    f'--{name.replace("_", "-")}={value}'
    for name, value in vars(args).items()
    if name not in places and value != parser.get_default(name)
  ]
  head = experiments.head(
    ' '.join(
      [
        'python benchmarks/feeding.py --dataset-dir DIR --workdir DIR',
        *['--json FILE', *changed],
      ]
    )
  )
  for part in args.parts:
    if part not in result:
      result[part] = {**head, **build[part](args)}
      files.write_json(args.json, result)


if __name__ == '__main__':
  main()
