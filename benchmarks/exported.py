r"""Times what is exported here beside torch's export of the public code.

python benchmarks/exported.py --darts DIR --msdnet DIR \
  --reference-python PYTHON --json benchmarks/results/exported.json

Both files hold the same drawn weights, and run in the same ONNX Runtime; forms
take turns, round after round. A turn takes one run that is not counted, then
one that is. The forms:

  torch   the file of torch.onnx.export: normalised floats to all logits
  whole   the product's `all_exits.onnx`: uint8 to all logits
  steps   the product's files of steps, one after the other, the same

It ends with 1 where logits differ by more than --tolerance of the largest.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
import datetime
import json
import pathlib
import platform
import shlex
import sys
import tempfile
import time
from typing import Any

import converted
import drawn
import exported_rows
from exported_rows import STEPS
from exported_rows import TORCH
from exported_rows import WHOLE
import numpy as np
import onnx
import onnxruntime

from ms_ranas_jax import paths
from ms_ranas_jax.export import folder as folder_lib
from ms_ranas_jax.export import latency
from ms_ranas_jax.export import onnx_file
from ms_ranas_jax.export import runners
from ms_ranas_jax.model import model as model_lib
from ms_ranas_jax.runtime import files
from ms_ranas_jax.version import __version__

_HERE = pathlib.Path(__file__).resolve().parent
# Names of `converted.CASES`.
CASES = ('DARTS_V2, 8 layers, 16 channels', "MSDNet, 11 blocks, prune 'max'")
BATCH_SIZES = (1, 64)
MOST = 1.05  # times torch's time
_WARM = 3
_FEWEST_ROUNDS = 11
_MOST_ROUNDS = 500
_PROFILED = 5

Run = Callable[[np.ndarray], Sequence[np.ndarray]]


def normalized(images: np.ndarray, facts: Mapping[str, Any]) -> np.ndarray:
  """Returns what the public code takes, float32, channels first.

  Args:
    images: uint8 (images, height, width, channels).
    facts: `mean` and `std` of images / 255.
  """
  mean, std = (np.array(facts[name], np.float32) for name in ('mean', 'std'))
  scaled = (images.astype(np.float32) / 255 - mean) / std
  return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _one_file(session: onnxruntime.InferenceSession) -> Run:
  (entry,) = session.get_inputs()
  return lambda images: session.run(None, {entry.name: images})


def _all_exits(session: onnxruntime.InferenceSession) -> Run:
  run = _one_file(session)
  return lambda images: run(images)[0]


def _steps(runner: runners.Runner) -> Run:
  def run(images: np.ndarray) -> list[np.ndarray]:
    carried: runners.Carried = {onnx_file.IMAGES: images}
    found = []
    for step in range(runner.num_exits):
      carried, logits = runner.take(carried, step)
      found.append(logits)
    return found

  return run


def take_turns(
  runs: Mapping[str, Run], fed: Mapping[str, np.ndarray], seconds: float
) -> dict[str, Any]:
  """Times forms that take turns.

  Args:
    runs: by form.
    fed: images, by form.
    seconds: of rounds; eleven at least are taken.

  Returns:
    `rounds`; `milliseconds`, by form the `median` and the quartiles `low` and
    `high`; and `ratio`, the same of what a round took over what torch's took in
    the same round, with `medians`, the ratio of both medians.
  """
  for _ in range(_WARM):
    for name, run in runs.items():
      run(fed[name])
  times: dict[str, list[float]] = {name: [] for name in runs}
  end = time.perf_counter() + seconds
  for count in range(_MOST_ROUNDS):
    if count >= _FEWEST_ROUNDS and time.perf_counter() > end:
      break
    for name, run in runs.items():
      # Threads of the form before may still look for work in the first one.
      run(fed[name])
      began = time.perf_counter()
      run(fed[name])
      times[name].append(1e3 * (time.perf_counter() - began))
  theirs = np.array(times[TORCH])
  return {
    'rounds': len(theirs),
    'milliseconds': {name: _quartiles(found) for name, found in times.items()},
    'ratio': {
      name: {
        'medians': float(np.median(found) / np.median(theirs)),
        **_quartiles(np.array(found) / theirs),
      }
      for name, found in times.items()
      if name != TORCH
    },
  }


def _quartiles(values: Sequence[float] | np.ndarray) -> dict[str, float]:
  low, median, high = np.percentile(values, (25, 50, 75)).tolist()
  return {'median': median, 'low': low, 'high': high}


def differences(
  found: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> list[float]:
  """Returns by exit the largest difference over the largest logit.

  Args:
    found: logits, by exit.
    expected: the same of the public code.
  """
  return [
    float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    for ours, theirs in zip(found, expected, strict=True)
  ]


def _by_kind(path: str, runs: int) -> dict[str, float]:
  """Returns the milliseconds of a run by kind of node, of a profile."""
  totals: dict[str, float] = defaultdict(float)
  for event in json.loads(files.read_bytes(path)):
    if event.get('cat') == 'Node' and event['name'].endswith('_kernel_time'):
      totals[event['args']['op_name']] += event['dur'] / 1e3 / runs
  return dict(sorted(totals.items(), key=lambda item: -item[1]))


def profiled(
  models: Sequence[bytes],
  images: np.ndarray,
  threads: int,
  runs: int = _PROFILED,
) -> dict[str, float]:
  """Returns the milliseconds of a run by kind of node.

  Args:
    models: one file, or those of all steps.
    images: that the first one takes.
    threads: of each.
    runs: after one that is counted too; a mean is over all.
  """
  with tempfile.TemporaryDirectory() as folder:
    sessions = tuple(
      runners.session(
        model, threads, f'{folder}/{index}', several=len(models) > 1
      )
      for index, model in enumerate(models)
    )
    run = (
      _one_file(sessions[0])
      if len(sessions) == 1
      else _steps(runners.OnnxSteps(sessions))
    )
    for _ in range(runs + 1):
      run(images)
    totals: dict[str, float] = defaultdict(float)
    for session in sessions:
      for kind, milliseconds in _by_kind(
        session.end_profiling(), runs + 1
      ).items():
        totals[kind] += milliseconds
  return dict(sorted(totals.items(), key=lambda item: -item[1]))


def measure(
  models: Mapping[str, Sequence[bytes]],
  facts: Mapping[str, Any],
  threads: Sequence[int],
  batch_sizes: Sequence[int],
  seconds: float,
  profile: bool = False,
) -> dict[str, Any]:
  """Compares the logits of all forms, and times them.

  Args:
    models: files by form; steps have one each.
    facts: seed, images and their range.
    threads: numbers of them.
    batch_sizes: images at a time.
    seconds: of rounds, for each of both.
    profile: whether to tell of kinds of nodes too.
  """
  images = drawn.images(
    max(facts['images'], *batch_sizes), facts['side'], facts['seed']
  )
  floats = normalized(images, facts)
  result: dict[str, Any] = {'relative_difference': {}, 'entries': []}
  for count in threads:
    sessions = {
      name: tuple(runners.session(c, count, several=True) for c in content)
      for name, content in models.items()
    }
    runs = {
      TORCH: _one_file(sessions[TORCH][0]),
      WHOLE: _all_exits(sessions[WHOLE][0]),
      STEPS: _steps(runners.OnnxSteps(sessions[STEPS])),
    }
    for size in batch_sizes:
      fed = {
        name: (floats if name == TORCH else images)[:size] for name in runs
      }
      logits = {name: run(fed[name]) for name, run in runs.items()}
      for name in runs.keys() - {TORCH}:
        off = differences(logits[name], logits[TORCH])
        worst = result['relative_difference'].get(name, [0.0] * len(off))
        result['relative_difference'][name] = np.maximum(off, worst).tolist()
      entry = {'threads': count, 'batch_size': size}
      entry |= take_turns(runs, fed, seconds)
      if profile:
        entry['kinds'] = {
          name: profiled(content, fed[name], count)
          for name, content in models.items()
        }
      result['entries'].append(entry)
  return result


def compare(
  name: str, command: Sequence[str], checkout: str, args: argparse.Namespace
) -> dict[str, Any]:
  """Exports a case on both sides, and measures.

  Args:
    name: of `converted.CASES`.
    command: an interpreter that has torch, and the script that exports.
    checkout: of the code that the case is of.
    args: those of the command.
  """
  facts = converted.facts_of(name, args.seed, 16)
  with tempfile.TemporaryDirectory() as folder:
    told = {**facts, 'exporter': args.exporter}
    said = json.loads(
      converted.ask(name, command, checkout, folder, told).splitlines()[-1]
    )
    model, _ = converted.converted_model(name, folder, facts['side'])
    theirs = files.read_bytes(f'{folder}/torch.onnx')
  models = {TORCH: [theirs], **our_files(model, facts)}
  opset = onnx.load_from_string(theirs).opset_import[0].version
  return {
    **said,
    'opset': opset,
    'nodes': {
      form: sum(len(onnx.load_from_string(c).graph.node) for c in content)
      for form, content in models.items()
    },
    'exits': len(model.exits),
    'macs': model.exits[-1].macs,
    **measure(
      models, facts, args.threads, args.batch, args.seconds, args.profile
    ),
  }


def our_files(
  model: model_lib.Model, facts: Mapping[str, Any]
) -> dict[str, list[bytes]]:
  """Returns the files of our forms, compared with the network.

  Args:
    model: the network.
    facts: seed, images and their side.
  """
  images = drawn.images(facts['images'], facts['side'], facts['seed'])
  exported = folder_lib.export(model, images, int8=False)
  return {
    WHOLE: [exported.files[folder_lib.ALL_EXITS]],
    STEPS: exported.steps(folder_lib.FLOAT32),
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Compares both networks, or the one that is named."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--darts', type=paths.expand, help='of quark0/darts')
  parser.add_argument(
    '--msdnet', type=paths.expand, help='of kalviny/MSDNet-PyTorch'
  )
  parser.add_argument(
    '--reference-python',
    type=paths.expand,
    default=sys.executable,
    help='has torch, onnx and onnxscript',
  )
  parser.add_argument('--only', default='', help='cases that hold this text')
  parser.add_argument(
    '--exporter',
    default='',
    choices=('', 'dynamo=True', 'dynamo=False'),
    help="torch's; by default the first, and the other where that fails",
  )
  parser.add_argument('--threads', type=int, nargs='+')
  parser.add_argument('--batch', type=int, nargs='+', default=BATCH_SIZES)
  parser.add_argument(
    '--seconds', type=float, default=30.0, help='of each row of the table'
  )
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--tolerance', type=float, default=1e-4)
  parser.add_argument(
    '--profile', action='store_true', help='tell of kinds of nodes too'
  )
  parser.add_argument('--note', default='', help='what the table says besides')
  parser.add_argument('--json', type=paths.expand)
  args = parser.parse_args(argv)
  machine = latency.machine()
  if not args.threads:
    args.threads = list(dict.fromkeys((1, machine['cores'])))
  command = [args.reference_python, str(_HERE / 'reference_onnx.py')]
  found = {}
  for name in CASES:
    checkout = getattr(args, converted.CASES[name]['source'])
    if checkout and args.only in name:
      found[name] = compare(name, command, checkout, args)
  for row in exported_rows.rows(found):
    print(f'| {" | ".join(row)} |')
  worst = _say(found)
  versions = {entry.pop('torch') for entry in found.values()}
  given = list(sys.argv[1:] if argv is None else argv)
  result = {
    'command': shlex.join(['python', 'benchmarks/exported.py', *given]),
    'date': datetime.date.today().isoformat(),
    'note': args.note,
    'machine': machine,
    'python': platform.python_version(),
    'torch': ', '.join(sorted(versions)),
    'onnxruntime': onnxruntime.__version__,
    'ms_ranas_jax': __version__,
    'seed': args.seed,
    'tolerance': args.tolerance,
    'cases': found,
  }
  if args.json:
    files.write_json(args.json, result)
  return int(worst > args.tolerance)


def _say(cases: Mapping[str, Mapping[str, Any]]) -> float:
  """Prints what the table does not say; returns the largest difference."""
  largest = 0.0
  for name, case in cases.items():
    worst = max(max(row) for row in case['relative_difference'].values())
    largest = max(largest, worst)
    slowest = max(e['ratio'][WHOLE]['medians'] for e in case['entries'])
    why = f' ({case["why"]})' if case['why'] else ''
    print(
      f'{name}: {case["exporter"]}{why}, opset {case["opset"]}; logits differ '
      f'by {worst:.1e}; our file takes {slowest:.2f} times the time at worst, '
      f'{"at most" if slowest <= MOST else "more than"} {MOST}.'
    )
    for entry in case['entries']:
      for form, kinds in entry.get('kinds', {}).items():
        print(
          f'  {entry["threads"]} threads, batch {entry["batch_size"]}, {form}, '
          + ', '.join(f'{kind} {t:.3f}' for kind, t in kinds.items())
        )
  return largest


if __name__ == '__main__':
  sys.exit(main())
