"""The command: python -m ms_ranas_jax.main --config=configs/digits.py."""

from __future__ import annotations

from collections.abc import Sequence
import os
import sys

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from ms_ranas_jax import stages
from ms_ranas_jax.errors import UsageError

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'The config file, such as configs/digits.py.',
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'The work directory; by default runs/NAME for NAME.py.'
)
_BAD_INPUT = 2


def _parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses flags; what is wrong with them is one sentence, not a traceback."""
  try:
    rest = flags.FLAGS(argv)
    if len(rest) > 1:
      raise UsageError(f'unknown argument {rest[1]!r}; flags start with --.')
    if _CONFIG.value is None:
      raise UsageError('give a config: --config=configs/digits.py.')
    return rest
  except flags.Error as error:
    _refuse(error)
  except (UsageError, AttributeError, KeyError, TypeError, ValueError) as error:
    _refuse(error)
  except (OSError, ImportError, SyntaxError) as error:
    _refuse(f'--config: the file cannot be read: {error}')


def _refuse(reason: object) -> None:
  text = ' '.join(str(reason).strip('\'"').split())
  print(f'ms_ranas_jax: {text}', file=sys.stderr)
  sys.exit(_BAD_INPUT)


def _default_workdir() -> str:
  path = config_flags.get_config_filename(flags.FLAGS['config'])
  return os.path.join('runs', os.path.splitext(os.path.basename(path))[0])


def main(argv: Sequence[str]) -> None:
  """Runs the stages of the config."""
  del argv
  logging.set_verbosity(logging.WARNING)
  try:
    stages.run_stages(
      _CONFIG.value, _WORKDIR.value or _default_workdir(), print
    )
  except UsageError as error:
    _refuse(error)


def run() -> None:
  """The entry point of the command."""
  app.run(main, flags_parser=_parse_flags)


if __name__ == '__main__':
  run()
