"""Takes weights of others: python -m ms_ranas_jax.convert --source=darts ...

What takes seconds to import is imported where it is used, so that help comes at
once and an interrupt ends quietly.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import sys
import types
from typing import Any, NoReturn

from ms_ranas_jax import errors
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import environment
from ms_ranas_jax.runtime import interruption

# What messages of the plans call the sizes, which are flags here.
_SIZES = 'sizes'


@dataclasses.dataclass(frozen=True)
class Images:
  """What the code of others trained on, where nothing else is said.

  Attributes:
    mean: per channel, of images / 255.
    std: the same.
    side: pixels of both sides.
    classes: their number or names.
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]
  side: int
  classes: int | Sequence[str]


@dataclasses.dataclass(frozen=True)
class Source:
  """Code of others whose weights can be taken.

  Attributes:
    sizes: the flags that say which network it is -> their defaults; None has to
      be given.
    images: (sizes) -> what it trained on.
    build: (sizes, image shape, number of classes) -> the network.
    weights: () -> the module that knows its tensors: `variables`, `UNUSED`.
  """

  sizes: Mapping[str, Any]
  images: Callable[[Mapping[str, Any]], Images]
  build: Callable[[Mapping[str, Any], tuple[int, int, int], int], Any]
  weights: Callable[[], types.ModuleType]


def _cifar10_classes() -> tuple[str, ...]:
  from ms_ranas_jax.data import cifar_files

  return cifar_files.CLASS_NAMES['cifar10']


def _darts_images(sizes: Mapping[str, Any]) -> Images:
  del sizes
  return Images(
    (0.49139968, 0.48215827, 0.44653124),
    (0.24703233, 0.24348505, 0.26158768),
    32,
    _cifar10_classes(),
  )


def _build_darts(
  sizes: Mapping[str, Any], image_shape: tuple[int, int, int], classes: int
) -> Any:
  from ms_ranas_jax.baselines import cells
  from ms_ranas_jax.space import grid
  from ms_ranas_jax.space import network
  from ms_ranas_jax.space import operations

  known = operations.OPERATIONS.keys() - {'none'}
  genotype = cells.load_genotype(sizes['genotype'], known)
  spec = grid.NetworkSpec(
    channels=sizes['channels'],
    layers=sizes['layers'],
    nodes=genotype.nodes,
    exits=grid.LAST,
    image_shape=image_shape,
    num_classes=classes,
  )
  return network.derived_network(spec, genotype, field=_SIZES)


def _darts_weights() -> types.ModuleType:
  from ms_ranas_jax.baselines import darts_weights

  return darts_weights


