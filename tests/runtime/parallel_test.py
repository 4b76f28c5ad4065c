"""Chunks of steps, on one device and on two."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import parallel

CHUNK = 4
SHAPES = {'loss': (), 'weight': (3,)}
DATA = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)


@flax.struct.dataclass
class _State:
  step: jax.Array
  weight: jax.Array
  key: jax.Array


def _state():
  return _State(
    step=jnp.zeros((), jnp.int32),
    weight=jnp.asarray([0.5, -1.0, 2.0]),
    key=jax.random.key(3),
  )


def _step(state, data, indices, *, axis=None, calls=None):
  """A descent step of a linear model with noise that is drawn per example."""
  if calls is not None:
    calls.append(indices.shape)
  rows = data['x'][indices]
  key = jax.random.fold_in(state.key, state.step)
  noise = jax.vmap(lambda p: jax.random.normal(jax.random.fold_in(key, p)))(
    parallel.global_positions(indices.shape[-1], axis)
  )

  def loss(weight):
    return jnp.mean((rows @ weight - noise) ** 2)

  value, gradient = jax.value_and_grad(loss)(state.weight)
  value, gradient = parallel.mean_over_devices((value, gradient), axis)
  after = state.replace(
    step=state.step + 1, weight=state.weight - 0.05 * gradient
  )
  return after, {'loss': value, 'weight': after.weight}


def _run(devices, indices, sizes, calls=None):
  """Runs the steps in chunks of the given sizes; returns all that came out."""
  step = functools.partial(_step, axis=parallel.axis_name(devices), calls=calls)
  chunk = parallel.compile_chunk(step, devices, CHUNK)
  data = parallel.replicate({'x': DATA}, devices)
  state = parallel.replicate(_state(), devices)
  metrics = []
  for size in sizes:
    part, indices = indices[:size], indices[size:]
    outcome = chunk(state, parallel.zero_sums(SHAPES), data, part)
    assert (outcome.done, outcome.finite) == (size, True)
    state, sums = outcome.state, parallel.unreplicate(outcome.sums, devices)
    metrics.append(jax.tree.map(lambda s, n=size: np.asarray(s) / n, sums))
  assert not len(indices)
  return parallel.unreplicate(state, devices), metrics


def _indices(steps, batch=6):
  return np.random.default_rng(1).integers(0, len(DATA), (steps, batch))


def _by_hand(indices):
  """Step after step, without a chunk."""
  state, metrics = _state(), []
  for rows in indices:
    state, found = jax.jit(_step)(state, {'x': jnp.asarray(DATA)}, rows)
    metrics.append(found)
  return state, metrics


def test_a_chunk_is_its_steps_one_after_the_other():
  indices = _indices(9)
  expected, single = _by_hand(indices)
  state, metrics = _run(1, indices, [4, 1, 3, 1])
  assert int(state.step) == 9
  np.testing.assert_allclose(state.weight, expected.weight, rtol=1e-6)
  np.testing.assert_array_equal(
    jax.random.key_data(state.key), jax.random.key_data(expected.key)
  )
  # The metrics are the means over the steps of a chunk alone.
  start = 0
  for size, found in zip([4, 1, 3, 1], metrics):
    part = single[start : start + size]
    for name in ('loss', 'weight'):
      np.testing.assert_allclose(
        found[name], np.mean([m[name] for m in part], axis=0), rtol=1e-5
      )
    start += size


@pytest.mark.parametrize('devices', [1, 2])
def test_how_steps_are_cut_into_chunks_changes_no_bit(devices):
  """Of the state, and of the sums, that go on from call to call."""
  step = functools.partial(_step, axis=parallel.axis_name(devices))
  results = []
  for sizes in [4, 4], [1, 3, 2, 2]:
    chunk = parallel.compile_chunk(step, devices, CHUNK)
    data = parallel.replicate({'x': DATA}, devices)
    state = parallel.replicate(_state(), devices)
    sums, indices = parallel.zero_sums(SHAPES), _indices(8)
    for size in sizes:
      part, indices = indices[:size], indices[size:]
      outcome = chunk(state, sums, data, part)
      state, sums = outcome.state, outcome.sums
    results.append(parallel.unreplicate((state.weight, sums), devices))
  jax.tree.map(np.testing.assert_array_equal, *results)


def _until_negative(state, data, indices):
  """Adds what it reads, and takes the root of it for a metric."""
  value = data['x'][indices[0]]
  after = {'step': state.step + 1, 'total': state.total + value}
  return state.replace(**after), {'root': jnp.sqrt(value)}


@flax.struct.dataclass
class _Total:
  step: jax.Array
  total: jax.Array


def _total(values, on_nonfinite):
  chunk = parallel.compile_chunk(_until_negative, 1, 8, on_nonfinite)
  return chunk(
    _Total(jnp.int32(0), jnp.float32(0)),
    parallel.zero_sums({'root': ()}, on_nonfinite),
    {'x': jnp.array(values, jnp.float32)},
    np.arange(len(values))[:, None],
  )


def test_steps_end_at_the_first_that_is_not_finite():
  outcome = _total([1, 4, -1, 9], parallel.STOP)
  assert (outcome.done, outcome.finite) == (3, False)
  assert np.isnan(outcome.sums['root'])
  assert int(outcome.state.step) == 3


def test_steps_that_are_not_finite_are_left_out():
  outcome = _total([1, 4, -1, np.nan, 9], parallel.SKIP)
  assert (outcome.done, outcome.finite) == (5, True)
  assert outcome.sums == {'root': 6.0, 'skipped_steps': 2.0}
  assert (int(outcome.state.step), float(outcome.state.total)) == (5, 14.0)


def _of_seeds(state):
  """Three states that differ in weight and key."""
  return jax.vmap(
    lambda n: state.replace(
      weight=state.weight + n, key=jax.random.fold_in(state.key, n)
    )
  )(jnp.arange(3))


@pytest.mark.parametrize('devices', [1, 2])
@pytest.mark.parametrize('at_once', [1, 2, 3])
def test_seeds_take_the_steps_that_each_would_take_alone(devices, at_once):
  seeds = parallel.Seeds(3, at_once)
  step = functools.partial(_step, axis=parallel.axis_name(devices))
  indices = np.random.default_rng(1).integers(0, len(DATA), (4, 3, 6))
  data = parallel.replicate({'x': DATA}, devices)
  chunk = parallel.compile_chunk(step, devices, CHUNK, seeds=seeds)
  outcome = chunk(
    parallel.replicate(_of_seeds(_state()), devices),
    parallel.zero_sums(SHAPES, seeds=seeds),
    data,
    indices,
  )
  assert (outcome.done, outcome.finite) == (4, True)
  state, sums = parallel.unreplicate((outcome.state, outcome.sums), devices)
  np.testing.assert_array_equal(state.step, [4, 4, 4])
  alone = parallel.compile_chunk(step, devices, CHUNK)
  for seed in range(3):
    own = jax.tree.map(lambda x, n=seed: x[n], _of_seeds(_state()))
    outcome = alone(
      parallel.replicate(own, devices),
      parallel.zero_sums(SHAPES),
      data,
      indices[:, seed],
    )
    expected = parallel.unreplicate((outcome.state, outcome.sums), devices)
    np.testing.assert_allclose(
      state.weight[seed], expected[0].weight, rtol=1e-5, atol=1e-6
    )
    for name, value in expected[1].items():
      np.testing.assert_allclose(sums[name][seed], value, rtol=1e-5, atol=1e-6)


def test_groups_of_seeds_are_of_one_size():
  groups = {n: parallel.Seeds(6, n).group for n in (0, 1, 2, 3, 4, 5, 6, 9)}
  assert groups == {0: 1, 1: 1, 2: 2, 3: 3, 4: 3, 5: 3, 6: 6, 9: 6}


@pytest.mark.parametrize('at_once', [1, 2])
def test_a_seed_that_is_not_finite_is_left_out_alone(at_once):
  seeds = parallel.Seeds(2, at_once)
  values = np.array([[1, 4], [np.nan, 9], [16, -1], [4, 25]])
  state = _Total(jnp.zeros(2, jnp.int32), jnp.zeros(2))
  data = {'x': jnp.array(values.ravel(), jnp.float32)}
  indices = np.arange(8).reshape(4, 2, 1)
  chunk = parallel.compile_chunk(_until_negative, 1, 8, parallel.SKIP, seeds)
  sums = parallel.zero_sums({'root': ()}, parallel.SKIP, seeds)
  outcome = chunk(state, sums, data, indices)
  assert (outcome.done, outcome.finite) == (4, True)
  np.testing.assert_array_equal(outcome.sums['root'], [7, 10])
  np.testing.assert_array_equal(outcome.sums['skipped_steps'], [1, 1])
  np.testing.assert_array_equal(outcome.state.step, [4, 4])
  np.testing.assert_array_equal(outcome.state.total, [21, 38])
  # To stop is for all of them.
  state = _Total(jnp.zeros(2, jnp.int32), jnp.zeros(2))
  chunk = parallel.compile_chunk(_until_negative, 1, 8, seeds=seeds)
  sums = parallel.zero_sums({'root': ()}, seeds=seeds)
  outcome = chunk(state, sums, data, indices)
  assert (outcome.done, outcome.finite) == (2, False)
  np.testing.assert_array_equal(np.isnan(outcome.sums['root']), [True, False])


@pytest.mark.parametrize('devices', [1, 2])
def test_flags_come_back(devices):
  step = functools.partial(_step, axis=parallel.axis_name(devices))
  chunk = parallel.compile_chunk(step, devices, CHUNK)
  outcome = chunk(
    parallel.replicate(_state(), devices),
    parallel.zero_sums(SHAPES),
    parallel.replicate({'x': DATA}, devices),
    _indices(1),
    [1, -5],
  )
  np.testing.assert_array_equal(outcome.flags, [1, -5])


@pytest.mark.parametrize('devices', [1, 2])
def test_it_compiles_once_whatever_the_number_of_steps(devices):
  calls, counts = [], []
  step = functools.partial(_step, axis=parallel.axis_name(devices), calls=calls)
  chunk = parallel.compile_chunk(step, devices, CHUNK)
  data = parallel.replicate({'x': DATA}, devices)
  state = parallel.replicate(_state(), devices)
  for size in (4, 1, 3, 2):
    sums = parallel.zero_sums(SHAPES)
    state = chunk(state, sums, data, _indices(size)).state
    counts.append(len(calls))
  assert counts[0] > 0
  assert counts == [counts[0]] * 4
  # Each device sees its part of the batch.
  assert set(calls) == {(6 // devices,)}


def test_two_devices_do_what_one_does():
  indices = _indices(7)
  one, one_metrics = _run(1, indices, [4, 3])
  two, two_metrics = _run(2, indices, [4, 3])
  assert int(two.step) == 7
  np.testing.assert_allclose(two.weight, one.weight, rtol=1e-5)
  for found, expected in zip(two_metrics, one_metrics):
    assert found['loss'].shape == ()
    np.testing.assert_allclose(found['loss'], expected['loss'], rtol=1e-5)


def test_leaving_the_mean_over_devices_out_would_be_noticed():
  chunk = parallel.compile_chunk(_step, 2, CHUNK)
  state = chunk(
    parallel.replicate(_state(), 2),
    parallel.zero_sums(SHAPES),
    parallel.replicate({'x': DATA}, 2),
    _indices(4),
  ).state
  expected, _ = _by_hand(_indices(4))
  wrong = parallel.unreplicate(state, 2)
  assert np.abs(wrong.weight - expected.weight).max() > 1e-2


def test_a_batch_is_split_in_order():
  def step(state, data, indices):
    del data
    positions = parallel.global_positions(indices.shape[-1], parallel.AXIS_NAME)
    return {'indices': indices, 'positions': positions}, {}

  chunk = parallel.compile_chunk(step, 2, CHUNK)
  # As the search has them: a batch for each half of the images.
  indices = np.arange(2 * 6).reshape(1, 2, 6)
  state = parallel.replicate(
    {
      'indices': jnp.zeros((2, 3), jnp.int32),
      'positions': jnp.zeros(3, jnp.int32),
    },
    2,
  )
  state = chunk(state, {}, parallel.replicate({}, 2), indices).state
  np.testing.assert_array_equal(
    state['indices'], [[[0, 1, 2], [6, 7, 8]], [[3, 4, 5], [9, 10, 11]]]
  )
  np.testing.assert_array_equal(state['positions'], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize('devices', [1, 2])
def test_the_state_is_donated(devices):
  step = functools.partial(_step, axis=parallel.axis_name(devices))
  chunk = parallel.compile_chunk(step, devices, CHUNK)
  data = parallel.replicate({'x': DATA}, devices)
  before = parallel.replicate(_state(), devices)
  chunk(before, parallel.zero_sums(SHAPES), data, _indices(2))
  assert before.weight.is_deleted()
  assert not data['x'].is_deleted()


@pytest.mark.parametrize('size', [0, CHUNK + 1])
def test_another_number_of_steps_is_refused(size):
  chunk = parallel.compile_chunk(_step, 1, CHUNK)
  with pytest.raises(ValueError, match=f'1 to 4 steps, not {size}'):
    chunk(_state(), parallel.zero_sums(SHAPES), {'x': DATA}, _indices(size))


@pytest.mark.parametrize('devices', [1, 2])
def test_replicas_come_back_as_they_were(devices):
  state = _state()
  replicas = parallel.replicate(state, devices)
  if devices == 2:
    assert replicas.weight.shape == (2, 3)
    assert len(replicas.weight.sharding.device_set) == 2
  back = parallel.unreplicate(replicas, devices)
  assert jax.tree.structure(back) == jax.tree.structure(state)
  np.testing.assert_array_equal(back.weight, state.weight)
  np.testing.assert_array_equal(
    jax.random.key_data(back.key), jax.random.key_data(state.key)
  )
  assert back.step.dtype == jnp.int32


def test_mean_over_devices():
  values = jnp.asarray([[1.0, 4.0], [3.0, 8.0]])
  mean = jax.pmap(
    lambda x: parallel.mean_over_devices({'a': x}, 'axis'), axis_name='axis'
  )(values)
  np.testing.assert_array_equal(mean['a'], [[2, 6], [2, 6]])
  assert parallel.mean_over_devices({'a': 5}, None) == {'a': 5}


def test_positions_on_one_device():
  np.testing.assert_array_equal(parallel.global_positions(3, None), [0, 1, 2])


def test_the_axis_has_a_name_where_there_are_several_devices():
  assert parallel.axis_name(1) is None
  assert parallel.axis_name(2) == parallel.AXIS_NAME


def test_devices_are_chosen():
  # The tests run with two.
  assert parallel.choose_devices(0, 6, 'train.batch_size') == 2
  assert parallel.choose_devices(1, 5, 'train.batch_size') == 1
  assert parallel.choose_devices(2, 6, 'train.batch_size') == 2


def test_more_devices_than_there_are_is_refused():
  with pytest.raises(UsageError, match='num_devices = 3, but there are 2'):
    parallel.choose_devices(3, 6, 'train.batch_size')


@pytest.mark.parametrize('requested', [0, 2])
def test_a_batch_that_cannot_be_split_is_refused(requested):
  with pytest.raises(UsageError, match='search.batch_size = 5 .* 2 devices'):
    parallel.choose_devices(requested, 5, 'search.batch_size')
