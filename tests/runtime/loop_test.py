"""Running steps: lines, checkpoints, and going on, on a model of three params.

What a run leaves must not depend on how often, or where, it was stopped.
"""

import dataclasses
import functools
import os
import random
import signal
import subprocess
import sys
import time

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import checkpoint
from ms_ranas_jax.runtime import loop
from ms_ranas_jax.runtime import metrics
from ms_ranas_jax.runtime.interruption import Interrupted
from ms_ranas_jax.runtime.interruption import Interruption

EPOCHS, STEPS, LINE = 3, 7, 3
LINES = [3, 6, 7, 10, 13, 14, 17, 20, 21]
DATA = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)


@flax.struct.dataclass
class _State:
  step: jax.Array
  weight: jax.Array
  key: jax.Array


def _new_state():
  return _State(jnp.int32(0), jnp.array([0.5, -1.0, 2.0]), jax.random.key(3))


def _step(state, data, indices):
  noise = jax.random.normal(jax.random.fold_in(state.key, state.step))

  def loss(weight):
    return jnp.mean((data['x'][indices] @ weight - noise) ** 2)

  value, gradient = jax.value_and_grad(loss)(state.weight)
  after = state.replace(
    step=state.step + 1, weight=state.weight - 0.05 * gradient
  )
  return after, {'loss': value, 'weight': after.weight}


def _spec(**changes):
  spec = loop.LoopSpec(
    label='train',
    epochs=EPOCHS,
    steps=STEPS,
    line_steps=LINE,
    devices=1,
    new_state=_new_state,
    step=_step,
    metrics={'loss': (), 'weight': (3,)},
    data={'x': DATA},
    batches=lambda epoch: np.random.default_rng(epoch).integers(
      0, len(DATA), (STEPS, 4)
    ),
    resident_bytes=DATA.nbytes,
    on_nonfinite='stop',
    clip=5.0,
    checkpoint_seconds=0,
  )
  return dataclasses.replace(spec, **changes)


class _Stage:
  """The hooks of a stage, and what they were told."""

  def __init__(self):
    self.began = []
    self.ended = []

  @property
  def hooks(self):
    return loop.LoopHooks(
      begin=lambda state, epoch: self.began.append((int(state.step), epoch)),
      end_line=lambda done: {'rate': 1 / done},
      end_epoch=self._end_epoch,
      shown=lambda record: {'loss': record['loss']},
    )

  def _end_epoch(self, state, epoch):
    self.ended.append((int(state.step), epoch))
    return {'norm': float(jnp.sum(state.weight**2))}


def _run(workdir, spec=None, interruption=None):
  stage = _Stage()
  state = loop.run(
    spec or _spec(), stage.hooks, str(workdir), interruption or Interruption()
  )
  return state, stage


def _records(workdir):
  """Without the times that they took."""
  records = metrics.read_metrics(workdir / 'train' / 'metrics.jsonl')
  return [{k: v for k, v in r.items() if k != 'seconds'} for r in records]


def _saved(workdir):
  folder = loop.checkpoints(str(workdir), 'train')
  with checkpoint.open_manager(folder, read_only=True) as manager:
    return checkpoint.steps(manager)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """An undisturbed run: its work directory, state and stage."""
  workdir = tmp_path_factory.mktemp('finished')
  return workdir, *_run(workdir)


def _assert_same(state, expected):
  assert int(state.step) == int(expected.step)
  np.testing.assert_array_equal(state.weight, expected.weight)
  np.testing.assert_array_equal(
    jax.random.key_data(state.key), jax.random.key_data(expected.key)
  )


