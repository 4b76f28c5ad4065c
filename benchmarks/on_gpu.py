"""Measures on a GPU what fits into some minutes, the most valuable first.

Jobs are processes that compile side by side, a few at a time, and are timed one
after the other while the rest of their group waits. What has been measured is
written after every group, and what there was no time for is named.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

import comparison

from ms_ranas_jax import paths
from ms_ranas_jax.runtime import files

_ROOT = comparison.HERE.parent
# Compile on the CPU at the same time, and lie in the device's memory together.
_SIDE_BY_SIDE = 4
# What a group is not begun without, and what is left to end with.
_LEAST_SECONDS = 45
_SLACK_SECONDS = 10
# A job that compiles for longer is given up, so that others have their turn.
_READY_SECONDS = 150
# That the ways to compute agree.
_EQUALITY = (
  'tests/kernels/lowering_test.py',
  'tests/search/lowerings_test.py',
  'tests/kernels/depthwise_test.py',
  'tests/kernels/pooling_test.py',
)
_EQUALITY_NAME = 'equality of the ways to compute'
_EQUALITY_SECONDS = 150
_CHANNELS = 16


@dataclasses.dataclass(frozen=True)
class Job:
  """A process that is made ready and timed.

  Attributes:
    name: what it measures.
    task: which function of `ours.py` or of a reference's script.
    case: its arguments.
    variant: of a reference: 'as it is', ...; '' is ours.
    steps: in a turn.
    turns: how many; 0 times the start alone.
  """

  name: str
  task: str
  case: Mapping[str, Any]
  variant: str = ''
  steps: int = 20
  turns: int = 4


def _case(sizes: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
  base = {
    'image': 32,
    'batch': 64,
    'channels': _CHANNELS,
    'dtype': 'float32',
    'lowering': 'auto',
    'remat': False,
    'devices': 1,
    'channels_last': False,
    'reference_device': 'cuda',
  }
  return {**base, **sizes, **fields}


_SEARCH = {
  'layers': 5,
  'nodes': 2,
  'scales': 1,
  'exits': 'last',
  'order': 1,
  'mixed_derivative': 'exact',
}
_SEARCH_3 = {**_SEARCH, 'scales': 3, 'exits': 'all_but_first'}
_DARTS = {
  'family': 'grid',
  'nodes': 1,
  'genotype': 'DARTS_V2',
  'layers': 8,
  'scales': 1,
  'exits': 'last',
  'drop_path': 0.0,
  'exit': -1,
}
_PAPER = {
  **_DARTS,
  'genotype': str(comparison.HERE / 'paper_cell.json'),
  'layers': 7,
  'scales': 3,
  'exits': 'all_but_first',
}
_MSDNET = {
  'family': 'msdnet',
  'scales': 3,
  'blocks': 11,
  'base': 4,
  'step': 2,
  'step_mode': 'even',
  'growth': 6,
  'prune': 'max',
  'drop_path': 0.0,
  'exit': -1,
}
_NETWORKS = {'DARTS_V2': _DARTS, 'paper': _PAPER, 'MSDNet': _MSDNET}
# The paper's own settings, for an epoch: search of order 2 over 25,000 pairs of
# images, training over 45,000.
_PAPER_SEARCH = {**_SEARCH_3, 'order': 2, 'cutout': 16}
_PAPER_TRAIN = {**_PAPER, 'batch': 96, 'drop_path': 0.2, 'cutout': 16}
_EPOCHS = {'search': (25_000 // 64, 50), 'training': (45_000 // 96, 600)}
_VARIANTS = {
  'as it is': {},
  'channels last, mixed precision': {'channels_last': True, 'amp': True},
  'torch.compile': {'torch_compile': True},
}


def _steps_of(dtype: str, batch: int) -> list[Job]:
  label = f'{dtype}, batch {batch}'
  searches = {'two nodes, one scale': _SEARCH, 'three scales': _SEARCH_3}
  jobs = [
    Job(
      f'search step, {name}, {label}',
      'search_step',
      _case(sizes, dtype=dtype, batch=batch),
    )
    for name, sizes in searches.items()
  ]
  for task in 'train step', 'inference':
    jobs += [
      Job(
        f'{task}, {name}, {label}',
        task.replace(' ', '_'),
        _case(sizes, dtype=dtype, batch=batch),
      )
      for name, sizes in _NETWORKS.items()
    ]
  return jobs


def first_half() -> list[Job]:
  """Returns ours in all sizes, the most valuable first."""
  basic = _steps_of('float32', 64)
  again = [
    dataclasses.replace(
      job, name=f'{job.name}, from a warm cache', steps=1, turns=0
    )
    for job in basic[:4]
  ]
  rest = [
    *_steps_of('bfloat16', 64),
    *_steps_of('float32', 512),
    *_steps_of('bfloat16', 512),
  ]
  return basic + again + rest


def second_half() -> list[Job]:
  """Returns ours beside the references, and an epoch of the paper's."""
  jobs = []
  pairs = (
    ('search step, two nodes, one scale', 'search_step', _SEARCH),
    ('train step, DARTS_V2', 'train_step', _DARTS),
    ('train step, MSDNet', 'train_step', _MSDNET),
    ('inference, DARTS_V2', 'inference', _DARTS),
    ('inference, MSDNet', 'inference', _MSDNET),
  )

  def beside(name: str, task: str, sizes: Mapping[str, Any]) -> Iterator[Job]:
    yield Job(f'{name}, batch 64', task, _case(sizes))
    for variant, fields in _VARIANTS.items():
      yield Job(f'{name}, batch 64', task, _case(sizes, **fields), variant)

  jobs += [job for pair in pairs[:3] for job in beside(*pair)]
  jobs += [
    Job(
      f"an epoch of the paper's {name}",
      task,
      _case(sizes),
      steps=_EPOCHS[name][0],
      turns=1,
    )
    for name, task, sizes in (
      ('search', 'search_step', _PAPER_SEARCH),
      ('training', 'train_step', _PAPER_TRAIN),
    )
  ]
  return jobs + [job for pair in pairs[3:] for job in beside(*pair)]


