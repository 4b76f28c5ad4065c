"""Times a step of the training; --reference DIR compares with public code."""

from __future__ import annotations

import argparse

import comparison


def main() -> None:
  """Parses the arguments and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  comparison.add_network_arguments(parser)
  parser.add_argument('--drop-path', type=float, default=0.0)
  comparison.add_arguments(parser)
  args = parser.parse_args()
  comparison.compare(
    args,
    'train_step',
    {
      **comparison.network_case(parser, args),
      'batch': args.batch,
      'drop_path': args.drop_path,
    },
  )


if __name__ == '__main__':
  main()
