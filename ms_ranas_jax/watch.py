"""Shows a run that is going on: python -m ms_ranas_jax.watch WORKDIR.

It writes `report.html` from what the run has left so far, in a process of its
own: the run is neither asked nor disturbed, and its lock is not taken.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import os
import sys
import time
from typing import Any, NoReturn

from etils import epath

from ms_ranas_jax import errors
from ms_ranas_jax import paths
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.errors import tell
from ms_ranas_jax.runtime import environment
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import interruption

_POLL_SECONDS = 5.0
_RELOAD_SECONDS = 15
# What a stage leaves when it is through, besides what `begun.json` says.
_ANYTIME = 'evaluate/anytime.json'
_METRICS = 'metrics.jsonl'


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m ms_ranas_jax.watch',
    description='Writes the report of a run that is going on, and says how far '
    'it is.',
    allow_abbrev=False,
  )
  parser.add_argument(
    'workdir', metavar='WORKDIR', help='the work directory of the run'
  )
  parser.add_argument(
    '--follow',
    action='store_true',
    help='write it again after every epoch, until the run is through; the page '
    'loads itself again',
  )
  return parser


def progress(workdir: str, config: Any) -> tuple[list[str], bool]:
  """Returns how far a run is, in sentences, and whether it is through.

  Args:
    workdir: the work directory.
    config: the typed config of the run.
  """
  from ms_ranas_jax import same_run
  from ms_ranas_jax.runtime import metrics

  said, through = [], True
  for stage, of_stage in ('search', config.search), ('train', config.train):
    if stage not in config.stages:
      continue
    if same_run.is_finished(workdir, stage):
      said.append(f'The stage {stage} is through.')
      continue
    through = False
    path = os.path.join(workdir, stage, _METRICS)
    records = metrics.read_metrics(path) if files.is_file(path) else []
    if not records:
      said.append(f'The stage {stage} has no line of metrics yet.')
      break
    last = records[-1]
    said.append(
      f'The stage {stage} is in epoch {last["epoch"] + 1} of '
      f'{of_stage.epochs}, at step {last["step"]:,}.'
    )
    break
  if through and 'evaluate' in config.stages and not _is_judged(workdir):
    through = False
    said.append('The stage evaluate is not through.')
  return said, through


def _is_judged(workdir: str) -> bool:
  """Returns whether there is an evaluation that is newer than the params."""
  judged = epath.Path(workdir) / _ANYTIME
  params = epath.Path(workdir) / 'model' / 'params.safetensors'
  if not judged.exists():
    return False
  return not params.exists() or judged.stat().mtime >= params.stat().mtime


def write_report(workdir: str, follow: bool = False) -> tuple[str, bool]:
  """Writes the report of a work directory as it is now.

  Args:
    workdir: the work directory.
    follow: whether the page is to load itself again while the run goes on.

  Returns:
    The path of the page, and whether the run is through.

  Raises:
    UsageError: there is no run, or a file of it is broken.
  """
  from ms_ranas_jax import same_run
  from ms_ranas_jax import settings
  from ms_ranas_jax import stages
  from ms_ranas_jax.report import inputs
  from ms_ranas_jax.runtime.interruption import Interruption
  from ms_ranas_jax.search import stage as search_stage

  path = os.path.join(workdir, same_run.CONFIG_FILE)
  if not files.is_file(path):
    raise UsageError(
      f'there is no {same_run.CONFIG_FILE} in {workdir}; name the work '
      'directory of a run that has begun.'
    )
  config = settings.parse(files.read_json(path))
  said, through = progress(workdir, config)
  run = stages.Run(config, workdir, tell, Interruption())
  # Of a run that goes on, what it was given is known without its images.
  summary = inputs.read_summary(workdir)
  plan = None
  if run.family.takes_genotype and 'search' in config.stages and summary:
    shape = tuple(summary['image_shape'])
    plan = search_stage.build_network(
      config, shape, len(summary['classes'])
    ).plan
  # Before a training has begun, its network may need the images to be known.
  network = None if run.description() is None else run.train_network()
  written = stages.write_page(
    run,
    network,
    plan,
    progress=() if through else said,
    reload_seconds=_RELOAD_SECONDS if follow and not through else 0,
  )
  return written, through


def _state(workdir: str) -> tuple[Any, ...]:
  """Returns what changes with every epoch and every stage."""
  found: list[Any] = []
  for name in ('search', 'train'):
    folder = epath.Path(workdir) / name
    saved = folder / 'checkpoints'
    kept = saved.iterdir() if saved.exists() else ()
    found.append(sorted(path.name for path in kept))
  # Not by their times, which may be of whole seconds.
  for name in ('begun.json', 'model/model.json', _ANYTIME):
    path = epath.Path(workdir) / name
    found.append(path.read_bytes() if path.exists() else b'')
  return tuple(found)


def _run(workdir: str, follow: bool) -> bool:
  """Writes the report, once or until the run is through."""
  environment.load(environment.JAX, environment.MATPLOTLIB)
  while True:
    state = _state(workdir)
    path, through = write_report(workdir, follow)
    tell(path)
    if through or not follow:
      return True
    while _state(workdir) == state:
      time.sleep(_POLL_SECONDS)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command.

  Args:
    argv: without the name of the program; by default that of the process.

  Returns:
    The exit status: 2 for bad input.
  """
  args = _parser().parse_args(argv)
  return errors.status_of(lambda: _run(paths.expand(args.workdir), args.follow))


def run() -> NoReturn:
  """The entry point of the command."""
  interruption.end_at_once()
  sys.exit(main())


if __name__ == '__main__':
  run()