HALVES = {'first': first_half, 'second': second_half}


def tiny(job: Job) -> Job:
  """Returns a job in a size that a CPU does in no time."""
  small = {
    'image': 8,
    'batch': min(4, job.case['batch'] // 64 * 2),
    'channels': 4,
    'layers': 3,
    'blocks': 2,
    'base': 1,
    'step': 1,
    'scales': min(2, job.case['scales']),
    'reference_device': 'cpu',
  }
  case = job.case | {k: v for k, v in small.items() if k in job.case}
  if case.get('genotype') == 'DARTS_V2':
    case['genotype'] = _PAPER['genotype']
  return dataclasses.replace(
    job, case=case, steps=min(2, job.steps), turns=min(1, job.turns)
  )


class Clock:
  """Says how much time is left."""

  def __init__(self, seconds: float):
    self._end = time.monotonic() + seconds - _SLACK_SECONDS

  @property
  def left(self) -> float:
    """Seconds, at least a tenth of one."""
    return max(self._end - time.monotonic(), 0.1)


def _start(job: Job, args: argparse.Namespace, cache: str) -> comparison.Worker:
  case = {**job.case, 'cache_dir': cache}
  if not job.variant:
    return comparison.start_ours(job.task, case, quiet=True)
  checkout = args.msdnet if case.get('family') == 'msdnet' else args.darts
  return comparison.start_reference(
    args.reference_python, checkout, job.task, case, quiet=True
  )


def _measure(
  jobs: Sequence[Job], args: argparse.Namespace, cache: str, clock: Clock
) -> list[dict[str, Any]]:
  """Makes jobs ready side by side, and times one after the other."""
  workers = [_start(job, args, cache) for job in jobs]
  results = []
  limit = Clock(min(clock.left, _READY_SECONDS) + _SLACK_SECONDS)
  for worker in workers:
    try:
      worker.wait_ready(limit.left)
      results.append({'status': 'measured'})
    except (TimeoutError, ChildProcessError, OSError) as error:
      results.append({'status': 'not ready', 'reason': _end(error, worker)})
  # All that are left are ready, so nothing else runs.
  for job, worker, result in zip(jobs, workers, results):
    if result['status'] != 'measured':
      continue
    try:
      for _ in range(job.turns):
        worker.run(job.steps, clock.left)
      result |= worker.stop()
    except (TimeoutError, ChildProcessError, OSError, ValueError) as error:
      result |= {'status': 'not timed', 'reason': _end(error, worker)}
  return results


def _end(error: Exception, worker: comparison.Worker) -> str:
  """Ends a worker that failed, and returns why it did."""
  last = worker.kill()
  return f'{error}; {last}' if last else str(error)


def check_equality(seconds: float) -> dict[str, Any]:
  """Runs the tests that the ways to compute are equal, on this device.

  Args:
    seconds: how long they may take.
  """
  command = [sys.executable, '-m', 'pytest', '-q', '-x', '-W', 'default']
  command += ['-p', 'no:cacheprovider', '--no-header', *_EQUALITY]
  environment = {
    'JAX_PLATFORMS': os.environ.get('JAX_PLATFORMS', 'cuda,cpu'),
    'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
  }
  result = {'name': _EQUALITY_NAME, 'command': command[1:]}
  began = time.monotonic()
  try:
    done = subprocess.run(
      command,
      cwd=_ROOT,
      env=os.environ | environment,
      capture_output=True,
      text=True,
      timeout=seconds,
      check=False,
    )
    lines = done.stdout.strip().splitlines() or ['']
    result |= {
      'status': 'passed' if done.returncode == 0 else 'failed',
      'said': re.sub(r'=+', '', lines[-1]).strip(),
      'lines': [] if done.returncode == 0 else lines[-15:],
    }
  except subprocess.TimeoutExpired:
    result |= {'status': 'not ended', 'said': f'no end after {seconds:.0f} s'}
  return result | {'seconds': round(time.monotonic() - began, 1)}


def _lacks(job: Job, args: argparse.Namespace) -> str:
  """Returns why a job cannot be run here, '' where it can."""
  if not job.variant:
    return ''
  family = job.case.get('family', 'grid')
  flag = {'grid': 'darts', 'msdnet': 'msdnet'}[family]
  return '' if getattr(args, flag) else f'no checkout was named by --{flag}'


def _facts() -> dict[str, Any]:
  """Returns what machine this is, asked in a process of its own."""
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      'import jax; d = jax.devices()[0];'
      ' print(jax.__version__, d.platform, d.device_kind, sep="|")',
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  version, platform, kind = (*done.stdout.strip().split('|'), '', '')[:3]
  return {
    'jax': version,
    'platform': platform,
    'device': kind,
    'cores': os.cpu_count(),
  }


def main() -> None:
  """Measures what there is time for."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('half', choices=HALVES)
  parser.add_argument(
    '--out', type=paths.expand, required=True, help='a folder for the result'
  )
  parser.add_argument('--seconds', type=float, default=480, help='when to end')
  parser.add_argument(
    '--darts', type=paths.expand, help='a checkout of quark0/darts'
  )
  parser.add_argument(
    '--msdnet', type=paths.expand, help='a checkout of MSDNet-PyTorch'
  )
  parser.add_argument(
    '--reference-python', type=paths.expand, default=sys.executable
  )
  parser.add_argument('--tiny', action='store_true', help='a try on a CPU')
  parser.add_argument(
    '--only', default='', help='a regular expression: what has such a name'
  )
  args = parser.parse_args()
  clock = Clock(args.seconds)
  facts = _facts()
  if facts['platform'] not in ('gpu', 'cuda', 'rocm') and not args.tiny:
    parser.error(
      f'jax sees {facts["platform"] or "no device"}, no GPU; --tiny is for a '
      'try without'
    )
  jobs = [j for j in HALVES[args.half]() if re.search(args.only, j.name)]
  if args.tiny:
    jobs = [tiny(job) for job in jobs]
  # What is only tried, or only a part, does not take the place of the whole.
  part = '_part' * bool(args.tiny or args.only)
  path = pathlib.Path(args.out) / f'gpu_{args.half}{part}.json'
  result = {
    'command': ' '.join(
      [
        f'benchmarks/on_gpu.sh {args.half}',
        *(f'--only={args.only!r}' for _ in range(bool(args.only))),
        *('--tiny' for _ in range(args.tiny)),
      ]
    ),
    'date': time.strftime('%Y-%m-%d'),
    **facts,
    'checks': [],
    'jobs': [],
  }
  if args.half == 'first' and re.search(args.only, _EQUALITY_NAME):
    limit = min(_EQUALITY_SECONDS, clock.left / 2)
    result['checks'].append(check_equality(limit))
    files.write_json(path, result)
    print(f'{result["checks"][0]["name"]}: {result["checks"][0]["status"]}')
  able = []
  for job in jobs:
    if why := _lacks(job, args):
      result['jobs'].append(_record(job, 'skipped', why))
    else:
      able.append(job)
  jobs = able
  with tempfile.TemporaryDirectory() as cache:
    while jobs:
      if clock.left < _LEAST_SECONDS and not args.tiny:
        result['jobs'] += [
          _record(job, 'skipped', 'no time was left') for job in jobs
        ]
        break
      group, jobs = jobs[:_SIDE_BY_SIDE], jobs[_SIDE_BY_SIDE:]
      for job, found in zip(group, _measure(group, args, cache, clock)):
        result['jobs'].append(_record(job, **found))
        print(_line(result['jobs'][-1]))
      files.write_json(path, result)
  files.write_json(path, result)
  skipped = [r['name'] for r in result['jobs'] if r['status'] != 'measured']
  if skipped:
    print(f'not measured: {len(skipped)}: {"; ".join(skipped)}')
  print(path)


def _record(
  job: Job, status: str, reason: str = '', **found: Any
) -> dict[str, Any]:
  record = {'name': job.name, 'variant': job.variant or 'ours'}
  record |= {'status': status, 'task': job.task, 'case': dict(job.case)}
  if reason:
    record['reason'] = reason
  record |= found
  match = re.fullmatch(r"an epoch of the paper's (\w+)", job.name)
  if match and 'median_s' in found:
    steps, epochs = _EPOCHS[match[1]]
    record['steps'], record['epochs'] = steps, epochs
    record['hours_in_all'] = found['median_s'] * steps * epochs / 3600
  return record


def _line(record: Mapping[str, Any]) -> str:
  said = record.get('reason', '')
  if 'median_s' in record:
    said = f'{1e3 * record["median_s"]:.2f} ms'
  elif record['status'] == 'measured':
    said = f'ready after {record["ready_s"]} s'
  return f'{record["name"]} ({record["variant"]}): {said}'


if __name__ == '__main__':
  main()
