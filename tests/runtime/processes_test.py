"""Joining processes: what is refused; tests/processes_test.py runs several."""

import pytest

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import processes


@pytest.mark.parametrize(
  ('coordinator', 'count', 'index', 'message'),
  [
    ('', 2, 0, '--num_processes=2 needs --coordinator=HOST:PORT'),
    ('localhost', 2, 0, '--coordinator=localhost: give HOST:PORT'),
    ('localhost:1', 2, 2, '--process_id=2 is none of --num_processes=2'),
  ],
)
def test_numbers_that_make_no_sense_are_refused(
  coordinator, count, index, message
):
  with pytest.raises(UsageError, match=message):
    processes.join(coordinator, count, index)


def test_one_process_is_alone():
  processes.join('', 1, 0)
  processes.wait_for_all('here')
  processes.check_same_step(3)
  assert processes.any_of(True) is True
  assert processes.any_of(False) is False
