"""Joining processes: what is refused; tests/processes_test.py runs several."""

import jax
import pytest

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import processes


@pytest.mark.parametrize(
  ('coordinator', 'count', 'index', 'message'),
  [
    ('', 2, 0, '--num_processes=2 needs --coordinator=HOST:PORT'),
    ('', 1, 1, '--process_id=1 needs --coordinator=HOST:PORT'),
    ('localhost', 2, 0, '--coordinator=localhost: give HOST:PORT'),
    (':1', 2, 0, '--coordinator=:1: give HOST:PORT'),
    ('localhost:', 2, 0, '--coordinator=localhost:: give HOST:PORT'),
    ('localhost:x', 2, 0, '--coordinator=localhost:x: give HOST:PORT'),
    ('localhost:70000', 2, 0, 'a port of 1 to 65535'),
    ('localhost:1', 2, 2, '--process_id=2 is none of --num_processes=2'),
  ],
)
def test_numbers_that_make_no_sense_are_refused(
  coordinator, count, index, message
):
  with pytest.raises(UsageError, match=message):
    processes.join(coordinator, count, index)


@pytest.mark.parametrize(
  ('coordinator', 'count', 'index', 'message'),
  [
    (
      'here:1',
      2,
      0,
      'process 0 of 2: waiting at here:1 for 1 other, --process',
    ),
    ('here:1', 4, 0, 'at here:1 for 3 others, --process_id=1 to 3, 300 s at'),
    (
      'here:1',
      2,
      1,
      'process 1 of 2: waiting for the first one at here:1, 300',
    ),
    (
      'auto',
      1,
      0,
      'waiting for the other processes of this job, 300 s at most',
    ),
  ],
)
def test_a_process_says_what_it_waits_for(
  coordinator, count, index, message, monkeypatch
):
  said = []

  def fail(**_):
    # Before anything else, since the others may never come.
    assert message in said[0]
    raise RuntimeError('nobody came')

  monkeypatch.setattr(jax.distributed, 'initialize', fail)
  with pytest.raises(UsageError, match='did not come together .nobody came.'):
    processes.join(coordinator, count, index, said.append)
  assert len(said) == 1


def test_one_process_is_alone():
  processes.join('', 1, 0, pytest.fail)
  processes.wait_for_all('here')
  processes.check_same_step(3)
  assert processes.any_of(True) is True
  assert processes.any_of(False) is False
