"""Classifies pictures: python -m ms_ranas_jax.predict --model=DIR PICTURE...

What takes seconds to import is imported where it is used, so that help comes at
once and an interrupt ends quietly.
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Mapping, Sequence
import json
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

from ms_ranas_jax import errors
from ms_ranas_jax import text_tables
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.errors import tell
from ms_ranas_jax.runtime import environment
from ms_ranas_jax.runtime import interruption

if TYPE_CHECKING:
  from ms_ranas_jax.data import pictures
  from ms_ranas_jax.model import model as model_lib

# Of a time that is measured the middle of so many is taken.
_TIMED_RUNS = 15


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m ms_ranas_jax.predict',
    description='Classifies pictures with a trained network. Pictures are '
    'brought to the colours and the size that it takes; what was done to them '
    'is told on standard error.',
    allow_abbrev=False,
  )
  parser.add_argument(
    '--model',
    required=True,
    metavar='DIR',
    help='a work directory, or a model folder',
  )
  parser.add_argument(
    'pictures',
    nargs='+',
    metavar='PICTURE',
    help='a picture, or a folder of pictures',
  )
  parser.add_argument(
    '--json', action='store_true', help='print a line of JSON per picture'
  )
  last = parser.add_mutually_exclusive_group()
  last.add_argument(
    '--exit', type=int, metavar='K', help='the last exit to take, from 0'
  )
  last.add_argument(
    '--budget_macs',
    type=float,
    metavar='N',
    help='take the last exit that costs no more multiply-adds',
  )
  last.add_argument(
    '--budget_ms',
    type=float,
    metavar='T',
    help='take the last exit that takes no more milliseconds, as measured at '
    'the start on this machine, one picture at a time',
  )
  before = parser.add_mutually_exclusive_group()
  before.add_argument(
    '--confidence',
    type=float,
    metavar='C',
    help='stop at the first exit that is as sure, 0 to 1',
  )
  before.add_argument(
    '--q',
    type=float,
    metavar='Q',
    help='stop by the thresholds that the evaluation solved for this q, from '
    '0.05 (fast) to 1.95 (sure)',
  )
  return parser


def exit_milliseconds(model: model_lib.Model) -> list[float]:
  """Measures how long it takes to come to each exit, one image at a time.

  Args:
    model: the model; what is not compiled yet is compiled first.

  Returns:
    Milliseconds on this machine, the median of several runs for every exit.
  """
  image = _blank(model)
  found = []
  for exit_ in range(len(model.exits)):
    model.predict(image, exit=exit_)
    seconds = []
    for _ in range(_TIMED_RUNS):
      began = time.perf_counter()
      model.predict(image, exit=exit_)
      seconds.append(time.perf_counter() - began)
    found.append(1e3 * statistics.median(seconds))
  return found


def _blank(model: model_lib.Model) -> Any:
  """Returns one image that a model takes."""
  import numpy as np

  return np.zeros((1, *model.image_shape), np.uint8)


def exit_within(milliseconds: Sequence[float], budget: float) -> int:
  """Returns the last exit that takes no longer than a budget.

  Args:
    milliseconds: to come to each exit.
    budget: the same unit.

  Raises:
    UsageError: not even the first exit does.
  """
  within = [k for k, spent in enumerate(milliseconds) if spent <= budget]
  if not within:
    raise UsageError(
      f'--budget_ms={budget:g}, but the first exit takes {milliseconds[0]:.2f} '
      'ms on this machine; give more.'
    )
  return within[-1]


def predict_picture(
  model: model_lib.Model, picture: pictures.Picture, choice: Mapping[str, Any]
) -> dict[str, Any]:
  """Classifies a picture.

  Args:
    model: the model.
    picture: as the model takes it.
    choice: where to stop, arguments of `Model.predict`.

  Returns:
    `file`, `label`, `name`, `confidence`, `exit`, `macs`, and `milliseconds`,
    those of the network and not of reading the file.
  """
  began = time.perf_counter()
  answer = model.predict(picture.pixels[None], **choice)
  spent = time.perf_counter() - began
  return {
    'file': str(picture.path),
    'label': int(answer.labels[0]),
    'name': str(answer.names[0]),
    'confidence': float(answer.confidence[0]),
    'exit': int(answer.exits[0]),
    'macs': int(answer.macs[0]),
    'milliseconds': round(1e3 * spent, 3),
  }


def _run(args: Mapping[str, Any]) -> bool:
  """Prints what there is to say of all pictures; whether all were read."""
  environment.load(environment.JAX)
  environment.check_settings()
  from ms_ranas_jax.data import pictures
  from ms_ranas_jax.model import model as model_lib

  files = pictures.find_files(args['pictures'])
  environment.check_devices()
  model = model_lib.load_model(args['model'])
  choice = {
    name: args[name] for name in ('exit', 'budget_macs', 'confidence', 'q')
  }
  if args['budget_ms'] is not None:
    choice['exit'] = exit_within(exit_milliseconds(model), args['budget_ms'])
  # All that may run is compiled before anything is timed.
  image = _blank(model)
  model.predict(image, **(choice | {'confidence': None, 'q': None}))
  model.predict(image, **choice)
  records, changes, unread = [], collections.Counter(), 0
  for file in files:
    try:
      picture = pictures.read(file, model.image_shape)
    except UsageError as error:
      tell(error)
      unread += 1
      continue
    changes[picture.changes] += 1
    record = predict_picture(model, picture, choice)
    if args['json']:
      print(json.dumps(record, ensure_ascii=False), flush=True)
    records.append(record)
  if records and not args['json']:
    print(text_tables.prediction_table(records))
  for change, count in changes.items():
    if change:
      tell(f'{count} picture{"s" * (count > 1)}: {change}')
  return not unread


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command.

  Args:
    argv: without the name of the program; by default that of the process.

  Returns:
    The exit status: 2 for bad input, also where one of many pictures cannot
    be read; the others are classified all the same.
  """
  args = vars(_parser().parse_args(argv))
  return errors.status_of(lambda: _run(args))


def run() -> NoReturn:
  """The entry point of the command."""
  interruption.end_at_once()
  sys.exit(main())


if __name__ == '__main__':
  run()