def test_lines_are_means_over_their_steps(finished):
  workdir, state, stage = finished
  weights, losses = [], []
  current = _new_state()
  for epoch in range(EPOCHS):
    for rows in _spec().batches(epoch):
      current, found = jax.jit(_step)(current, {'x': DATA}, rows)
      weights.append(found['weight'])
      losses.append(found['loss'])
  np.testing.assert_allclose(state.weight, current.weight, rtol=1e-6)
  records = _records(workdir)
  assert [r['step'] for r in records] == LINES
  assert [r['epoch'] for r in records] == [0] * 3 + [1] * 3 + [2] * 3
  for start, record in zip([0, *LINES], records):
    part = slice(start, record['step'])
    np.testing.assert_allclose(record['loss'], np.mean(losses[part]), rtol=1e-5)
    np.testing.assert_allclose(
      record['weight'], np.mean(weights[part], axis=0), rtol=1e-5
    )
    assert record['rate'] == 1 / record['step']
    assert ('norm' in record) == (record['step'] % STEPS == 0)
  assert stage.began == [(0, 0)]
  assert stage.ended == [(7, 0), (14, 1), (21, 2)]


@pytest.mark.parametrize('resident_bytes', [0, 12 * 4 * 5])
def test_where_data_lie_changes_no_bit(
  resident_bytes, finished, tmp_path, stop_at_call
):
  """Also where it is interrupted in the middle of an epoch."""
  spec = _spec(resident_bytes=resident_bytes)
  with pytest.raises(Interrupted):
    _run(tmp_path, spec, stop_at_call(4))
  assert _saved(tmp_path)[-1] % STEPS
  state, _ = _run(tmp_path, spec)
  _assert_same(state, finished[1])
  assert _records(tmp_path) == _records(finished[0])


def test_the_last_checkpoints_are_kept(finished):
  assert _saved(finished[0]) == [7, 14, 21]


def test_a_finished_run_only_answers(finished):
  workdir, expected, _ = finished
  before = _records(workdir)

  def forbidden(*_):
    raise AssertionError('nothing is left to do')

  state, stage = _run(workdir, _spec(batches=forbidden))
  _assert_same(state, expected)
  assert stage.began == [(21, 3)]
  assert _records(workdir) == before


@pytest.mark.parametrize('length', [1, 2, 3])
def test_wherever_it_is_interrupted_it_ends_the_same(
  length, finished, tmp_path, monkeypatch, stop_at_call
):
  """At every call, also in the middle of a line, and at the last one."""
  monkeypatch.setattr(loop, '_call_length', lambda *_: length)
  _, expected, _ = finished
  for call in range(0, 16, 3):
    workdir = tmp_path / str(call)
    stopped = 0
    while True:
      try:
        state, _ = _run(workdir, interruption=stop_at_call(call))
        break
      except Interrupted:
        stopped += 1
        done = [r['step'] for r in _records(workdir)]
        assert done == LINES[: len(done)]
        # No step that was done is done again.
        assert _saved(workdir)[-1] >= max(done, default=1)
    assert stopped or call > 10
    _assert_same(state, expected)
    assert _records(workdir) == _records(finished[0])


def test_it_saves_at_an_interval(finished, tmp_path, monkeypatch):
  monkeypatch.setattr(loop, '_call_length', lambda *_: 2)
  saved = []
  save = checkpoint.save
  monkeypatch.setattr(
    checkpoint,
    'save',
    lambda m, step, s: saved.append(step) or save(m, step, s),
  )
  state, _ = _run(tmp_path, _spec(checkpoint_seconds=1e-9))
  _assert_same(state, finished[1])
  assert saved == [1, 2, 3, 5, 6, 7, 9, 10, 12, 13, 14, 16, 17, 19, 20, 21]
  saved.clear()
  _run(tmp_path / 'rare', _spec(checkpoint_seconds=1e9))
  assert saved == [7, 14, 21]


def _unstable(state, data, indices, at=11):
  after, found = _step(state, data, indices)
  loss = jnp.where(state.step == at, jnp.nan, found['loss'])
  return after, {**found, 'loss': loss}


def test_a_loss_that_is_not_finite_stops_it(tmp_path):
  with pytest.raises(UsageError, match='loss is not finite at step 12 .*') as e:
    _run(tmp_path, _spec(step=_unstable))
  assert 'goes on from step 7' in str(e.value)
  assert "config.train.on_nonfinite = 'skip'" in str(e.value)
  assert _saved(tmp_path) == [7]
  assert [r['step'] for r in _records(tmp_path)] == [3, 6, 7, 10]


