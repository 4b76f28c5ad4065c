"""The widest network within a budget, against trying every width."""

import functools

import jax.numpy as jnp
import pytest

from ms_ranas_jax.baselines import cells
from ms_ranas_jax.costs import cost
from ms_ranas_jax.costs import width
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib

_TRIED = 24


@functools.cache
def _build(channels):
  # Half of the channels of scale 1 come from scale 0, so odd ones are none.
  spec = grid.NetworkSpec(channels, 5, 4, 2, 1, image_shape=(16, 16, 3))
  return network_lib.derived_network(spec, cells.DARTS_V2)


@functools.cache
def _costs():
  """Width -> costs, of all widths that make a network."""
  costs = {}
  for channels in range(1, _TRIED + 1):
    try:
      costs[channels] = width.measured(_build(channels))
    except UsageError:
      continue
  return costs


def test_some_widths_make_no_network():
  assert 1 < len(_costs()) < _TRIED


@pytest.mark.parametrize('limit', width.LIMITS)
def test_is_the_widest_that_fits(limit):
  for channels, costs in _costs().items():
    found, network = width.widest(_build, {limit: costs[limit]})
    assert found == channels
    assert network is _build(channels)
    if channels > min(_costs()):
      found, _ = width.widest(_build, {limit: costs[limit] - 1})
      assert found == max(c for c in _costs() if c < channels)


def test_the_tightest_limit_decides():
  wide, narrow = _costs()[16], _costs()[8]
  found, _ = width.widest(
    _build, {'macs': wide['macs'], 'params': narrow['params']}
  )
  assert found == 8


def test_bytes_are_of_params_and_the_peak_of_activations():
  costs = _costs()[8]
  last = cost.network_cost(_build(8)).exits[-1]
  assert costs['bytes'] == 4 * last.total_params + last.peak_activation_bytes


@pytest.mark.parametrize(
  ('dtype', 'size'), [('float32', 4), ('bfloat16', 2), ('int8', 1)]
)
def test_bytes_count_in_the_type_that_is_shipped(dtype, size):
  network = _build(8)
  costs = width.measured(network, dtype)
  # As many numbers as a chip holds: the params, and the peak of activations.
  last = cost.network_cost(network).exits[-1]
  numbers = last.total_params + last.peak_activation_bytes // 4
  assert costs == _costs()[8] | {'bytes': size * numbers}
  # What fits in float32 is narrower than what fits in a smaller type.
  limit = {'bytes': _costs()[8]['bytes']}
  found, chosen = width.widest(_build, limit, dtype=dtype)
  fitting = {
    channels: width.measured(_build(channels), dtype)['bytes']
    for channels in _costs()
  }
  assert found == max(c for c in fitting if fitting[c] <= limit['bytes'])
  assert (found > 8) == (size < 4)
  assert chosen is _build(found)


def test_every_type_that_there_is_has_its_size():
  assert {dtype: jnp.dtype(dtype).itemsize for dtype in width.BYTES_OF} == dict(
    width.BYTES_OF
  )


def test_an_impossible_budget_says_what_can_be_had():
  least = min(_costs())
  with pytest.raises(UsageError) as error:
    width.widest(_build, {'macs': 1000.0})
  assert f'{_costs()[least]["macs"]:,} macs (1,000 allowed)' in str(error.value)
  assert f'{least} channels' in str(error.value)


def test_an_impossible_budget_of_bytes_names_the_type():
  least = width.measured(_build(min(_costs())), 'int8')['bytes']
  with pytest.raises(UsageError) as error:
    width.widest(_build, {'bytes': 100.0}, dtype='int8')
  assert f'{least:,} bytes in int8 (100 allowed)' in str(error.value)


def test_a_budget_without_limits_is_refused():
  with pytest.raises(UsageError, match='train.budget.macs or'):
    width.widest(_build, {})


def test_sizes_that_make_no_network_at_any_width():
  def build(channels):
    raise UsageError(f'no network of {channels} channels.')

  with pytest.raises(UsageError, match='no network of 1 channels'):
    width.widest(build, {'params': 1e9})
