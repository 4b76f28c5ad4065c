"""Signals: deferred where steps would be lost, at once elsewhere."""

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
