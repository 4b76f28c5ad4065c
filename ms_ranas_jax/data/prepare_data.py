"""Downloads CIFAR and prepares it for tensorflow-datasets.

    python -m ms_ranas_jax.data.prepare_data --dataset=cifar10

No TensorFlow is needed. Where there is no network, download the archive
elsewhere and give it as --archive. What takes time to import is imported where
it is used, so that an interrupt ends quietly.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import pathlib
import signal
import sys
from typing import NoReturn

from ms_ranas_jax import errors
from ms_ranas_jax import paths
from ms_ranas_jax.runtime import interruption


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command.

  Args:
    argv: the arguments; None takes those of the process.

  Returns:
    The exit status: 0, or 2 where the input was refused.
  """
  from ms_ranas_jax.data import cifar_files
  from ms_ranas_jax.data import tfds_prepare
  from ms_ranas_jax.data import tfds_source

  parser = argparse.ArgumentParser(
    prog='python -m ms_ranas_jax.data.prepare_data',
    description='Downloads a dataset and prepares it as array_record.',
  )
  parser.add_argument(
    '--dataset', required=True, choices=tuple(cifar_files.NUM_CLASSES)
  )
  parser.add_argument(
    '--dir',
    help='where to prepare it; TFDS_DATA_DIR or ~/tensorflow_datasets if '
    'absent. Give the same folder as dataset.dir.',
  )
  parser.add_argument(
    '--archive',
    help='a copy of the published binary .tar.gz, instead of a download',
  )
  args = parser.parse_args(argv)
  try:
    folder = tfds_prepare.prepare(
      args.dataset,
      pathlib.Path(paths.expand(args.dir or tfds_source.default_data_dir())),
      pathlib.Path(paths.expand(args.archive)) if args.archive else None,
    )
  except errors.UsageError as error:
    errors.tell(error)
    return 2
  print(f'{args.dataset} is ready in {folder}.')
  return 0


def run() -> NoReturn:
  """The entry point of the command."""
  interruption.end_at_once()
  # What `main` needs, while there is nothing to clear away.
  from ms_ranas_jax.data import tfds_prepare  # noqa: F401

  # What is half prepared is cleared away, which takes an exception.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    sys.exit(main())
  except KeyboardInterrupt:
    print('\nms_ranas_jax: interrupted; nothing is kept.', file=sys.stderr)
    sys.exit(interruption.INTERRUPT_CODE)


if __name__ == '__main__':
  run()
