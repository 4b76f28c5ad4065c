"""Times one process, or two that take turns, and tells what came out."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
import contextlib
import json
import os
import pathlib
import platform
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from ms_ranas_jax import paths
from ms_ranas_jax.runtime import files

# The default number of scales of a family.
_SCALES = {'grid': 1, 'msdnet': 3}
_REFERENCES = {'grid': 'reference_darts.py', 'msdnet': 'reference_msdnet.py'}
# What launch/env.sh sets; the first is for both sides, the second for JAX.
LAUNCHED = {
  'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1',
  'XLA_FLAGS': '--xla_cpu_experimental_ynn_fusion_type=',
}
HERE = pathlib.Path(__file__).resolve().parent


class Worker:
  """A process that serves `protocol.serve`; started, and ready after a while.

  Args:
    command: what to run.
    quiet: keep what the process says on standard error, for `kill` to tell.
  """

  def __init__(self, command: Sequence[str], quiet: bool = False):
    env = {
      **LAUNCHED,
      # Several processes may share a GPU.
      'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
      **os.environ,
    }
    self._errors = tempfile.TemporaryFile() if quiet else None
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      text=True,
      bufsize=1,
      env=env,
    )
    self._began = time.monotonic()
    self._lines: queue.Queue[str] = queue.Queue()
    # A thread of its own, so that an answer can be waited for no longer than
    # there is time.
    self._reader = threading.Thread(target=self._read, daemon=True)
    self._reader.start()
    self.facts: dict[str, Any] = {}
    self.ready_s = 0.0
    self.seconds: list[float] = []
    self.peak_bytes: int | None = None

  def _read(self) -> None:
    for line in self._process.stdout:
      self._lines.put(line)
    self._lines.put('')

  def _answer(self, seconds: float | None) -> dict[str, Any]:
    try:
      line = self._lines.get(timeout=seconds)
    except queue.Empty:
      raise TimeoutError(f'no answer after {seconds:.0f} s') from None
    if not line:
      raise ChildProcessError(
        f'{" ".join(self._process.args)} ended with {self._process.wait()}'
      )
    return json.loads(line)

  def wait_ready(self, seconds: float | None = None) -> None:
    """Waits until steps can be timed.

    Raises:
      TimeoutError: that took longer.
      ChildProcessError: the process has ended.
    """
    self.facts = self._answer(seconds)
    self.ready_s = time.monotonic() - self._began

  def run(self, steps: int, seconds: float | None = None) -> None:
    """Times some steps.

    Raises:
      TimeoutError: they took longer than that.
      ChildProcessError: the process has ended.
    """
    self._process.stdin.write(f'{steps}\n')
    answer = self._answer(seconds)
    self.seconds.append(answer['seconds'])
    self.peak_bytes = answer['peak_bytes']

  def kill(self) -> str:
    """Ends the process whatever it is at.

    Returns:
      The last line that a quiet process said on standard error.
    """
    self._process.kill()
    text = b''
    if self._errors is not None:
      self._process.wait()
      self._errors.seek(0)
      text = self._errors.read()
    self._close()
    lines = text.decode('utf-8', 'replace').strip().splitlines()
    return lines[-1] if lines else ''

  def _close(self) -> None:
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    self._process.wait()
    self._reader.join()
    self._process.stdout.close()
    if self._errors is not None:
      self._errors.close()

  def stop(self) -> dict[str, Any]:
    """Ends the process and returns what it measured."""
    self._close()
    measured = {}
    if self.seconds:
      measured = {
        'median_s': statistics.median(self.seconds),
        'min_s': min(self.seconds),
        'max_s': max(self.seconds),
        'turns_s': self.seconds,
        'peak_bytes': self.peak_bytes,
      }
    return {
      **measured,
      # From the start of the process until its steps can be timed.
      'ready_s': round(self.ready_s, 2),
      **self.facts,
    }


def start_ours(
  task: str, case: Mapping[str, Any], quiet: bool = False
) -> Worker:
  """Starts a process that runs ours.

  Args:
    task: which function of `ours.py`.
    case: its arguments, passed as JSON.
    quiet: see `Worker`.
  """
  return Worker(
    [sys.executable, str(HERE / 'ours.py'), task, json.dumps(case)], quiet
  )


def start_reference(
  python: str,
  checkout: str,
  task: str,
  case: Mapping[str, Any],
  quiet: bool = False,
) -> Worker:
  """Starts a process that runs a checkout of public code.

  Args:
    python: an interpreter that has torch.
    checkout: of the code for the family of the case.
    task: which function of the reference's script.
    case: its arguments, passed as JSON.
    quiet: see `Worker`.
  """
  script = str(HERE / _REFERENCES[case.get('family', 'grid')])
  return Worker([python, script, checkout, task, json.dumps(case)], quiet)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds what all benchmarks take."""
  parser.add_argument('--repeats', type=int, default=5, help='turns of each')
  parser.add_argument(
    '--steps', type=int, default=2, help='steps in a turn; their mean counts'
  )
  parser.add_argument(
    '--json', type=paths.expand, help='write the result there'
  )
  parser.add_argument(
    '--reference',
    type=paths.expand,
    help='a checkout to take turns with: of quark0/darts, or of '
    'kalviny/MSDNet-PyTorch for --family msdnet',
  )
  parser.add_argument(
    '--reference-python',
    type=paths.expand,
    default=sys.executable,
    help='the interpreter that has torch',
  )
  parser.add_argument(
    '--reference-device', choices=('cpu', 'cuda'), default='cpu'
  )
  parser.add_argument(
    '--channels-last',
    action='store_true',
    help='let the reference have channels last',
  )
  parser.add_argument(
    '--lowering', default='auto', help='auto, taps, fused or conv; of ours'
  )
  parser.add_argument(
    '--remat', action='store_true', help='less memory, more time; of ours'
  )
  parser.add_argument('--devices', type=int, default=1, help='of ours')
  parser.add_argument(
    '--cache-dir',
    type=paths.expand,
    help='keep compiled programs there; by default nowhere',
  )


