"""A study is run to its end, once, however often and wherever it is stopped.

Most tests let stages pretend; what the program really does with a study is
tested in processes, slowly, below.
"""

import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import interruption
from ms_ranas_jax.runtime import lock
from ms_ranas_jax.studies import results
from ms_ranas_jax.studies import runner

_JOBS = [
  'searches/baseline_to_baseline-seed{}',
  'trainings/baseline_to_baseline-seed{}',
  'trainings/baseline_to_exits-seed{}',
  'searches/exits_to_exits-seed{}',
  'trainings/exits_to_exits-seed{}',
]
_ALL = [f'study/{job.format(seed)}' for seed in (0, 1) for job in _JOBS]


@pytest.fixture
def study(tiny_config, tiny_figure, tmp_path):
  """Runs the small study with stages that pretend; returns what was said."""

  def study(
    run_stages,
    workdir=tmp_path / 'study',
    listener=None,
    say=lambda text: None,
    **fields,
  ):
    said = []
    runner.run_study(
      tiny_config(**fields),
      str(workdir),
      lambda text: (said.append(text), say(text)),
      listener,
      figure=tiny_figure,
      run_stages=run_stages,
      poll_seconds=0.01,
    )
    return said

  return study


def _results(workdir):
  return {
    name: (workdir / 'study' / name).read_bytes()
    for name in ('table.json', 'table.md', 'report.html')
  }


def test_every_job_runs_once_and_in_order(study, pretend, tmp_path):
  stages = pretend()
  said = study(stages)
  assert stages.log == _ALL
  assert said[0] == (
    'study: 0 of 10 runs done  now search: baseline → baseline, seed 0'
  )
  assert said[1].startswith(
    'study: 1 of 10 runs done  now train: baseline → baseline, seed 0  left '
  )
  assert said[-1] == f'report: {tmp_path}/study/study/report.html'
  table = json.loads((tmp_path / 'study/study/table.json').read_text())
  assert (table['runs_done'], table['runs']) == (6, 6)
  means = [row['last_exit']['mean'] for row in table['measured']]
  assert means == pytest.approx([0.605, 0.605, 0.705])
  for kind in 'svg', 'png':
    assert (tmp_path / f'study/study/figures/figure5.{kind}').is_file()
  # Done is done.
  study(stages)
  assert len(stages.log) == len(_ALL)


def test_more_seeds_add_their_runs_alone(study, pretend):
  stages = pretend()
  study(stages, seeds=(1,))
  study(stages, seeds=(0, 1))
  assert stages.log == _ALL[5:] + _ALL[:5]


def test_another_config_is_refused(study, pretend):
  study(pretend())
  with pytest.raises(UsageError, match='study.cutout was 2, now 3'):
    study(pretend(), cutout=3)


class _Killed(Exception):
  """Stands in for the end of a process."""


# The first, the last, a search, and a training of cells found earlier.
@pytest.mark.parametrize('number', [0, 3, 7, 9])
def test_stopped_in_any_run_it_ends_with_the_same_results(
  study, pretend, tmp_path, number
):
  def kill(run):
    if run == number:
      raise _Killed

  stopped = pretend(before=kill)
  with pytest.raises(_Killed):
    study(stopped, tmp_path / 'stopped')
  rest = pretend()
  study(rest, tmp_path / 'stopped')
  assert stopped.log[:-1] + rest.log == _ALL
  study(pretend(), tmp_path / 'whole')
  assert _results(tmp_path / 'stopped') == _results(tmp_path / 'whole')


def test_it_stops_between_runs_where_it_is_asked_to(study, pretend):
  listener = interruption.Interruption()

  def ask(run):
    if run == 2:
      with listener.deferred():
        listener.receive()

  stages = pretend(before=ask)
  with pytest.raises(interruption.Interrupted):
    study(stages, listener=listener)
  assert len(stages.log) == 3


def test_a_table_of_what_there_is_stands_there_meanwhile(
  study, pretend, tmp_path
):
  path = tmp_path / 'study/study/table.json'
  seen = []

  def look(run):
    seen.append(json.loads(path.read_text())['runs_done'] if run else None)

  study(pretend(before=look))
  assert seen == [None, 0, 1, 2, 2, 3, 3, 4, 5, 5]


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('dataset.train_images', 2000, 'dataset.train_images = 2000, but digits'),
    ('dataset.dir', 'elsewhere', "dataset.dir is 'elsewhere'"),
    ('search.batch_size', 300, 'search.batch_size = 300, but .* 200 images'),
    ('train.batch_size', 300, 'train.batch_size = 300, but .* 200 images'),
  ],
)
def test_what_does_not_fit_the_images_is_refused_before_anything(
  tiny_config, tiny_figure, pretend, tmp_path, field, value, message
):
  config = tiny_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UsageError, match=message):
    runner.run_study(
      config,
      str(tmp_path / 'study'),
      lambda text: None,
      figure=tiny_figure,
      run_stages=pretend(),
    )
  assert not (tmp_path / 'study').exists()


