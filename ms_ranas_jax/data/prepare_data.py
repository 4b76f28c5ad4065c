"""Downloads CIFAR and prepares it for tensorflow-datasets.

    python -m ms_ranas_jax.data.prepare_data --dataset=cifar10

No TensorFlow is needed. Where there is no network, download the archive
elsewhere and give it as --archive.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import pathlib
import sys

from ms_ranas_jax import errors
from ms_ranas_jax.data import cifar_files
from ms_ranas_jax.data import tfds_prepare
from ms_ranas_jax.data import tfds_source


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command.

  Args:
    argv: the arguments; None takes those of the process.

  Returns:
    The exit status: 0, or 2 where the input was refused.
  """
  parser = argparse.ArgumentParser(
    prog='python -m ms_ranas_jax.data.prepare_data',
    description='Downloads a dataset and prepares it as array_record.',
  )
  parser.add_argument(
    '--dataset', required=True, choices=tuple(cifar_files.NUM_CLASSES)
  )
  parser.add_argument(
    '--dir',
    type=pathlib.Path,
    help='where to prepare it; TFDS_DATA_DIR or ~/tensorflow_datasets if '
    'absent. Give the same folder as dataset.dir.',
  )
  parser.add_argument(
    '--archive',
    type=pathlib.Path,
    help='a copy of the published binary .tar.gz, instead of a download',
  )
  args = parser.parse_args(argv)
  data_dir = args.dir or tfds_source.default_data_dir()
  try:
    folder = tfds_prepare.prepare(
      args.dataset, data_dir.expanduser(), args.archive
    )
  except errors.UsageError as error:
    print(error, file=sys.stderr)
    return 2
  print(f'{args.dataset} is ready in {folder}.')
  return 0


if __name__ == '__main__':
  sys.exit(main())
