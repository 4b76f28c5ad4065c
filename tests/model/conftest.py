"""A small model of each family, with random variables."""

import numpy as np
import pytest

from ms_ranas_jax.baselines import msdnet
from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.model import model as model_lib
from ms_ranas_jax.space import genotype
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops

SHAPE = (8, 8, 3)
NAMES = ('cat', 'dog', 'owl', 'bee')
EDGES = (('sep_conv_3x3', 0), ('skip_connect', 1))
CELLS = genotype.Genotype(EDGES, (2,), EDGES, (2,))


def _network(family):
  if family == 'grid':
    return network_lib.derived_network(
      grid.NetworkSpec(
        channels=4,
        layers=4,
        nodes=1,
        scales=2,
        image_shape=SHAPE,
        num_classes=len(NAMES),
      ),
      CELLS,
      ops.named(CELLS.operations(), 'genotype'),
      lowering='taps',
    )
  return msdnet.build_msdnet(
    msdnet_plan.MSDNetSpec(
      channels=4,
      blocks=3,
      base=2,
      step=1,
      scales=2,
      growth=2,
      image_shape=SHAPE,
      num_classes=len(NAMES),
    ),
    lowering='taps',
  )


@pytest.fixture(scope='session')
def build(fill):
  """(family, seed) -> a model with random variables."""

  def make(family, seed=0):
    network = _network(family)
    variables = fill(
      network, np.zeros((1, *SHAPE), np.float32), train=False, seed=seed
    )
    return model_lib.build_model(
      network, variables, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), NAMES
    )

  return make


@pytest.fixture(scope='session', params=['grid', 'msdnet'])
def model(request, build):
  """A model of each family."""
  return build(request.param)


@pytest.fixture(scope='session')
def images():
  """Images that fit it."""
  return np.random.default_rng(3).integers(0, 256, (20, *SHAPE), np.uint8)
