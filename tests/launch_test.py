"""The launchers, as far as that takes no installation."""

import pathlib
import shutil
import subprocess

import pytest

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_SCRIPTS = [*sorted(_ROOT.glob('launch/*.sh')), _ROOT / '.ci/run']
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