def test_a_failed_run_is_named(study, pretend):
  def fail(run):
    if run == 1:
      raise UsageError('train.batch_size = 3: give more.')

  with pytest.raises(
    UsageError, match=r'^baseline → baseline, seed 0: train.batch_size = 3'
  ):
    study(pretend(before=fail))


def test_several_workers_share_the_runs(study, pretend, tmp_path, monkeypatch):
  """Threads here: the locks know no difference."""
  # What is drawn is styled by settings that belong to a process, not a thread.
  drawing = threading.RLock()
  for name in ('write_table', 'write_results'):
    write = getattr(results, name)

    def alone(*args, write=write):
      with drawing:
        return write(*args)

    monkeypatch.setattr(results, name, alone)
  # No run ends before a second worker has one too.
  busy, two_are_busy = set(), threading.Event()

  def meet(run):
    busy.add(threading.get_ident())
    if len(busy) > 1:
      two_are_busy.set()
    assert two_are_busy.wait(timeout=60)

  stages = [pretend(before=meet) for _ in range(4)]
  errors = []

  def work(run_stages):
    try:
      study(run_stages, tmp_path / 'shared')
    except Exception as error:
      errors.append(error)

  threads = [threading.Thread(target=work, args=(s,)) for s in stages]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not errors
  places = [place for run_stages in stages for place in run_stages.log]
  assert sorted(places) == sorted(_ALL)
  assert sum(bool(run_stages.log) for run_stages in stages) > 1
  study(pretend(), tmp_path / 'alone')
  assert _results(tmp_path / 'shared') == _results(tmp_path / 'alone')


def test_a_run_that_another_process_holds_is_waited_for(
  study, pretend, tmp_path
):
  stages = pretend()
  waits = threading.Event()
  held = tmp_path / 'held/study/searches/baseline_to_baseline-seed0'

  def say(text):
    if text == 'study: other processes have the 3 runs left':
      waits.set()

  thread = threading.Thread(
    target=study, args=(stages, tmp_path / 'held'), kwargs={'say': say}
  )
  with lock.hold(str(held), '.claim'):
    thread.start()
    assert waits.wait(120)
    # All but this search and the trainings of its cells.
    assert len(stages.log) == 7
  thread.join(120)
  assert sorted(stages.log) == sorted(_ALL)


# What a process runs: the small study, with the stages of the program.
_PROGRAM = """
import importlib.util
import sys
from ms_ranas_jax.runtime import interruption
from ms_ranas_jax.studies import results
from ms_ranas_jax.studies import runner
spec = importlib.util.spec_from_file_location('conftest', sys.argv[1])
conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)
config = conftest._config(seeds=(0,))
config.search.primitives = 'none', 'skip_connect', 'sep_conv_3x3'
with interruption.listen() as listener:
  runner.run_study(
    config, sys.argv[2], print, listener,
    figure=conftest._FIGURE, poll_seconds=0.2)
"""


def _start(repo_root, workdir):
  conftest = pathlib.Path(__file__).parent / 'conftest.py'
  return subprocess.Popen(
    [sys.executable, '-c', _PROGRAM, str(conftest), str(workdir)],
    cwd=repo_root,
    env={
      'JAX_COMPILATION_CACHE_DIR': str(repo_root / '.cache/jax'),
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': '1',
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _finish(process):
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  return [line for line in out.splitlines() if '  now ' in line]


@pytest.mark.slow
def test_real_runs_killed_and_shared_end_with_the_same_table(
  repo_root, tmp_path
):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  lines = _finish(_start(repo_root, whole))
  assert len(lines) == len(_JOBS)
  table = json.loads((whole / 'study/table.json').read_text())
  assert table['runs_done'] == 3
  assert table['num_test_images'] == 360
  # Killed while the second run is under way, then ended by two.
  process = _start(repo_root, killed)
  while '  now train' not in process.stdout.readline():
    assert process.poll() is None
  process.kill()
  process.communicate()
  assert not (killed / 'study/report.html').exists()
  both = [_start(repo_root, killed) for _ in range(2)]
  lines = [line for process in both for line in _finish(process)]
  # The search was done, and nothing is done twice.
  runs = [line.split('  ')[1] for line in lines]
  assert len(runs) == len(set(runs)) == len(_JOBS) - 1
  assert _results(killed) == _results(whole)
