"""Tests of checkpoints."""

import logging as python_logging
import os
import shutil
import subprocess
import sys
from typing import Any

from absl import logging
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import checkpoint


@flax.struct.dataclass
class _State:
  params: dict[str, Any]
  momentum: Any
  alphas_state: Any
  key: jax.Array
  worker_keys: jax.Array
  step: Any
  rate: Any
  nothing: jax.Array
  name: str = flax.struct.field(pytree_node=False, default='search')


def _state(seed, width=3):
  rng = np.random.default_rng(seed)
  params = {
    'conv': {
      'kernel': jnp.asarray(rng.normal(size=(3, 3, width)), jnp.float32),
      'bias': jnp.asarray(rng.normal(size=width), jnp.bfloat16),
    },
    'mask': jnp.asarray([True, False]),
  }
  alphas = {'normal': jnp.asarray(rng.normal(size=(5, 8)), jnp.float32)}
  sgd = optax.chain(
    optax.clip_by_global_norm(5.0), optax.sgd(0.025, momentum=0.9)
  )
  adam = optax.adam(3e-4)
  alphas_state = adam.update(alphas, adam.init(alphas))[1]
  return _State(
    params=params,
    momentum=sgd.init(params),
    alphas_state=alphas_state,
    key=jax.random.key(seed),
    worker_keys=jax.random.split(jax.random.key(seed, impl='rbg'), 2),
    step=seed,
    rate=np.float64(0.1),
    nothing=jnp.zeros((0, 4)),
  )


def _bits(leaf):
  if jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key):
    data = jax.random.key_data(leaf)
    return str(jax.random.key_impl(leaf)), data.shape, data.tobytes()
  array = jnp.asarray(leaf)
  return str(array.dtype), array.shape, array.tobytes()


def _assert_same(restored, saved):
  assert jax.tree.structure(restored) == jax.tree.structure(saved)
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))
  for (path, left), right in zip(
    jax.tree_util.tree_leaves_with_path(restored), jax.tree.leaves(saved)
  ):
    assert _bits(left) == _bits(right), jax.tree_util.keystr(path)


@pytest.fixture
def warnings_seen():
  """The messages of the log, and no others."""
  messages = []

  class Handler(python_logging.Handler):
    def emit(self, record):
      messages.append(record.getMessage())

  handler = Handler(python_logging.INFO)
  logger = logging.get_absl_logger()
  level = logging.get_verbosity()
  logging.set_verbosity(logging.INFO)
  logger.addHandler(handler)
  yield messages
  logger.removeHandler(handler)
  logging.set_verbosity(level)


def _save(directory, steps, keep=2):
  with checkpoint.open_manager(directory, keep) as manager:
    for step in steps:
      checkpoint.save(manager, step, _state(step))


def _truncate(directory, step):
  """Cuts every data file of a checkpoint in half."""
  paths = [path for path in (directory / str(step)).rglob('d/*')]
  assert paths
  for path in paths:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _damage_manifest(directory, step):
  path = directory / str(step) / 'manifest' / 'metadata'
  path.write_text(path.read_text().replace('"offset": 0', '"offset": 4', 1))


def _empty(directory, step):
  folder = directory / str(step)
  shutil.rmtree(folder)
  folder.mkdir()


def test_round_trip_is_bit_identical(tmp_path, warnings_seen):
  directory = tmp_path / 'search' / 'checkpoints'
  with checkpoint.open_manager(directory) as manager:
    assert checkpoint.restore_latest(manager, _state(0)) is None
    checkpoint.save(manager, 7, _state(7))
  with checkpoint.open_manager(directory) as manager:
    step, state = checkpoint.restore_latest(manager, _state(0))
  assert step == 7
  _assert_same(state, _state(7))
  # It goes on as it would have: optax and JAX take what comes back.
  optax.adam(3e-4).update({'normal': jnp.ones((5, 8))}, state.alphas_state)
  assert jax.random.bits(state.key) == jax.random.bits(jax.random.key(7))
  # orbax alone would log dozens of lines.
  assert warnings_seen == []