def test_its_advice_is_of_what_is_set_and_of_what_is_kept(tmp_path):
  def advice(**changes):
    folder = tmp_path / '_'.join(changes)
    with pytest.raises(UsageError, match='is not finite') as caught:
      _run(folder, _spec(**{'step': _unstable} | changes))
    return str(caught.value)

  kept = advice(clip=3.0)
  assert 'lower config.train.clip = 3, or' in kept
  assert 'With --redo, or in another --workdir: Lower config.train.l' in kept
  # A clip that is off cannot be lowered.
  off = advice(clip=0.0, epochs=EPOCHS)
  assert 'bound the gradient with config.train.clip, such as 5' in off
  assert 'lower config.train.clip' not in off
  # Before the first checkpoint nothing is bound.
  early = advice(step=functools.partial(_unstable, at=2))
  assert 'goes on from the start' in early
  assert '--redo' not in early and '--workdir' not in early


def test_a_step_that_is_not_finite_can_be_skipped(finished, tmp_path):
  spec = _spec(step=_unstable, on_nonfinite='skip')
  state, _ = _run(tmp_path, spec)
  records, usual = _records(tmp_path), _records(finished[0])
  assert [r['step'] for r in records] == LINES
  assert [r['skipped_steps'] for r in records] == [0, 0, 0, 0, 1] + [0] * 4
  assert [r['loss'] for r in records[:4]] == [r['loss'] for r in usual[:4]]
  assert np.isfinite([r['loss'] for r in records]).all()
  assert (state.weight != finished[1].weight).all()
  assert int(state.step) == 21


def _never_finite(state, data, indices):
  after, found = _step(state, data, indices)
  return after, {**found, 'loss': found['loss'] * jnp.nan}


def test_lines_of_several_seeds(tmp_path):
  """The means over seeds, and the value of each at the last of many."""
  seeds = loop.parallel.Seeds(2, 2)
  alone = _spec(step=_unstable, on_nonfinite='skip')

  def new_states():
    return jax.tree.map(lambda x: jnp.stack([x, x]), _new_state())

  # The first seed reads what a run of its own does.
  def batches(epoch):
    own = alone.batches(epoch)
    return np.stack([own, own[::-1]], axis=1)

  spec = dataclasses.replace(
    alone, new_state=new_states, batches=batches, seeds=seeds
  )
  hooks = loop.LoopHooks(
    begin=lambda state, epoch: None,
    end_line=lambda done: {},
    end_epoch=lambda state, epoch: {},
    shown=lambda record: {'loss': record['loss']},
  )
  state = loop.run(spec, hooks, str(tmp_path / 'both'), Interruption())
  _, _ = _run(tmp_path / 'own', alone)
  np.testing.assert_array_equal(state.step, [EPOCHS * STEPS] * 2)
  records = _records(tmp_path / 'both')
  for record, own in zip(records, _records(tmp_path / 'own'), strict=True):
    assert record['skipped_steps_by_seed'][0] == own['skipped_steps']
    assert record['skipped_steps'] == sum(record['skipped_steps_by_seed'])
    losses = record['loss_by_seed']
    np.testing.assert_allclose(losses[0], own['loss'], rtol=1e-5)
    np.testing.assert_allclose(record['loss'], np.mean(losses), rtol=1e-6)
    np.testing.assert_allclose(
      record['weight_by_seed'][0], own['weight'][-1], rtol=1e-5
    )
    assert len(record['weight']) == 3 and len(record['weight_by_seed']) == 2
    np.testing.assert_allclose(
      record['weight'][-1], np.mean(record['weight_by_seed']), rtol=1e-5
    )


