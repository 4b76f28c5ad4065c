"""DARTS' names; `tests/convert_test.py` has answers of the public code."""

import dataclasses

import numpy as np
import pytest

from ms_ranas_jax.baselines import cells
from ms_ranas_jax.baselines import darts_weights
from ms_ranas_jax.baselines import torch_places
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import genotype as genotype_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops

_SPEC = grid.NetworkSpec(channels=2, layers=4, nodes=4, exits=grid.LAST)


def _network(genotype, **sizes):
  spec = dataclasses.replace(_SPEC, nodes=genotype.nodes, **sizes)
  return network_lib.derived_network(spec, genotype)


@pytest.mark.parametrize(
  ('name', 'layers'), [('AmoebaNet', 4), ('DARTS_V2', 2), ('NASNet', 1)]
)
def test_together_they_are_all_variables_each_once(name, layers):
  network = _network(cells.PUBLISHED[name], layers=layers)
  filled = {
    path: np.zeros(shape, int)
    for path, shape in torch_places.variable_shapes(network).items()
  }
  for place in darts_weights.places(network).values():
    filled[place.path][place.index] += 1
  assert all((count == 1).all() for count in filled.values())


def test_names_follow_the_genotype():
  network = _network(cells.DARTS_V2)
  shapes = torch_places.variable_shapes(network)
  places = darts_weights.places(network)
  found = {n: p.shape(shapes[p.path]) for n, p in places.items()}
  assert found['stem.0.weight'] == (6, 3, 3, 3)
  # Layers 1 and 2 are reductions: what skips one is halved.
  assert found['cells.0.preprocess0.op.1.weight'] == (2, 6, 1, 1)
  assert found['cells.2.preprocess0.conv_2.weight'] == (4, 8, 1, 1)
  assert found['cells.3.preprocess1.op.2.running_var'] == (8,)
  # Entry 7 of the normal cell, a dilated convolution, and entry 1, a separable.
  assert found['cells.0._ops.7.op.1.weight'] == (2, 1, 3, 3)
  assert found['cells.0._ops.1.op.6.weight'] == (2, 2, 1, 1)
  assert not any(n.startswith('cells.0._ops.5.') for n in found)  # a skip
  assert found['classifier.weight'] == (10, 32)


@pytest.mark.parametrize(
  'sizes', [{'exits': grid.ALL_BUT_FIRST}, {'scales': 2}]
)
def test_a_network_that_darts_has_not_is_refused(sizes):
  network = _network(cells.DARTS_V2, **sizes)
  with pytest.raises(UsageError, match="scales = 1 and exits = 'last'"):
    darts_weights.variables(network, {})


def test_an_operation_that_darts_has_not_is_refused():
  edges = (('mine', 0), ('skip_connect', 1))
  network = network_lib.derived_network(
    dataclasses.replace(_SPEC, nodes=1),
    genotype_lib.Genotype(edges, (2,), edges, (2,)),
    {'mine': ops.OPERATIONS['conv_7x1_1x7'], 'skip_connect': ops.Skip()},
  )
  assert 'cells.0._ops.0.2.weight' in darts_weights.places(network)
  other = ops.Custom(ops.FactorizedConv7, lambda *_: ())
  network = network.clone(operations={**network.operations, 'mine': other})
  with pytest.raises(UsageError, match="'mine' is none of DARTS' own"):
    darts_weights.places(network)
