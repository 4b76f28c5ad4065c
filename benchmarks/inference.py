"""Times inference, exit by exit; --reference DIR compares with public code.

quark0/darts has the last exit only, and MSDNet-PyTorch computes all of them:
both are compared at the last.
"""

from __future__ import annotations

import argparse

import comparison

from ms_ranas_jax.runtime import files


def main() -> None:
  """Parses the arguments and prints a table per batch size and exit."""
  parser = argparse.ArgumentParser(description=__doc__)
  comparison.add_network_arguments(parser, batches=(1, 64))
  comparison.add_arguments(parser)
  args = parser.parse_args()
  network = {**comparison.network_case(parser, args), 'drop_path': 0.0}
  path, args.json = args.json, None
  reference, results = args.reference, []
  for batch in args.batch:

    def time_exit(exit_: int, batch: int = batch) -> int:
      result = comparison.compare(
        args, 'inference', {**network, 'batch': batch, 'exit': exit_}
      )
      results.append(result)
      return result['ours']['exits']

    print(f'batch {batch}, last exit')
    args.reference = reference
    exits = time_exit(-1)
    args.reference = None
    for exit_ in range(exits - 1):
      print(f'batch {batch}, exit {exit_}')
      time_exit(exit_)
  if path:
    files.write_json(path, results)


if __name__ == '__main__':
  main()