def test_an_abstract_template_will_do(tmp_path):
  _save(tmp_path, [7])
  template = jax.eval_shape(lambda: _state(0))
  with checkpoint.open_manager(tmp_path) as manager:
    step, state = checkpoint.restore_latest(manager, template)
  assert step == 7
  _assert_same(state, _state(7))


def test_a_relative_folder_will_do(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  _save('runs', [1])
  assert (tmp_path / 'runs' / '1').is_dir()


def test_the_saved_buffers_may_be_donated(tmp_path):
  use_up = jax.jit(lambda x: x * 0, donate_argnums=0)
  state = {'x': jnp.arange(100_000.0)}
  with checkpoint.open_manager(tmp_path) as manager:
    checkpoint.save(manager, 1, state)
    use_up(state['x']).block_until_ready()
    _, restored = checkpoint.restore_latest(
      manager, {'x': jax.ShapeDtypeStruct((100_000,), jnp.float32)}
    )
  np.testing.assert_array_equal(restored['x'], np.arange(100_000.0))


def test_keeps_the_newest(tmp_path):
  _save(tmp_path, [1, 2, 3, 4], keep=3)
  assert sorted(os.listdir(tmp_path)) == ['2', '3', '4']


@pytest.mark.parametrize('damage', [_truncate, _damage_manifest, _empty])
def test_a_damaged_newest_is_passed_over(
  tmp_path, damage, warnings_seen, capfd
):
  _save(tmp_path, [1, 2, 3])
  damage(tmp_path, 3)
  with checkpoint.open_manager(tmp_path) as manager:
    step, state = checkpoint.restore_latest(manager, _state(0))
    assert step == 2
    _assert_same(state, _state(2))
    assert f'{tmp_path / "3"} is damaged' in warnings_seen[-1]
    assert sorted(os.listdir(tmp_path)) == ['2', '3']
    # The run reaches step 3 again.
    checkpoint.save(manager, 3, _state(33))
  with checkpoint.open_manager(tmp_path) as manager:
    step, state = checkpoint.restore_latest(manager, _state(0))
  assert step == 3
  _assert_same(state, _state(33))
  assert sorted(os.listdir(tmp_path)) == ['2', '3', '3.aside']
  assert 'Traceback' not in capfd.readouterr().err


def test_a_damaged_one_does_not_push_out_a_good_one(tmp_path):
  _save(tmp_path, [1, 2, 3])
  _truncate(tmp_path, 3)
  with checkpoint.open_manager(tmp_path) as manager:
    checkpoint.restore_latest(manager, _state(0))
    checkpoint.save(manager, 4, _state(4))
  assert sorted(os.listdir(tmp_path)) == ['2', '3.aside', '4']


def test_changed_bytes_are_found(tmp_path, monkeypatch):
  _save(tmp_path, [1, 2])
  restore = ocp.StandardCheckpointer.restore

  def flip_a_bit_of_the_second(self, folder, *args):
    tree = restore(self, folder, *args)
    if folder.parent.name == '2':
      tree['bytes'] = np.array(tree['bytes'])
      tree['bytes'][-1] ^= 1
    return tree

  monkeypatch.setattr(
    ocp.StandardCheckpointer, 'restore', flip_a_bit_of_the_second
  )
  with checkpoint.open_manager(tmp_path) as manager:
    step, state = checkpoint.restore_latest(manager, _state(0))
  assert step == 1
  _assert_same(state, _state(1))


def test_all_damaged_is_an_error_that_deletes_nothing(tmp_path):
  _save(tmp_path, [1, 2])
  _truncate(tmp_path, 1)
  _empty(tmp_path, 2)
  before = sorted(tmp_path.rglob('*'))
  with checkpoint.open_manager(tmp_path) as manager:
    with pytest.raises(UsageError, match=f'no checkpoint in {tmp_path}'):
      checkpoint.restore_latest(manager, _state(0))
  assert sorted(tmp_path.rglob('*')) == before


def test_another_shape_is_refused_by_name(tmp_path):
  _save(tmp_path, [1])
  with checkpoint.open_manager(tmp_path) as manager:
    with pytest.raises(UsageError) as caught:
      checkpoint.restore_latest(manager, _state(0, width=4))
  message = str(caught.value)
  assert (
    'params/conv/kernel (float32[3, 3, 3] there, float32[3, 3, 4] here)'
    in message
  )
  assert 'mask' not in message
  assert '--workdir' in message


def test_other_fields_are_refused_by_name(tmp_path):
  with checkpoint.open_manager(tmp_path) as manager:
    checkpoint.save(manager, 1, {'a': jnp.ones(2), 'b': jnp.ones(2)})
    with pytest.raises(UsageError) as caught:
      checkpoint.restore_latest(
        manager, {'a': jnp.ones(2, jnp.int32), 'c': jnp.ones(2)}
      )
  message = str(caught.value)
  assert 'a (float32[2] there, int32[2] here)' in message
  assert 'b (float32[2] there, absent here)' in message
  assert 'c (absent there, float32[2] here)' in message


def test_many_differences_are_counted(tmp_path):
  with checkpoint.open_manager(tmp_path) as manager:
    checkpoint.save(manager, 1, {f'{i:02d}': jnp.ones(2) for i in range(20)})
    with pytest.raises(UsageError, match=r'05 \(.*\) and 14 more'):
      checkpoint.restore_latest(
        manager, {f'{i:02d}': jnp.ones(3) for i in range(20)}
      )


def test_leaves_that_would_change_are_refused(tmp_path):
  with checkpoint.open_manager(tmp_path) as manager:
    for bad in (np.array([2**40]), 2**40, 'text'):
      with pytest.raises(ValueError, match='field a/b cannot be saved'):
        checkpoint.save(manager, 1, {'a': {'b': bad}})
    with pytest.raises(ValueError, match="the path 'a/b'"):
      checkpoint.save(manager, 1, {'a/b': 1, 'a': {'b': 1}})


def test_read_only_touches_nothing(tmp_path):
  missing = tmp_path / 'missing'
  with checkpoint.open_manager(missing, read_only=True) as manager:
    assert checkpoint.restore_latest(manager, _state(0)) is None
  assert not missing.exists()
  _save(tmp_path, [1])
  under_way = tmp_path / '2.orbax-checkpoint-tmp'
  under_way.mkdir()
  with checkpoint.open_manager(tmp_path, read_only=True) as manager:
    step, _ = checkpoint.restore_latest(manager, _state(0))
    assert step == 1
    with pytest.raises(ValueError, match='read only'):
      checkpoint.save(manager, 2, _state(2))
  assert under_way.exists()
  # One that writes clears away what an interrupted run left.
  _save(tmp_path, [3])
  assert not under_way.exists()


def test_an_impossible_folder_is_refused(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UsageError, match='cannot hold checkpoints'):
    checkpoint.open_manager(tmp_path / 'file' / 'checkpoints')
  with pytest.raises(UsageError, match='keep'):
    checkpoint.open_manager(tmp_path, keep=0)


_ON_A_FULL_DISK = """
import resource, signal, sys
import numpy as np
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import checkpoint

# A limit on the size of files fails in a write, as a full disk does.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
noise = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
try:
  with checkpoint.open_manager(sys.argv[1]) as manager:
    checkpoint.save(manager, 1, {'noise': noise})
    checkpoint.steps(manager)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    checkpoint.save(manager, 2, {'noise': 2 * noise})
    checkpoint.save(manager, 3, {'noise': 3 * noise})
except UsageError as error:
  sys.exit(str(error))
"""


def test_a_full_disk_is_reported_and_the_last_good_one_stays(tmp_path):
  end = subprocess.run(
    [sys.executable, '-c', _ON_A_FULL_DISK, str(tmp_path)],
    capture_output=True,
    check=False,
    text=True,
    timeout=120,
  )
  assert end.returncode == 1
  last = end.stderr.strip().splitlines()[-1]
  assert f'a checkpoint could not be written to {tmp_path}' in last
  assert 'File too large' in last and 'free space there' in last
  template = {'noise': np.zeros(100_000, np.float32)}
  with checkpoint.open_manager(tmp_path) as manager:
    step, state = checkpoint.restore_latest(manager, template)
    assert step == 1
    noise = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    np.testing.assert_array_equal(state['noise'], noise)
    # And with space again, it goes on.
    checkpoint.save(manager, 2, state)
    assert checkpoint.steps(manager) == [1, 2]
