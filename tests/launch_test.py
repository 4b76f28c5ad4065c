"""The launchers, as far as that takes no installation."""

import pathlib
import shlex
import shutil
import subprocess

import pytest

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_SCRIPTS = [
  *sorted(_ROOT.glob('launch/*.sh')),
  _ROOT / 'launch/slurm.sbatch',
  _ROOT / '.ci/run',
]
_COMMANDS = ['local.sh', 'test.sh']

pytestmark = pytest.mark.skipif(
  shutil.which('bash') is None, reason='there is no bash here'
)


def _bash(*arguments, cwd=None, **environment):
  return subprocess.run(
    ['bash', *map(str, arguments)],
    capture_output=True,
    check=False,
    cwd=cwd,
    env={'PATH': '/usr/local/bin:/usr/bin:/bin', **environment},
    text=True,
    timeout=30,
  )


@pytest.fixture
def interpreter(tmp_path):
  """Makes an interpreter that says it is of a version, and does no more."""

  def make(version):
    path = tmp_path / f'python{version}'
    path.write_text(f'#!/bin/sh\necho {version}\n')
    path.chmod(0o755)
    return path

  return make


@pytest.fixture
def launch(tmp_path):
  """A copy of the launchers, where nothing can be installed by mistake."""
  shutil.copytree(_ROOT / 'launch', tmp_path / 'copy/launch')
  return tmp_path / 'copy/launch'


def _assert_refused(end, *texts):
  assert end.returncode == 2
  assert end.stdout == ''
  last = end.stderr.splitlines()[-1]
  assert last.startswith('launch: ')
  assert [text for text in texts if text not in last] == []


