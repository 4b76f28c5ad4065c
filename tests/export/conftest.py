"""Networks to export, small and with random variables."""

import dataclasses

import numpy as np
import pytest

from ms_ranas_jax import families
from ms_ranas_jax.baselines import cells
from ms_ranas_jax.baselines import msdnet
from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.baselines import resnet8
from ms_ranas_jax.model import description as description_lib
from ms_ranas_jax.model import model as model_lib
from ms_ranas_jax.search import random_search
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops

_DIGITS, _CIFAR10, _FASHION = (8, 8, 1), (32, 32, 3), (28, 28, 1)
_IMAGES = 256
# All together they take a minute.
_CASES = (
  'random_cells',
  'digits_msdnet',
  'digits_resnet8',
  *(
    pytest.param(name, marks=pytest.mark.slow)
    for name in (
      'digits_grid',
      'cifar10_grid',
      'cifar10_msdnet',
      'published_cells',
      'imagenet_stem',
    )
  ),
)


def _grid(genotype, shape, **sizes):
  spec = grid.NetworkSpec(
    **{'channels': 4, 'layers': 3, 'scales': 2, 'num_classes': 10, **sizes},
    nodes=len(genotype.normal) // 2,
    image_shape=shape,
  )
  operations = ops.named(genotype.operations(), 'genotype')
  return network_lib.derived_network(spec, genotype, operations)


def _msdnet(shape, **sizes):
  spec = msdnet_plan.MSDNetSpec(
    **{'channels': 4, 'blocks': 3, 'base': 2, 'step': 1, 'scales': 2, **sizes},
    growth=2,
    image_shape=shape,
    num_classes=10,
  )
  return msdnet.build_msdnet(spec)


def _network(case):
  match case:
    case 'digits_grid':
      return _grid(cells.DARTS_V2, _DIGITS)
    case 'digits_msdnet':
      return _msdnet(_DIGITS, prune='min', boosting=0.25)
    case 'digits_resnet8':
      spec = resnet8.ResNet8Spec(4, 'all_but_first', _DIGITS, boosting=0.5)
      return resnet8.build_resnet8(spec)
    case 'cifar10_grid':
      return _grid(cells.DARTS_V2, _CIFAR10, scales=3)
    case 'cifar10_msdnet':
      return _msdnet(_CIFAR10, scales=3, blocks=4)
    case 'random_cells':
      (drawn,) = random_search.random_genotypes(seed=3, count=1, nodes=3)
      return _grid(drawn, _FASHION, boosting=0.5, links='separable')
    case 'published_cells':  # 7x7 operations, odd sizes
      return _grid(cells.AMOEBANET, (13, 10, 1), scales=1)
    case 'imagenet_stem':
      return _msdnet((24, 20, 3), stem='imagenet', blocks=2)
  raise ValueError(case)


@pytest.fixture(scope='session')
def build(fill):
  """(case) -> a model with random variables, as an evaluation leaves it."""

  def make(case):
    network = _network(case)
    shape = network.plan.spec.image_shape
    variables = fill(network, np.zeros((1, *shape), np.float32), train=False)
    channels = shape[2]
    model = model_lib.build_model(
      network, variables, (0.45,) * channels, (0.3, 0.2, 0.25)[:channels]
    )
    exits = len(model.exits)
    evaluation = description_lib.Evaluation(
      dataset='toy',
      test_images={},
      other_images=False,
      accuracies=(0.5,) * exits,
      num_holdout=25,
      temperatures=tuple(5.0 + exit_ for exit_ in range(exits)),
      thresholds={1.0: (0.3,) * (exits - 1) + (0.0,)},
    )
    return dataclasses.replace(
      model,
      description=dataclasses.replace(model.description, evaluation=evaluation),
    )

  return make


@pytest.fixture(scope='session')
def draw():
  """(model, count) -> uint8 images that are not alike."""

  def make(model, count, seed=0):
    rng = np.random.default_rng(seed)
    level = rng.integers(0, 200, (count, 1, 1, 1))
    noise = rng.integers(0, 56, (count, *model.image_shape))
    return (level + noise).astype(np.uint8)

  return make


@pytest.fixture(scope='module', params=_CASES)
def case(request, build, draw):
  """(model, its plain form, images, logits (exits, images, classes))."""
  model = build(request.param)
  form = families.plain_form(
    model.description.network, model.network, model.variables
  )
  images = draw(model, _IMAGES)
  return model, form, images, model.compiled_steps.logits(images, 64)