def add_network_arguments(
  parser: argparse.ArgumentParser, batches: Sequence[int] | None = None
) -> None:
  """Adds what says which network; `batches` allows several sizes."""
  parser.add_argument('--family', choices=sorted(_SCALES), default='grid')
  parser.add_argument(
    '--genotype', default='DARTS_V2', help='a published one, or a file'
  )
  parser.add_argument('--layers', type=int, default=8)
  parser.add_argument('--channels', type=int, default=16)
  parser.add_argument('--scales', type=int, help='by default 1, MSDNet 3')
  parser.add_argument('--exits', default='last', help='last or all_but_first')
  parser.add_argument('--image', type=int, default=32, help='side, pixels')
  msdnet = parser.add_argument_group('--family msdnet')
  msdnet.add_argument('--blocks', type=int, default=11)
  msdnet.add_argument('--base', type=int, default=4)
  msdnet.add_argument('--step', type=int, default=2, help='layers of a block')
  msdnet.add_argument('--step-mode', default='even', help='even or lin_grow')
  msdnet.add_argument('--growth', type=int, default=6)
  msdnet.add_argument('--prune', default='max', help='max or min')
  if batches is None:
    parser.add_argument('--batch', type=int, default=64)
  else:
    parser.add_argument('--batch', type=int, nargs='+', default=list(batches))


def network_case(
  parser: argparse.ArgumentParser, args: argparse.Namespace
) -> dict[str, Any]:
  """Returns the part of the case that says which network."""
  if args.scales is None:
    args.scales = _SCALES[args.family]
  if args.family == 'msdnet':
    if args.remat or getattr(args, 'drop_path', 0):
      parser.error('--family msdnet has neither --remat nor --drop-path')
    names = 'channels scales image blocks base step step_mode growth prune'
    return {
      'family': args.family,
      **{name: getattr(args, name) for name in names.split()},
    }
  if args.reference and args.scales != 1:
    parser.error('the reference has one scale')
  names = 'family genotype layers channels scales exits image'.split()
  # The number of nodes is the genotype's.
  return {'nodes': 1, **{name: getattr(args, name) for name in names}}


def compare(
  args: argparse.Namespace, task: str, case: Mapping[str, Any]
) -> dict[str, Any]:
  """Times ours, in turn with the reference where one is given, and reports.

  Args:
    args: the parsed arguments of `add_arguments`.
    task: which function of `ours.py` and of the reference's worker.
    case: its arguments, passed as JSON.

  Returns:
    {'case', 'ours', 'reference', 'ratio', 'machine'}: the middle two
    None without a reference; the ratio is the reference's median over ours.
  """
  case = {
    **case,
    'lowering': args.lowering,
    'remat': args.remat,
    'devices': args.devices,
    'cache_dir': args.cache_dir,
    'channels_last': args.channels_last,
    'reference_device': args.reference_device,
  }
  workers = [start_ours(task, case)]
  wait_ready(workers[0])
  if args.reference:
    workers.append(
      start_reference(args.reference_python, args.reference, task, case)
    )
    wait_ready(workers[1])
  for _ in range(args.repeats):
    for worker in workers:
      worker.run(args.steps)
  ours, *others = (worker.stop() for worker in workers)
  reference = others[0] if others else None
  result = {
    'case': case,
    'ours': ours,
    'reference': reference,
    'ratio': reference['median_s'] / ours['median_s'] if reference else None,
    'machine': f'{os.cpu_count()} cores, {platform.machine()}',
  }
  print(_table(result))
  if args.json:
    files.write_json(args.json, result)
  return result


def wait_ready(worker: Worker) -> None:
  """Waits until a worker is ready, and ends the program where it ended."""
  try:
    worker.wait_ready()
  except ChildProcessError as error:
    raise SystemExit(f'{error}; see above.') from error


def _table(result: Mapping[str, Any]) -> str:
  lines = [
    f'{"":10} {"median":>10} {"min":>10} {"max":>10} {"peak":>9} '
    f'{"compile":>8}  version'
  ]
  for side in ('ours', 'reference'):
    row = result[side]
    if row is None:
      continue
    peak = row['peak_bytes']
    peak = '?' if peak is None else f'{peak / 1e9:.2f} GB'
    compiling = f'{row["compile_s"]:.1f} s' if row.get('compile_s') else '-'
    times = ' '.join(
      f'{row[key] * 1e3:7.1f} ms' for key in ('median_s', 'min_s', 'max_s')
    )
    lines.append(
      f'{side:10} {times} {peak:>9} {compiling:>8}  {row["version"]}'
    )
  if result['ratio'] is not None:
    lines.append(f'reference / ours: {result["ratio"]:.2f}')
  return '\n'.join(lines)