@pytest.mark.parametrize('path', _SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_bash(path):
  end = _bash('-n', path)
  assert (end.returncode, end.stderr) == (0, '')
  # It stops at the first error; env.sh does that for those that source it.
  assert 'set -euo pipefail' in path.read_text()


def test_commands_can_be_executed():
  for path in _SCRIPTS:
    assert path.name == 'env.sh' or path.stat().st_mode & 0o111, path


@pytest.mark.parametrize('flag', ['-h', '--help'])
def test_help(launch, tmp_path, flag):
  end = _bash(launch / 'local.sh', flag, cwd=tmp_path)
  assert (end.returncode, end.stderr) == (0, '')
  assert end.stdout.startswith('Usage: launch/local.sh --config=')
  for text in '--config=configs/digits.py', 'PYTHON=', 'NEWEST=1', '--workdir':
    assert text in end.stdout
  assert max(map(len, end.stdout.splitlines())) <= 80


@pytest.mark.parametrize('command', _COMMANDS)
@pytest.mark.parametrize('version', ['2.7', '3.8', '3.10', '4.0'])
def test_another_python_is_refused(launch, interpreter, command, version):
  python = interpreter(version)
  end = _bash(launch / command, PYTHON=str(python))
  _assert_refused(
    end, f"'{python}' is Python {version}", '3.11 or newer', 'PYTHON=python3.13'
  )
  assert not (launch.parent / '.venv').exists()


@pytest.mark.parametrize('command', _COMMANDS)
def test_a_python_that_is_not_there_is_refused(launch, tmp_path, command):
  name = str(tmp_path / 'python2')
  _assert_refused(
    _bash(launch / command, PYTHON=name), f"'{name}' does not run", 'PYTHON='
  )


def test_ci_runs_the_test_command(tmp_path, interpreter, launch):
  """With the arguments that it is given, from any directory."""
  (launch.parent / '.ci').mkdir()
  shutil.copy(_ROOT / '.ci/run', launch.parent / '.ci/run')
  end = _bash(
    launch.parent / '.ci/run', cwd=tmp_path, PYTHON=str(interpreter('2.7'))
  )
  _assert_refused(end, 'launch/test.sh')


def test_every_pinned_python_has_constraints():
  for version in '3.11', '3.13':
    text = (_ROOT / f'constraints-{version}.txt').read_text()
    pins = [line for line in text.splitlines() if not line.startswith('#')]
    assert any(pin.startswith('jax==') for pin in pins)
    assert all('==' in pin for pin in pins if pin.strip())


def _commands(end):
  assert (end.returncode, end.stderr) == (0, '')
  return [shlex.split(line) for line in end.stdout.splitlines()]


def test_processes_would_run_one_program_on_both_sides(launch):
  end = _bash(
    launch / 'processes.sh',
    '2',
    '--dry-run',
    '--config=configs/digits.py',
    '--config.seed=1',
    PORT='4321',
  )
  python = str(launch.parent / '.venv/bin/python')
  assert _commands(end) == [
    [
      python,
      '-m',
      'ms_ranas_jax.main',
      '--config=configs/digits.py',
      '--config.seed=1',
      '--coordinator=127.0.0.1:4321',
      '--num_processes=2',
      f'--process_id={index}',
    ]
    for index in range(2)
  ]


@pytest.mark.parametrize('count', ['', '0', 'two', '--config=configs/x.py'])
def test_processes_need_a_number(launch, count):
  end = _bash(launch / 'processes.sh', count, '--dry-run')
  _assert_refused(end, 'the number of processes first')


def test_a_tpu_pod_would_be_made_used_and_deleted(launch):
  end = _bash(
    launch / 'tpu_pod.sh',
    '--dry-run',
    'demo',
    '--config=configs/cifar10.py',
    '--workdir=/mnt/runs/a b',
    PROJECT='mine',
    ZONE='here',
    TYPE='v4-32',
    VERSION='tpu-ubuntu2204-base',
    MOUNT='mount /mnt/runs',
  )
  where = ['--project=mine', '--zone=here']
  create, *archive, copy, install, mount, program, fetch, delete = _commands(
    end
  )
  tpus = ['gcloud', 'compute', 'tpus']
  assert create == [
    *tpus,
    *('queued-resources', 'create', 'demo', *where, '--node-id=demo'),
    *('--accelerator-type=v4-32', '--runtime-version=tpu-ubuntu2204-base'),
  ]
  tarball = str(launch.parent / '.cache/ms_ranas_jax.tar.gz')
  assert archive[0] == ['mkdir', '-p', str(launch.parent / '.cache')]
  assert archive[1][-3:] == ['pack', str(launch.parent), tarball]
  assert copy[3:7] == ['tpu-vm', 'scp', tarball, 'demo:ms_ranas_jax.tar.gz']
  for command in (install, mount, program):
    assert command[:-1] == [*tpus, 'tpu-vm', 'ssh', 'demo', *where] + [
      '--worker=all'
    ]
  assert "pip install --quiet 'jax[tpu]' -e '.[gcs]'" in install[-1]
  assert mount[-1] == '--command=mount /mnt/runs'
  assert program[-1] == (
    '--command=cd ms_ranas_jax && .venv/bin/python -m ms_ranas_jax.main '
    '--coordinator=auto --config=configs/cifar10.py --workdir=/mnt/runs/a\\ b'
  )
  assert fetch[3:] == (
    ['tpu-vm', 'scp', '--recurse', 'demo:/mnt/runs/a b', '.', *where]
    + ['--worker=0']
  )
  assert delete == [
    *tpus,
    *('queued-resources', 'delete', 'demo', *where, '--force', '--quiet'),
  ]


def test_a_bucket_is_fetched_without_a_host(launch):
  end = _bash(
    launch / 'tpu_pod.sh', '--dry-run', 'demo', '--workdir=gs://mine/demo'
  )
  *_, program, fetch, _ = _commands(end)
  assert program[-1].endswith('--workdir=gs://mine/demo')
  assert fetch == 'gcloud storage cp --recursive gs://mine/demo .'.split()


def test_a_tpu_pod_needs_a_name_and_a_work_directory(launch):
  script = launch / 'tpu_pod.sh'
  _assert_refused(_bash(script, '--dry-run', '--config=x'), 'give a name')
  _assert_refused(_bash(script, '--dry-run', 'demo'), 'give --workdir=gs:')


def test_a_gke_workload_would_be_submitted(launch):
  end = _bash(
    launch / 'gke.sh',
    '--dry-run',
    'cluster',
    'demo',
    '--config=configs/cifar10.py',
    '--workdir=/data/demo',
  )
  cache = launch.parent / '.cache'
  *_, command = commands = _commands(end)
  assert commands[1][-1] == str(cache / 'ms_ranas_jax.tar.gz')
  assert commands[4] == [
    *('tar', '-xzf', commands[1][-1], '-C', str(cache / 'gke'))
  ]
  assert command == [
    *('xpk', 'workload', 'create', '--cluster=cluster', '--workload=demo'),
    *('--tpu-type=v5litepod-16', '--base-docker-image=python:3.13-slim'),
    *(f'--script-dir={cache}/gke', '--max-restarts=5'),
    '--command=pip install --quiet "jax[tpu]" -e ".[gcs]" && python -m '
    'ms_ranas_jax.main --coordinator=auto --config=configs/cifar10.py '
    '--workdir=/data/demo',
  ]
  _assert_refused(_bash(launch / 'gke.sh', '--dry-run', '--x'), 'the cluster')


@pytest.mark.skipif(shutil.which('git') is None, reason='there is no git here')
def test_what_is_packed_is_what_git_does_not_ignore(launch, tmp_path):
  root = launch.parent
  (root / '.gitignore').write_text('/.cache/\nruns/\n')
  (root / 'runs').mkdir()
  (root / 'runs/large').write_text('x')
  (root / 'configs').mkdir()
  (root / 'configs/committed.py').write_text('old')

  def git(*arguments):
    who = ('-c', 'user.name=me', '-c', 'user.email=me@example.com')
    subprocess.run(['git', *who, *arguments], cwd=root, check=True)

  git('init', '--quiet')
  git('add', '.')
  git('commit', '--quiet', '-m', 'first')
  (root / 'configs/committed.py').write_text('changed')
  (root / 'configs/new one.py').write_text('new')
  end = _bash('-c', f'source "{launch}/env.sh"; pack_sources')
  assert (end.returncode, end.stderr) == (0, '')
  out = tmp_path / 'out'
  # Without a filter Python 3.12 and 3.13 warn.
  shutil.unpack_archive(root / '.cache/ms_ranas_jax.tar.gz', out, filter='data')
  assert (out / 'configs/committed.py').read_text() == 'changed'
  assert (out / 'configs/new one.py').read_text() == 'new'
  assert (out / 'launch/env.sh').is_file()
  assert not (out / 'runs').exists()
  assert not (out / '.cache').exists()


@pytest.mark.parametrize('nodes', [1, 2])
def test_a_slurm_job_would_run_on_all_nodes(launch, nodes):
  end = _bash(
    launch / 'slurm.sbatch',
    '--dry-run',
    '--config=configs/cifar10.py',
    SLURM_SUBMIT_DIR=str(launch.parent),
    SLURM_NNODES=str(nodes),
  )
  (command,) = _commands(end)
  assert command == [
    *('srun', str(launch.parent / '.venv/bin/python')),
    *('-m', 'ms_ranas_jax.main'),
    '--config=configs/cifar10.py',
    *(['--coordinator=auto'] if nodes > 1 else []),
  ]


@pytest.mark.parametrize('script', ['processes.sh', 'tpu_pod.sh', 'gke.sh'])
def test_help_of_the_other_launchers(launch, script):
  end = _bash(launch / script, '--help')
  assert (end.returncode, end.stderr) == (0, '')
  assert end.stdout.startswith(f'Usage: launch/{script}')
  assert '--dry-run' in end.stdout
  assert max(map(len, end.stdout.splitlines())) <= 80
