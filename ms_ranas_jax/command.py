"""Searches, trains, measures and reports anytime image classifiers.

ms-ranas-jax --config=digits [--workdir=DIR] [--config.FIELD=VALUE ...]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import difflib
import logging
import os
import re
import sys
from typing import Any, NoReturn

from absl import app
from absl import flags
from ml_collections import config_flags

from ms_ranas_jax import config_files
from ms_ranas_jax import fields
from ms_ranas_jax.errors import BAD_INPUT
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.errors import tell
from ms_ranas_jax.runtime import environment
from ms_ranas_jax.runtime import interruption

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  f'A config: one of {", ".join(config_files.brought())}, or the path of a '
  'file; NAME:ARGUMENT for one that takes an argument.',
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
_CONFIG_FLAG = re.compile(r'--?(?:config|flagfile)\b')
_FIELD_FLAG = re.compile(r'--?(?:no)?config\.([^=]*)')
_GIVE = 'give the path of a config, or the name of one that is there'


class _ConfigParser(flags.ArgumentParser):
  """Finds a config by its name too, and has another parser load it."""

  def __init__(self, loader: flags.ArgumentParser) -> None:
    self._loader = loader

  def parse(self, argument: str) -> Any:
    """Loads the config of a file, see `config_files.find`."""
    return self._loader.parse(config_files.find(argument))

  def flag_type(self) -> str:
    """Returns what help calls it."""
    return self._loader.flag_type()


class _TupleParser(flags.ArgumentParser):
  """Takes tuples as they are written without quotes, and in Python.

  The parser of ml_collections takes `search,train` for one name, and adds a
  flag that is given twice up, as no other flag does.
  """

  def parse(self, argument: str | tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the tuple that a text stands for, see `fields.parse_tuple`."""
    # The default of the flag is a tuple already.
    if isinstance(argument, str):
      return fields.parse_tuple(argument)
    return tuple(argument)

  def flag_type(self) -> str:
    """Returns what help calls it."""
    return 'tuple'


def _check_field_names(argv: Sequence[str]) -> None:
  """Refuses fields that there are not; absl would not say what there is."""
  from ms_ranas_jax import settings

  known = settings.known_fields()
  for name in (m[1] for m in map(_FIELD_FLAG.match, argv) if m):
    if name not in known:
      close = difflib.get_close_matches(name, known, n=1)
      mend = f'use config.{close[0]}, or see' if close else 'see'
      raise UsageError(
        f'config.{name} is not a field; {mend} {fields.PLACE} for the fields '
        'there are.'
      )


def _take_one_entry_alone(given: Mapping[str, Any]) -> None:
  """Makes tuples of entries in fields that may be something else as well.

  Args:
    given: name -> value, the fields that the command line has set.
  """
  from ms_ranas_jax import settings

  known = settings.fields_of(_CONFIG.value.to_dict())
  for name, value in given.items():
    rule = known[name].field.rule if name in known else None
    if rule and rule.mixed and not rule.holds(value) and rule.holds((value,)):
      _CONFIG.value.update_from_flattened_dict({name: (value,)})


def _parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses flags; what is wrong with them is one sentence, not a traceback."""
  config = flags.FLAGS['config']
  config.parser = _ConfigParser(config.parser)
  config_flags.register_flag_parser_for_type(tuple, _TupleParser())
  try:
    # A config imports JAX, and --help alone does not need it.
    if any(map(_CONFIG_FLAG.match, argv)):
      environment.load(environment.JAX)
    try:
      rest = flags.FLAGS(argv)
    except Exception:
      # A config may have fields of its own, so it is asked first.
      _check_field_names(argv)
      raise
    if len(rest) > 1:
      raise UsageError(f'unknown argument {rest[1]!r}; flags start with --.')
    if not config.present:
      raise UsageError('give a config: --config=digits, or the path of a file.')
    # The flag tells of a file that cannot be read when the config is used.
    _CONFIG.value.to_dict()
    _take_one_entry_alone(config_flags.get_override_values(config))
    return rest
  except UsageError as error:
    _refuse(error)
  except OSError as error:
    names = ', '.join(config_files.brought())
    _refuse(
      f'--config: {str(error).splitlines()[-1].strip()}; {_GIVE} ({names}).'
    )
  except flags.Error as error:
    _refuse(
      f'{_in_short(error)}; --helpfull lists the flags, {fields.PLACE} the '
      'fields of a config and what they may be.'
    )
  # A config file is code: what it can raise is not a closed list.
  except Exception as error:
    example = config_files.find('digits')
    _refuse(
      f'--config: {type(error).__name__}: {_in_short(error)}; give a Python '
      f'file whose get_config returns a ConfigDict, such as {example}.'
    )


def _in_short(error: Exception) -> str:
  """Returns what an error says, without the traceback that it may quote."""
  lines = str(error).strip().splitlines() or [repr(error)]
  return ' '.join(dict.fromkeys([lines[0], lines[-1]]))


def _refuse(reason: object) -> NoReturn:
  tell(reason)
  sys.exit(BAD_INPUT)


def _default_workdir() -> str:
  path = config_flags.get_config_filename(flags.FLAGS['config'])
  file, _, argument = path.partition(':')
  name = os.path.splitext(os.path.basename(file))[0]
  return os.path.join('runs', *filter(None, (name, argument)))


def main(argv: Sequence[str]) -> None:
  """Runs the stages of the config."""
  del argv
  # Seconds of imports, for which help and bad flags need not wait.
  import jax

  from ms_ranas_jax import stages
  from ms_ranas_jax.runtime import processes

  try:
    environment.check_settings(training=True)
    with interruption.listen() as listener:
      processes.join(
        _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, tell
      )
      environment.check_devices()
      config, workdir = _CONFIG.value, _WORKDIR.value or _default_workdir()
      if not config.study.figure:
        stages.run_stages(config, workdir, print, listener, _REDO.value)
      elif _REDO.value:
        raise UsageError(
          'a study has no --redo; name another --workdir, or move the folders '
          'of the runs that are to be done again away.'
        )
      else:
        environment.load(environment.MATPLOTLIB)
        from ms_ranas_jax.studies import runner

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
    tell('interrupted and saved; the same command goes on.')
    sys.exit(interruption.EXIT_CODE)


def run() -> None:
  """Parses the flags of the process and runs what they say."""
  # Of a work directory in a bucket it tells of every file that is opened.
  logging.getLogger('fsspec').setLevel(logging.WARNING)
  # Help shows this text and these flags, whatever module was started.
  sys.modules['__main__'].__doc__ = __doc__
  for flag in flags.FLAGS.get_flags_for_module(__name__):
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  app.run(main, flags_parser=_parse_flags)
