"""What experiments with searches share: images, sizes, and a study of runs.

Started several times at once in the same work directory, the processes share
the runs of a study; started again, an experiment goes on. Nothing is chosen on
test images: they only judge.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
import datetime
import os
import platform
import sys
from typing import Any

from ms_ranas_jax import default_config
from ms_ranas_jax import paths
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import interruption
from ms_ranas_jax.runtime import metrics
from ms_ranas_jax.studies import entries
from ms_ranas_jax.studies import plan as plan_lib
from ms_ranas_jax.studies import runner
from ms_ranas_jax.version import __version__

Config = Any


def parser(description: str | None, workdir: str) -> argparse.ArgumentParser:
  """Returns a parser of what every experiment can be told.

  Args:
    description: what the experiment is for.
    workdir: the work directory by default.
  """
  found = argparse.ArgumentParser(description=description)
  found.add_argument('--dataset', default='cifar10', help='or digits')
  found.add_argument(
    '--dataset-dir', type=paths.expand, default='', help='folder of the images'
  )
  found.add_argument('--workdir', type=paths.expand, default=workdir)
  found.add_argument('--images', type=int, default=12000, help='for training')
  found.add_argument('--search-epochs', type=int, default=6)
  found.add_argument('--train-epochs', type=int, default=4)
  found.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  return found


def build_config(
  args: argparse.Namespace, method: str = 'bilevel', **network: Any
) -> Config:
  """Returns the config of searches and trainings on two CPU cores.

  Args:
    args: see `parser`.
    method: of the search.
    **network: fields of the network, both of the search and of the training.
  """
  config = default_config.get_config(method=method)
  config.stages = ('search', 'train', 'evaluate')
  config.seed = args.seeds[0]
  config.dataset.update(
    name=args.dataset, dir=args.dataset_dir, train_images=args.images
  )
  if args.dataset != 'digits':
    config.dataset.update(crop_padding=4, flip=True)
  for section in (config.search, config.train):
    section.network.update(network)
  config.search.epochs = args.search_epochs
  if method == 'bilevel':
    # The paper's 3e-4 is for fifty epochs; a few need larger steps.
    config.search.alphas_learning_rate = 3e-3
  config.train.epochs = args.train_epochs
  config.train.learning_rate = 0.05
  config.study.seeds = tuple(args.seeds)
  return config


def run_study(
  config: Config,
  workdir: str,
  figure: entries.Figure,
  listener: interruption.Interruption,
) -> tuple[plan_lib.Plan, dict[str, Any]]:
  """Runs a study to its end.

  Args:
    config: its whole config.
    workdir: the work directory.
    figure: what it runs.
    listener: may ask to stop.

  Returns:
    Its jobs, and its table (`studies.table.build_table`).
  """
  runner.run_study(config, workdir, print, listener, figure=figure)
  return (
    plan_lib.build_plan(config, figure),
    files.read_json(os.path.join(workdir, 'study/table.json')),
  )


def run_training(
  config: Config,
  name: str,
  changes: Mapping[str, Any],
  workdir: str,
  listener: interruption.Interruption,
) -> str:
  """Trains and judges one network; an interrupted run goes on.

  Args:
    config: of the training, with one seed for it.
    name: of the training.
    changes: fields of the config that make it another one.
    workdir: for it alone.
    listener: may ask to stop.

  Returns:
    Its own work directory.
  """
  (seed,) = config.study.seeds
  entry = entries.Entry(name, name, changes=changes)
  figure = entries.Figure(name, 'exits', (entry,))
  plan, _ = run_study(config, workdir, figure, listener)
  return plan.trainings[name, seed].workdir(workdir)


def accuracies(folder: str) -> dict[str, list[float]]:
  """Returns what a finished training is judged by, for every exit.

  Args:
    folder: its work directory.

  Returns:
    `held_out`, empty where nothing was, `test`, and `macs`.
  """
  lines = metrics.read_metrics(os.path.join(folder, 'train/metrics.jsonl'))
  judged = files.read_json(os.path.join(folder, 'evaluate/anytime.json'))
  held_out = lines[-1].get('holdout_accuracy', [])
  return {
    'held_out': [round(x, 6) for x in held_out],
    'test': [exit_['accuracy'] for exit_ in judged['exits']],
    'macs': [exit_['macs'] for exit_ in judged['exits']],
  }


def read_result(path: str, settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a result that was measured in the same way, {} where there is none.

  Args:
    path: of the JSON file.
    settings: of what is measured, entries of the file.

  Raises:
    UsageError: what is in the file was measured in another way.
  """
  if not files.is_file(path):
    return {}
  result = files.read_json(path)
  for name, value in settings.items():
    if result[name] != value:
      raise UsageError(
        f'{path} is of {name} = {result[name]}, and not {value}; have the '
        'result written elsewhere.'
      )
  return result


def head(command: str) -> dict[str, Any]:
  """Returns what every result says of how it was measured.

  Args:
    command: that measures it again.
  """
  return {
    'command': command,
    'date': datetime.date.today().isoformat(),
    'machine': f'{os.cpu_count()} cores, {platform.machine()}',
    'ms_ranas_jax': __version__,
  }


def run(main: Callable[[interruption.Interruption], None]) -> None:
  """Runs an experiment as a program.

  Bad input ends it with one sentence, and a signal once all is saved.

  Args:
    main: the experiment, given what may ask it to stop.
  """
  try:
    with interruption.listen() as listener:
      main(listener)
  except UsageError as error:
    sys.exit(str(error))
  except interruption.Interrupted:
    print('interrupted and saved; the same command goes on.', file=sys.stderr)
    sys.exit(interruption.EXIT_CODE)
