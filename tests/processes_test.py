"""Whole runs as processes: killed ones, and several that are one.

Two processes with two CPU devices each are compared with one process. Losses
agree to 2e-3 in the first line, and not to the bit: sums over the batch run in
another order, and each step starts from what rounding made of the last.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy

from ms_ranas_jax.runtime import checkpoint
from ms_ranas_jax.runtime import metrics

_ARGUMENTS = (
  '--config=configs/digits.py',
  '--config.stages=("search","train","evaluate","report")',
  '--config.search.epochs=2',
  '--config.train.epochs=1',
  '--config.search.network.channels=4',
  '--config.search.network.layers=2',
  '--config.search.network.nodes=1',
  '--config.search.network.scales=1',
  '--config.train.network.channels=4',
  '--config.train.network.layers=2',
  '--config.train.network.nodes=1',
  '--config.train.network.scales=1',
  '--config.search.chunk_steps=4',
  '--config.train.label_smoothing=0.1',
  '--config.train.mixup=0.3',
  '--config.train.ema_decay=0.9',
  '--config.train.warmup_epochs=0.2',
  '--config.train.nesterov=True',
  # Three kinds, one of them with BNs, compile sooner than all eight.
  '--config.search.primitives=("none","skip_connect","sep_conv_3x3")',
)

pytestmark = pytest.mark.slow


def _free_port():
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]


def _start(repo_root, workdir, processes, devices, *more):
  port = _free_port()
  return [
    subprocess.Popen(
      [sys.executable, '-m', 'ms_ranas_jax.main', f'--workdir={workdir}']
      + [*_ARGUMENTS, *more]
      + (
        [
          f'--coordinator=127.0.0.1:{port}',
          f'--num_processes={processes}',
          f'--process_id={index}',
        ]
        if processes > 1
        else []
      ),
      cwd=repo_root,
      env={
        'JAX_COMPILATION_CACHE_DIR': str(repo_root / '.cache/jax'),
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'JAX_NUM_CPU_DEVICES': str(devices),
      },
      stderr=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    for index in range(processes)
  ]


def _finish(started, seconds=300):
  ends = [process.communicate(timeout=seconds) for process in started]
  return [
    (process.returncode, *end)
    for process, end in zip(started, ends, strict=True)
  ]


def _records(workdir, stage):
  return metrics.read_metrics(workdir / stage / 'metrics.jsonl')


@pytest.fixture(scope='module')
def one(repo_root, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('one') / 'run'
  ((code, _, err),) = _finish(_start(repo_root, workdir, 1, 1))
  assert code == 0, err
  return workdir


def _final_bytes(workdir, stage):
  """All of the last state, as it was saved."""
  folder = workdir / stage / 'checkpoints'
  with checkpoint.open_manager(folder, read_only=True) as manager:
    last = folder / str(checkpoint.steps(manager)[-1])
  manifest = checkpoint._read_manifest(last)
  return manifest['fields'], checkpoint._read_bytes(last, manifest)


def test_killed_at_random_moments_a_run_ends_the_same(one, repo_root, tmp_path):
  """In imports, compilation, steps, saves, evaluation or report."""
  moments = random.Random(1)
  workdir = tmp_path / 'run'
  kills = 0
  often = '--config.checkpoint_seconds=0.2'
  while True:
    (process,) = _start(repo_root, workdir, 1, 1, often)
    # Most of the time goes into imports and loading what is compiled.
    patience = moments.uniform(3, 10) if kills < 6 else 300
    try:
      _, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
      process.kill()
      process.communicate()
      kills += 1
      continue
    assert process.returncode == 0, err
    if kills >= 5:
      break
    # It got through too early: take away what the last stages made.
    for name in ('evaluate', 'train', 'model', 'figures'):
      shutil.rmtree(workdir / name, ignore_errors=True)
  for stage in ('search', 'train'):
    fields, data = _final_bytes(workdir, stage)
    expected_fields, expected = _final_bytes(one, stage)
    assert fields == expected_fields
    np.testing.assert_array_equal(data, expected)
    records = [_records(folder, stage) for folder in (workdir, one)]
    for record in (*records[0], *records[1]):
      del record['seconds']
    assert records[0] == records[1]
  for name in ('search/genotype.json', 'evaluate/anytime.json'):
    assert (workdir / name).read_text() == (one / name).read_text()
  assert (workdir / 'report.html').exists()


def test_two_processes_do_what_one_does(one, repo_root, tmp_path):
  workdir = tmp_path / 'run'
  first, second = _finish(_start(repo_root, workdir, 2, 2))
  assert (first[0], second[0]) == (0, 0), first[2] + second[2]
  # The first one alone speaks and writes.
  assert 'search found' in first[1]
  assert 'search found' not in second[1]
  for stage in ('search', 'train'):
    found, expected = _records(workdir, stage), _records(one, stage)
    assert [r['step'] for r in found] == [r['step'] for r in expected]
    np.testing.assert_allclose(
      found[0]['train_loss'], expected[0]['train_loss'], rtol=2e-3
    )
  with (
    np.load(workdir / 'search/alphas.npz') as found,
    np.load(one / 'search/alphas.npz') as expected,
  ):
    for kind in expected.files:
      # A twentieth of how far Adam goes in so many steps: what rounding makes
      # of small gradients, which it divides by their size, is of the machine.
      np.testing.assert_allclose(found[kind], expected[kind], atol=3e-3)
  genotypes = [
    (folder / 'search/genotype.json').read_text() for folder in (workdir, one)
  ]
  assert genotypes[0] == genotypes[1]
  assert (workdir / 'evaluate/anytime.json').exists()


def test_two_processes_train_one_hypernetwork(repo_root, tmp_path):
  more = (
    '--config.stages=("search",)',
    '--config.search.method=ghn',
    '--config.search.alphas_learning_rate=3e-4',
    '--config.search.ghn.rounds=1',
    '--config.search.ghn.width=4',
    '--config.search.ghn.hidden=4',
    '--config.search.candidates.random=3',
    '--config.search.epochs=1',
  )
  one, two = tmp_path / 'one', tmp_path / 'two'
  ends = _finish(_start(repo_root, one, 1, 1, *more))
  ends += _finish(_start(repo_root, two, 2, 1, *more))
  assert [code for code, _, _ in ends] == [0, 0, 0], ends
  found, expected = _records(two, 'search'), _records(one, 'search')
  assert [r['step'] for r in found] == [r['step'] for r in expected]
  np.testing.assert_allclose(
    found[0]['train_loss'], expected[0]['train_loss'], rtol=2e-3
  )
  made, expected = (
    safetensors.numpy.load_file(folder / 'search/hypernetwork.safetensors')
    for folder in (two, one)
  )
  assert made.keys() == expected.keys()
  for name, array in expected.items():
    # A tenth of how far Adam goes in so many steps.
    np.testing.assert_allclose(made[name], array, atol=1e-3, err_msg=name)
  judged, expected = (
    json.loads((folder / 'search/candidates.json').read_text())
    for folder in (two, one)
  )
  assert judged['left'] == 0
  assert [r['genotype'] for r in judged['candidates']] == [
    r['genotype'] for r in expected['candidates']
  ]


def test_the_first_of_two_says_what_it_waits_for(repo_root, tmp_path):
  first, second = _start(repo_root, tmp_path / 'run', 2, 1)
  second.kill()
  line = first.stderr.readline()
  first.kill()
  assert line.startswith('ms_ranas_jax: process 0 of 2: waiting at 127.0.0.1:')
  assert 'for 1 other, --process_id=1, 300 s at most' in line
  for process in (first, second):
    process.communicate(timeout=30)
  assert not (tmp_path / 'run').exists()


def _wait_for_lines(workdir, process, count):
  lines = workdir / 'search/metrics.jsonl'
  began = time.monotonic()
  while not (lines.exists() and lines.read_text().count('\n') > count):
    assert time.monotonic() - began < 240
    assert process.poll() is None, process.communicate()
    time.sleep(0.2)


def test_two_processes_stop_die_and_go_on_alone(repo_root, tmp_path):
  workdir = tmp_path / 'run'
  long = '--config.search.epochs=2000'
  started = _start(repo_root, workdir, 2, 2, long)
  _wait_for_lines(workdir, started[0], 4)
  # One of them is told, and both stop at the same step.
  started[1].send_signal(signal.SIGTERM)
  began = time.monotonic()
  ends = _finish(started, 60)
  assert time.monotonic() - began < 20
  assert [code for code, _, _ in ends] == [75, 75], ends

  lines = len(_records(workdir, 'search'))
  started = _start(repo_root, workdir, 2, 2, long)
  _wait_for_lines(workdir, started[0], lines + 8)
  started[1].send_signal(signal.SIGKILL)
  began = time.monotonic()
  first, _ = _finish(started, 90)
  assert time.monotonic() - began < 60
  assert first[0] not in (0, 75)
  # Either the program says it, or the service that connects them.
  assert (
    'another one ended' in first[2]
    or 'tasks died' in first[2]
    or ('heartbeat' in first[2])
  ), first[2]

  with checkpoint.open_manager(
    workdir / 'search/checkpoints', read_only=True
  ) as manager:
    saved = checkpoint.steps(manager)[-1]
  assert saved > 0
  (process,) = _start(repo_root, workdir, 1, 1, long)
  _, _, err = _interrupted(process)
  assert 'interrupted and saved' in err
  done = [r['step'] for r in _records(workdir, 'search')]
  assert done == sorted(set(done))
  assert done[-1] > saved


def _interrupted(process):
  """Lets it do some steps, and asks it to stop."""
  while True:
    line = process.stderr.readline()
    assert line
    # 'search  120/400 steps': not the first line, before any step.
    if line.startswith('search') and 'train loss' in line:
      break
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=60)
  assert process.returncode == 75
  return process.returncode, out, err
