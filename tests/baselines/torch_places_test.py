"""Tensors of PyTorch to their places, and what is refused."""

import re

import numpy as np
import pytest

from ms_ranas_jax.baselines import torch_places
from ms_ranas_jax.baselines.torch_places import Place
from ms_ranas_jax.errors import UsageError

_VARIABLES = {
  ('params', 'a', 'kernel'): (2, 3, 3, 5),
  ('params', 'b', 'kernel'): (1, 1, 4, 5),
  ('params', 'c', 'norm', 'scale'): (7,),
}
_PLACES = {
  'one.weight': Place(('params', 'a', 'kernel'), 'o1hw->hwo', (0,)),
  'two.weight': Place(('params', 'a', 'kernel'), 'o1hw->hwo', (1,)),
  'pointwise.weight': Place(('params', 'b', 'kernel'), 'oihw->hwio'),
  'bn.weight': Place(('params', 'c', 'norm', 'scale'), 'o->o', (slice(0, 3),)),
  'rest.weight': Place(
    ('params', 'c', 'norm', 'scale'), 'o->o', (slice(3, 7),)
  ),
}
_RNG = np.random.default_rng(0)
_ARRAYS = {
  'one.weight': _RNG.normal(size=(5, 1, 3, 3)),
  'two.weight': _RNG.normal(size=(5, 1, 3, 3)).astype(np.float16),
  'pointwise.weight': _RNG.normal(size=(5, 4, 1, 1)).astype(np.float32),
  'bn.weight': _RNG.normal(size=3),
  'rest.weight': _RNG.normal(size=4),
}


@pytest.fixture(autouse=True)
def _variables(monkeypatch):
  monkeypatch.setattr(torch_places, 'variable_shapes', lambda _: _VARIABLES)


def _assemble(arrays):
  return torch_places.assemble(
    None, _PLACES, arrays, re.compile('unused.*'), 'the --sizes'
  )


def test_every_number_comes_to_its_place():
  made = _assemble(_ARRAYS | {'unused.x': np.zeros(3)})['params']
  depthwise, pointwise = made['a']['kernel'], made['b']['kernel']
  scale = made['c']['norm']['scale']
  for edge, name in enumerate(('one.weight', 'two.weight')):
    for channel, row, column in ((0, 1, 2), (4, 2, 0)):
      expected = np.float32(_ARRAYS[name][channel, 0, row, column])
      assert depthwise[edge, row, column, channel] == expected
  assert pointwise[0, 0, 3, 1] == _ARRAYS['pointwise.weight'][1, 3, 0, 0]
  assert scale[2] == np.float32(_ARRAYS['bn.weight'][2])
  assert scale[3] == np.float32(_ARRAYS['rest.weight'][0])
  for variable in (depthwise, pointwise, scale):
    assert variable.dtype == np.float32 and np.isfinite(variable).all()


def test_a_place_says_the_shape_of_theirs():
  shapes = {n: p.shape(_VARIABLES[p.path]) for n, p in _PLACES.items()}
  assert shapes == {name: array.shape for name, array in _ARRAYS.items()}


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (
      {'one.weight': None, 'rest.weight': None},
      'there is no one.weight, rest.weight; give the --sizes that it was '
      'trained with, and the whole state dict.',
    ),
    (
      {'bn.weight': None, 'norm.weight': np.zeros(3)},
      'there is no bn.weight, but norm.weight; give the --sizes that',
    ),
    (
      {'three.weight': np.zeros(1)},
      'there is three.weight, which a network of these sizes has not; give the '
      '--sizes that it was trained with, or leave that out.',
    ),
    (
      {'two.weight': np.zeros((5, 5, 3, 3))},
      'two.weight is (5, 5, 3, 3), and (5, 1, 3, 3) in a network of these '
      'sizes; give the --sizes that it was trained with.',
    ),
    (
      {'bn.weight': np.zeros(3, np.int64)},
      'bn.weight is of the type int64; write it as float32.',
    ),
    (
      {'bn.weight': np.array([1.0, np.nan, 1.0])},
      'bn.weight holds numbers that are not finite in float32; give',
    ),
    (
      {'bn.weight': np.array([1.0, 1e300, 1.0])},
      'bn.weight holds numbers that are not finite in float32; give',
    ),
  ],
)
def test_what_does_not_fit_is_refused(change, said):
  arrays = {n: a for n, a in (_ARRAYS | change).items() if a is not None}
  with pytest.raises(UsageError, match=re.escape(said)):
    _assemble(arrays)