def _msdnet_images(sizes: Mapping[str, Any]) -> Images:
  if sizes['stem'] == 'imagenet':
    return Images((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224, 1000)
  return Images(
    (0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616), 32, _cifar10_classes()
  )


def _build_msdnet(
  sizes: Mapping[str, Any], image_shape: tuple[int, int, int], classes: int
) -> Any:
  from ms_ranas_jax.baselines import msdnet
  from ms_ranas_jax.baselines import msdnet_plan

  spec = msdnet_plan.MSDNetSpec(
    **sizes, image_shape=image_shape, num_classes=classes
  )
  return msdnet.build_msdnet(spec, field=_SIZES)


def _msdnet_weights() -> types.ModuleType:
  from ms_ranas_jax.baselines import msdnet_weights

  return msdnet_weights


SOURCES: Mapping[str, Source] = types.MappingProxyType(
  {
    'darts': Source(
      sizes={'genotype': 'DARTS_V2', 'layers': 20, 'channels': 36},
      images=_darts_images,
      build=_build_darts,
      weights=_darts_weights,
    ),
    'msdnet': Source(
      sizes={
        'channels': None,
        'blocks': None,
        'base': None,
        'step': None,
        'step_mode': 'even',
        'growth': 6,
        'scales': 3,
        'growth_factors': (),
        'bottleneck_factors': (),
        'prune': 'max',
        'stem': 'cifar',
      },
      images=_msdnet_images,
      build=_build_msdnet,
      weights=_msdnet_weights,
    ),
  }
)


def _several(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
  """Returns what parses entries with commas between them."""

  def parse(text: str) -> tuple[Any, ...]:
    try:
      return tuple(kind(entry.strip()) for entry in text.split(','))
    except ValueError as error:
      raise argparse.ArgumentTypeError(
        f'{text!r}: give numbers with commas between them'
      ) from error

  return parse


def _classes(text: str) -> int | tuple[str, ...]:
  return int(text) if text.isdecimal() else _several(str)(text)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m ms_ranas_jax.convert',
    description='Makes a model folder of weights that the code of others has '
    'trained: NetworkCIFAR of quark0/darts, or MSDNet of '
    'kalviny/MSDNet-PyTorch. Tensors of the file that are not used are listed '
    'on standard output.',
    allow_abbrev=False,
  )
  parser.add_argument('--source', required=True, choices=tuple(SOURCES))
  parser.add_argument(
    '--weights',
    required=True,
    metavar='FILE',
    help='the state dict, .safetensors or .npz',
  )
  parser.add_argument(
    '--output', required=True, metavar='DIR', help='the model folder to write'
  )
  parser.add_argument(
    '--classes',
    type=_classes,
    metavar='N|A,B,...',
    help='how many there are, or their names; by default those of CIFAR-10, or '
    "1000 of --stem=imagenet's",
  )
  for name, what in ('mean', 'mean'), ('std', 'standard deviation'):
    parser.add_argument(
      f'--{name}',
      type=_several(float),
      metavar='R,G,B',
      help=f'{what} of pixels / 255 that it was trained with; by default those '
      'of the code for CIFAR-10, or for ImageNet',
    )
  parser.add_argument(
    '--image_size',
    type=int,
    metavar='N',
    help='pixels of both sides; by default 32, or 224',
  )
  sizes = parser.add_argument_group('sizes')
  sizes.add_argument(
    '--channels', type=int, help='init_channels, by default 36; nChannels'
  )
  darts = parser.add_argument_group('sizes of --source=darts')
  darts.add_argument(
    '--genotype',
    metavar='NAME|FILE',
    help='a published one, by default DARTS_V2, or a file',
  )
  darts.add_argument('--layers', type=int, help='by default 20')
  msdnet = parser.add_argument_group('sizes of --source=msdnet')
  msdnet.add_argument('--blocks', type=int, help='nBlocks')
  msdnet.add_argument('--base', type=int)
  msdnet.add_argument('--step', type=int)
  msdnet.add_argument(
    '--step_mode',
    choices=('even', 'lin_grow'),
    help='stepmode, by default even',
  )
  msdnet.add_argument('--growth', type=int, help='growthRate, by default 6')
  msdnet.add_argument('--scales', type=int, help='nScales, by default 3')
  for name, theirs, default in (
    ('growth_factors', 'grFactor', '1,2,4,...'),
    ('bottleneck_factors', 'bnFactor', 'the growth factors'),
  ):
    msdnet.add_argument(
      f'--{name}',
      type=_several(int),
      metavar='A,B,...',
      help=f'{theirs}, one per scale; by default {default}',
    )
  msdnet.add_argument('--prune', choices=('max', 'min'), help='by default max')
  msdnet.add_argument(
    '--stem', choices=('cifar', 'imagenet'), help='by default cifar'
  )
  return parser


def _sizes(source: str, args: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the sizes of a network, given or by default.

  Raises:
    UsageError: one is missing, or is none of this source.
  """
  known = SOURCES[source].sizes
  for other in SOURCES.values():
    for name in other.sizes:
      if name not in known and args[name] is not None:
        raise UsageError(
          f'--{name} is no size of --source={source}; leave it out.'
        )
  found = {
    name: default if args[name] is None else args[name]
    for name, default in known.items()
  }
  missing = [f'--{name}' for name, value in found.items() if value is None]
  if missing:
    raise UsageError(
      f'--source={source} needs {", ".join(missing)}; give what the network '
      'was trained with.'
    )
  return found


def _build(
  source: Source, sizes: Mapping[str, Any], side: int, classes: int
) -> Any:
  """Returns the network of some sizes; messages name the flags."""
  try:
    return source.build(sizes, (side, side, 3), classes)
  except UsageError as error:
    said = str(error).replace(f'{_SIZES}.num_classes', '--classes')
    raise UsageError(said.replace(f'{_SIZES}.', '--')) from error


def _run(args: Mapping[str, Any]) -> bool:
  """Writes the model folder, and says what was not used."""
  environment.load(environment.JAX)
  environment.check_settings()
  from ms_ranas_jax import paths
  from ms_ranas_jax.model import model as model_lib
  from ms_ranas_jax.model import state_dict

  source, sizes = SOURCES[args['source']], _sizes(args['source'], args)
  images = source.images(sizes)
  given = {
    name: getattr(images, name) if args[name] is None else args[name]
    for name in ('mean', 'std', 'classes')
  }
  classes = given['classes']
  names = () if isinstance(classes, int) else classes
  side = images.side if args['image_size'] is None else args['image_size']
  file = paths.expand(args['weights'])
  arrays = state_dict.read(file)
  environment.check_devices()
  network = _build(source, sizes, side, len(names) or classes)
  flags = 'the ' + ', '.join(f'--{name}' for name in sizes)
  weights = source.weights()
  try:
    variables = weights.variables(network, arrays, flags)
  except UsageError as error:
    raise UsageError(f'{file}: {error}') from error
  model = model_lib.build_model(
    network, variables, given['mean'], given['std'], names
  )
  model.save(args['output'])
  unused = [name for name in arrays if weights.UNUSED.fullmatch(name)]
  for name in unused:
    print(f'not used: {name}')
  print(
    f'{paths.expand(args["output"])}: {len(arrays) - len(unused)} tensors of '
    f'{file}, {model.exits[-1].total_params:,} params, {len(model.exits)} '
    f'exit{"s" * (len(model.exits) > 1)}'
  )
  return True


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command.

  Args:
    argv: without the name of the program; by default that of the process.

  Returns:
    The exit status: 2 for bad input.
  """
  args = vars(_parser().parse_args(argv))
  return errors.status_of(lambda: _run(args))


def run() -> NoReturn:
  """The entry point of the command."""
  interruption.end_at_once()
  sys.exit(main())


if __name__ == '__main__':
  run()
