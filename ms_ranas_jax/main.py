"""The command: python -m ms_ranas_jax.main --config=configs/digits.py."""

from __future__ import annotations

from collections.abc import Sequence
import difflib
import logging
import os
import re
import sys
from typing import NoReturn

from absl import app
from absl import flags
import jax
from ml_collections import config_flags

from ms_ranas_jax import fields
from ms_ranas_jax import settings
from ms_ranas_jax import stages
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import interruption
from ms_ranas_jax.runtime import processes
from ms_ranas_jax.studies import runner

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'The config file, such as configs/digits.py.',
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'The work directory; by default runs/NAME for NAME.py, and '
  'runs/NAME/ARGUMENT for NAME.py:ARGUMENT.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator',
  '',
  "HOST:PORT of the first of several processes; 'auto' on TPU pods and under "
  'Slurm and GKE.',
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', 1, 'How many processes there are.', lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', 0, 'Which of them this is, from 0.', lower_bound=0
)
_REDO = flags.DEFINE_bool(
  'redo',
  False,
  'Do stages again that have kept something of another config; what is there '
  'is kept in the work directory, under aside/.',
)
_BAD_INPUT = 2
_FIELD_FLAG = re.compile(r'--?(?:no)?config\.([^=]*)')


def _check_field_names(argv: Sequence[str]) -> None:
  """Refuses fields that there are not; absl would not say what there is."""
  known = settings.known_fields()
  for name in (m[1] for m in map(_FIELD_FLAG.match, argv) if m):
    if name not in known:
      close = difflib.get_close_matches(name, known, n=1)
      mend = f'use config.{close[0]}, or see' if close else 'see'
      raise UsageError(
        f'config.{name} is not a field; {mend} {fields.PLACE} for the fields '
        'there are.'
      )


def _parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses flags; what is wrong with them is one sentence, not a traceback."""
  try:
    try:
      rest = flags.FLAGS(argv)
    except Exception:
      # A config may have fields of its own, so it is asked first.
      _check_field_names(argv)
      raise
    if len(rest) > 1:
      raise UsageError(f'unknown argument {rest[1]!r}; flags start with --.')
    if not flags.FLAGS['config'].present:
      raise UsageError('give a config: --config=configs/digits.py.')
    # The flag tells of a file that cannot be read when the config is used.
    _CONFIG.value.to_dict()
    return rest
  except UsageError as error:
    _refuse(error)
  except OSError as error:
    _refuse(
      f'--config: {str(error).splitlines()[-1].strip()}; give the path of a '
      'config, such as configs/digits.py.'
    )
  except flags.Error as error:
    _refuse(
      f'{_in_short(error)}; --helpfull lists the flags, {fields.PLACE} the '
      'fields of a config and what they may be.'
    )
  # A config file is code: what it can raise is not a closed list.
  except Exception as error:
    _refuse(
      f'--config: {type(error).__name__}: {_in_short(error)}; give a Python '
      'file whose get_config returns a ConfigDict, such as configs/digits.py.'
    )


def _in_short(error: Exception) -> str:
  """Returns what an error says, without the traceback that it may quote."""
  lines = str(error).strip().splitlines() or [repr(error)]
  return ' '.join(dict.fromkeys([lines[0], lines[-1]]))


def _refuse(reason: object) -> NoReturn:
  print(f'ms_ranas_jax: {" ".join(str(reason).split())}', file=sys.stderr)
  sys.exit(_BAD_INPUT)


def _default_workdir() -> str:
  path = config_flags.get_config_filename(flags.FLAGS['config'])
  file, _, argument = path.partition(':')
  name = os.path.splitext(os.path.basename(file))[0]
  return os.path.join('runs', *filter(None, (name, argument)))


def main(argv: Sequence[str]) -> None:
  """Runs the stages of the config."""
  del argv
  try:
    with interruption.listen() as listener:
      processes.join(
        _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
      )
      config, workdir = _CONFIG.value, _WORKDIR.value or _default_workdir()
      if not config.study.figure:
        stages.run_stages(config, workdir, print, listener, _REDO.value)
      elif _REDO.value:
        raise UsageError(
          'a study has no --redo; name another --workdir, or move the folders '
          'of the runs that are to be done again away.'
        )
      else:
        runner.run_study(config, workdir, print, listener)
  except UsageError as error:
    _refuse(error)
  except OSError as error:
    _refuse(f'{error}; check the path, its permissions and the free space.')
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() == 1:
      raise
    _refuse(
      f'process {jax.process_index()} failed, maybe because another one ended '
      f'({_in_short(error)}); start all of them again, and they go on from the '
      'last checkpoint.'
    )
  except interruption.Interrupted:
    print(
      'ms_ranas_jax: interrupted and saved; the same command goes on.',
      file=sys.stderr,
    )
    sys.exit(interruption.EXIT_CODE)


def run() -> None:
  """The entry point of the command."""
  # Of a work directory in a bucket it tells of every file that is opened.
  logging.getLogger('fsspec').setLevel(logging.WARNING)
  app.run(main, flags_parser=_parse_flags)


if __name__ == '__main__':
  run()