def test_nothing_but_skipped_steps_ends_it(tmp_path):
  spec = _spec(step=_never_finite, on_nonfinite='skip')
  with pytest.raises(UsageError, match='has diverged for good'):
    _run(tmp_path, spec)
  assert not _records(tmp_path)


def test_it_stops_after_the_call_in_which_it_is_asked(tmp_path, monkeypatch):
  """Not one later; and it compiles and ends with signals handled at once."""
  monkeypatch.setattr(loop, '_call_length', lambda *_: 1)
  listener = Interruption()
  seen = []

  def observed(epoch):
    seen.append(listener._deferred)
    return _spec().batches(epoch)

  chunk_of = loop.parallel.compile_chunk

  def compile_chunk(*args):
    chunk = chunk_of(*args)

    def run(*args):
      outcome = chunk(*args)
      seen.append(listener._deferred)
      if len(seen) == 5:
        assert not listener.receive()  # a signal, while this call runs
      return outcome

    return run

  monkeypatch.setattr(loop.parallel, 'compile_chunk', compile_chunk)
  with pytest.raises(Interrupted):
    _run(tmp_path, _spec(batches=observed), listener)
  # The first batches and the first call, which compiles, are not deferred.
  assert seen == [0, 0, 1, 1, 1]
  assert _saved(tmp_path) == [4]
  assert listener._deferred == 0


def test_a_checkpoint_of_another_run_is_refused(finished, tmp_path):
  with pytest.raises(UsageError, match='sums/other .absent there'):
    _run(finished[0], _spec(metrics={'loss': (), 'other': ()}))


_PROGRAM = """
import sys, time
sys.path.insert(0, {folder!r})
import loop_test
from ms_ranas_jax.runtime import interruption

loop_test.loop._call_length = lambda *_: 1
usual = loop_test.loop.parallel.compile_chunk

def slow(*args):
  chunk = usual(*args)
  def run(*args):
    time.sleep(0.15)
    return chunk(*args)
  return run

loop_test.loop.parallel.compile_chunk = slow
with interruption.listen() as listener:
  try:
    loop_test._run({workdir!r}, loop_test._spec(checkpoint_seconds=0.05),
                    listener)
  except interruption.Interrupted:
    sys.exit(interruption.EXIT_CODE)
"""


def _start(workdir):
  program = _PROGRAM.format(
    folder=os.path.dirname(__file__), workdir=str(workdir)
  )
  return subprocess.Popen(
    [sys.executable, '-c', program],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    stderr=subprocess.PIPE,
    text=True,
  )


def _final(workdir):
  folder = loop.checkpoints(str(workdir), 'train')
  template = loop.template(_new_state, _spec().metrics, 'stop')
  with checkpoint.open_manager(folder, read_only=True) as manager:
    return checkpoint.restore_latest(manager, template)[1].state


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(finished, tmp_path):
  moments = random.Random(0)
  kills = 0
  while True:
    process = _start(tmp_path)
    # Wait for the first line, or the kills would all hit imports.
    process.stderr.readline()
    try:
      process.communicate(timeout=0.3 + moments.random() if kills < 6 else 60)
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGKILL)
      process.communicate()
      kills += 1
      continue
    assert process.returncode == 0
    break
  assert kills >= 5
  _assert_same(_final(tmp_path), finished[1])
  assert _records(tmp_path) == _records(finished[0])


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends(number, finished, tmp_path):
  process = _start(tmp_path)
  metrics_file = tmp_path / 'train' / 'metrics.jsonl'
  while process.poll() is None and not (
    metrics_file.exists() and metrics_file.read_text()
  ):
    time.sleep(0.02)
  process.send_signal(number)
  began = time.monotonic()
  _, text = process.communicate(timeout=60)
  assert time.monotonic() - began < 5
  assert process.returncode == 75
  assert 'stopping after this call' in text
  done = _saved(tmp_path)[-1]
  assert [r['step'] for r in _records(tmp_path)][-1] <= done
  state, _ = _run(tmp_path)
  _assert_same(state, finished[1])
  assert _records(tmp_path) == _records(finished[0])
