"""A work directory is used by one process at a time."""

import os
import subprocess
import sys

import pytest

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import lock

_HOLDER = """
import sys
from ms_ranas_jax.runtime import lock
with lock.hold(sys.argv[1]):
  print('held', flush=True)
  sys.stdin.read()
"""


def test_another_process_is_refused_until_the_first_one_dies(tmp_path):
  workdir = tmp_path / 'run'
  holder = subprocess.Popen(
    [sys.executable, '-c', _HOLDER, str(workdir)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert holder.stdout.readline() == 'held\n'
  with pytest.raises(UsageError, match=f'in use by process {holder.pid} on '):
    with lock.hold(str(workdir)):
      pass
  holder.kill()
  holder.communicate()
  with lock.hold(str(workdir)):
    text = (workdir / lock.FILE).read_text()
  assert text.startswith(f'process {os.getpid()} on ')


def test_locks_of_other_names_do_not_meet(tmp_path):
  with lock.hold(str(tmp_path)), lock.hold(str(tmp_path), '.other'):
    for name in lock.FILE, '.other':
      with pytest.raises(lock.Held, match='is in use by process'):
        with lock.hold(str(tmp_path), name):
          pass


def test_it_is_given_back(tmp_path):
  for _ in range(2):
    with lock.hold(str(tmp_path)):
      pass
  with pytest.raises(ZeroDivisionError):
    with lock.hold(str(tmp_path)):
      raise ZeroDivisionError
  with lock.hold(str(tmp_path)):
    pass
