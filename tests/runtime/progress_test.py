"""Tests of the progress of long loops."""

import io
import time

import numpy as np
import pytest
import tqdm

from ms_ranas_jax.runtime import progress


class _Clock:
  """A clock that stands still until it is told to go on."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


class _Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  clock = _Clock()
  monkeypatch.setattr(time, 'time', clock)
  monkeypatch.setattr(tqdm.std, 'time', clock)
  return clock


@pytest.fixture
def log():
  return io.StringIO()


def _lines(log):
  return log.getvalue().splitlines()


def test_a_line_says_it_all(clock, log):
  with progress.Progress('search', 400, initial=99, stream=log) as bar:
    clock.now += 60
    bar.update(1)
    clock.now += 10
    bar.update(21, {'loss': 1.23449, 'last exit': np.float32(0.25)})
  assert _lines(log) == [
    'search: 99/400 steps, 25% [00:00<?, ?step/s]',
    'search: 100/400 steps, 25% [00:00<?, ?step/s]',
    'search: 121/400 steps, 30% [00:10<02:12,  2.10step/s, loss=1.234, '
    'last exit=0.25]',
  ]


def test_lines_are_throttled_but_first_and_last_always_come(clock, log):
  with progress.Progress('train', 100, stream=log) as bar:
    for _ in range(100):
      clock.now += 1
      bar.update(1)
  done = [line.split()[1] for line in _lines(log)]
  assert done == [
    '0/100',
    '1/100',
    *(f'{n}1/100' for n in range(1, 10)),
    '100/100',
  ]


def test_the_end_says_how_long_it_took(clock, log):
  with progress.Progress('train', 3, stream=log) as bar:
    for _ in range(3):
      clock.now += 31
      bar.update(1)
  # Without the first update, which compiles.
  assert _lines(log)[-1] == 'train: 3/3 steps, 100% [01:02<00:00, 31.00s/step]'
  assert len(_lines(log)) == 4


def test_a_loop_that_stops_early_says_where(clock, log):
  with pytest.raises(KeyError):
    with progress.Progress('train', 9, stream=log) as bar:
      clock.now += 1
      bar.update(1)
      clock.now += 1
      bar.update(1)
      raise KeyError
  assert [line.split()[1] for line in _lines(log)] == ['0/9', '1/9', '2/9']


def test_rate_leaves_out_the_compilation_and_what_was_done_before(clock, log):
  with progress.Progress('search', 1000, initial=500, stream=log) as bar:
    clock.now += 100
    bar.update(10)
    for seconds, steps in (10, 20), (10, 60):
      clock.now += seconds
      bar.update(steps)
  rates = [line.split()[-1].rstrip(']') for line in _lines(log)]
  assert rates == ['?step/s', '?step/s', '2.00step/s', '4.00step/s']


def test_metrics_stay_until_others_come(clock, log):
  with progress.Progress('train', 3, stream=log) as bar:
    for metrics in ({'loss': np.float32(2)}, None, {'loss': 1}):
      clock.now += 10
      bar.update(1, metrics)
  assert [line.rpartition(' ')[2] for line in _lines(log)[1:]] == [
    'loss=2]',
    'loss=2]',
    'loss=1]',
  ]


def test_standard_error_is_the_default(capsys, clock):
  with progress.Progress('train', 2) as bar:
    bar.update(1)
    clock.now += 0.25
    bar.update(1)
  captured = capsys.readouterr()
  assert captured.out == ''
  assert 'train: 2/2 steps, 100% [00:00<00:00,  4.00step/s]' in captured.err


@pytest.mark.parametrize('stream', [io.StringIO, _Terminal])
def test_nothing_is_shown_where_it_is_disabled(stream, clock):
  stream = stream()
  with progress.Progress('train', 2, disable=True, stream=stream) as bar:
    for _ in range(2):
      clock.now += 20
      bar.update(1, {'loss': 1.0})
  assert stream.getvalue() == ''


def test_a_bar_on_a_terminal(clock):
  terminal = _Terminal()
  with progress.Progress('search', 400, initial=99, stream=terminal) as bar:
    clock.now += 60
    bar.update(1)
    clock.now += 10
    bar.update(21, {'loss': 1.234})
  last = terminal.getvalue().rstrip('\n').rpartition('\r')[2]
  assert last.startswith('search:  30%|')
  assert '121/400 [00:10<02:12,  2.10step/s, loss=1.234]' in last
  # A bar redraws its line: there is one line end, at the close.
  assert terminal.getvalue().count('\n') == 1
