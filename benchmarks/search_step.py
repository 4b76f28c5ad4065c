"""Times a step of the search; --reference DIR compares with quark0/darts.

A step is one update of the alphas and one of the params. Ours includes the
augmentation of the images, the reference's does not.
"""

from __future__ import annotations

import argparse

import comparison


def main() -> None:
  """Parses the arguments and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--layers', type=int, default=5)
  parser.add_argument('--channels', type=int, default=16)
  parser.add_argument('--batch', type=int, default=64)
  parser.add_argument('--nodes', type=int, default=4)
  parser.add_argument('--order', type=int, default=1, choices=(1, 2))
  parser.add_argument(
    '--mixed-derivative',
    default='exact',
    help="of order 2: exact, or difference as the reference's",
  )
  parser.add_argument(
    '--partial-channels', type=int, default=1, help='K of PC-DARTS; of ours'
  )
  parser.add_argument('--scales', type=int, default=1)
  parser.add_argument('--exits', default='last', help='last or all_but_first')
  parser.add_argument('--image', type=int, default=32, help='side, pixels')
  comparison.add_arguments(parser)
  args = parser.parse_args()
  if args.reference and (args.scales, args.exits) != (1, 'last'):
    parser.error('the reference has one scale and one exit')
  names = 'layers channels batch nodes order scales exits image'.split()
  names += ['mixed_derivative', 'partial_channels']
  comparison.compare(
    args, 'search_step', {name: getattr(args, name) for name in names}
  )


if __name__ == '__main__':
  main()
