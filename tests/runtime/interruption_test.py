"""Signals: deferred where steps would be lost, at once elsewhere."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ms_ranas_jax.runtime import interruption

_PROGRAM = """
import signal, sys, time
from ms_ranas_jax.runtime import interruption
mode = sys.argv[1]
with interruption.listen() as listener:
  if mode == 'busy':
    print('ready', flush=True)
    # A call that does not come back to run a handler of Python's, as that of a
    # compiler does not.
    import threading
    waiting = threading.Thread(target=time.sleep, args=(30,), daemon=True)
    waiting.start()
    waiting.join()
  with listener.deferred():
    print('ready', flush=True)
    while not (listener.requested and mode == 'once'):
      time.sleep(0.01)
  print('saved', flush=True)
print('after', flush=True)
"""


def _start(mode):
  process = subprocess.Popen(
    [sys.executable, '-c', _PROGRAM, mode],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'ready\n'
  return process


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_deferred_signal_is_a_request(number):
  process = _start('once')
  process.send_signal(number)
  out, err = process.communicate(timeout=20)
  assert (process.returncode, out) == (0, 'saved\nafter\n')
  assert 'stopping after this call, and saving' in err


def test_a_second_signal_ends_the_process():
  process = _start('never')
  process.send_signal(signal.SIGTERM)
  assert process.stderr.readline() == '\n'
  assert 'once more stops at once' in process.stderr.readline()
  assert process.poll() is None
  process.send_signal(signal.SIGTERM)
  out, _ = process.communicate(timeout=20)
  assert (process.returncode, out) == (interruption.EXIT_CODE, '')


def test_where_nothing_would_be_lost_a_signal_ends_the_process():
  process = _start('busy')
  began = time.monotonic()
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=20)
  assert time.monotonic() - began < 10
  assert (process.returncode, out) == (interruption.EXIT_CODE, '')
  assert 'goes on from the last checkpoint' in err
  assert 'Traceback' not in err


# A library in the middle of its import when the interrupt comes, which catches
# all that is an exception.
_LIBRARY = """
import os, signal, time
try:
  os.kill(os.getpid(), signal.SIGINT)
  time.sleep(30)
except BaseException:
  pass
"""
# Of a download, when it comes later.
_DOWNLOAD = """
import os, signal, time
from ms_ranas_jax.data import prepare_data
from ms_ranas_jax.data import tfds_prepare
def prepare(*_):
  try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)
  finally:
    print('cleared away', flush=True)
tfds_prepare.prepare = prepare
prepare_data.run()
"""


def _end(*arguments, folder, repo_root):
  return subprocess.run(
    [sys.executable, *arguments],
    capture_output=True,
    check=False,
    cwd=folder,
    env=os.environ
    | {'PYTHONPATH': os.pathsep.join([str(folder), str(repo_root)])},
    text=True,
    timeout=60,
  )


@pytest.mark.parametrize(
  ('library', 'arguments'),
  [
    ('absl', ('main', '--config=digits')),
    ('jax', ('main', '--config=digits')),
    ('jax', ('predict', '--model=m', 'x.png')),
    ('jax', ('convert', '--source=darts', '--weights=w', '--output=m')),
    ('numpy', ('data.prepare_data', '--dataset=cifar10')),
  ],
)
def test_a_command_that_still_imports_ends_quietly(
  library, arguments, tmp_path, repo_root
):
  (tmp_path / f'{library}.py').write_text(_LIBRARY)
  module, *flags = arguments
  end = _end(
    *('-m', f'ms_ranas_jax.{module}', *flags),
    folder=tmp_path,
    repo_root=repo_root,
  )
  assert (end.returncode, end.stdout) == (130, '')
  assert end.stderr == '\nms_ranas_jax: interrupted; nothing is lost.\n'
  made = {path.name for path in tmp_path.iterdir()} - {'__pycache__'}
  assert made == {f'{library}.py'}


def test_a_download_is_cleared_away(tmp_path, repo_root):
  end = _end(
    *('-c', _DOWNLOAD, '--dataset=cifar10'),
    folder=tmp_path,
    repo_root=repo_root,
  )
  assert (end.returncode, end.stdout) == (130, 'cleared away\n')
  assert end.stderr == '\nms_ranas_jax: interrupted; nothing is kept.\n'


def test_handlers_are_put_back():
  before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
  with interruption.listen() as listener:
    assert not listener.requested
    assert signal.getsignal(signal.SIGTERM) is not before[0]
  after = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
  assert after == before


def test_on_its_own_it_never_asks():
  listener = interruption.Interruption()
  with listener.deferred():
    assert not listener.requested
