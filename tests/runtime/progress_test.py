"""Tests of the progress of long loops."""

import io

import numpy as np
import pytest

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
def clock():
  return _Clock()


@pytest.fixture
def log():
  return io.StringIO()


def _lines(log):
  return log.getvalue().splitlines()


def test_a_line_says_it_all(clock, log):
  with progress.Progress(
    'search', 400, initial=99, clock=clock, stream=log
  ) as bar:
    clock.now += 60
    bar.update(1)
    clock.now += 10
    bar.update(21, {'loss': 1.23449, 'exits': [0.5, 0.25], 'epoch': 3})
  assert _lines(log) == [
    'search  99/400 steps  24%',
    'search  100/400 steps  25%',
    'search  121/400 steps  30%  2.1 step/s  left 2m13s  loss 1.234  '
    'exits 0.5/0.25  epoch 3',
  ]


def test_nothing_is_written_before_the_context(clock, log):
  progress.Progress('search', 10, clock=clock, stream=log)
  assert log.getvalue() == ''


def test_lines_are_throttled_but_first_and_last_always_come(clock, log):
  with progress.Progress('train', 100, clock=clock, stream=log) as bar:
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
  with progress.Progress('train', 2, clock=clock, stream=log) as bar:
    for _ in range(2):
      clock.now += 31
      bar.update(1)
  assert _lines(log)[-1] == 'train  2/2 steps  100%  31.0 s/step  took 1m02s'


def test_a_loop_that_stops_early_says_where(clock, log):
  with pytest.raises(KeyError):
    with progress.Progress('train', 9, clock=clock, stream=log) as bar:
      clock.now += 1
      bar.update(1)
      clock.now += 1
      bar.update(1)
      raise KeyError
  assert [line.split()[1] for line in _lines(log)] == ['0/9', '1/9', '2/9']


def test_rate_leaves_out_the_compilation_and_what_was_done_before(clock, log):
  with progress.Progress(
    'search', 1000, initial=500, clock=clock, stream=log
  ) as bar:
    assert bar.rate() is None
    clock.now += 100
    bar.update(10)
    assert bar.rate() is None
    clock.now += 5
    bar.update(10)
    assert bar.rate() == pytest.approx(2.0)
    clock.now += 5
    bar.update(30)
    assert bar.rate() == pytest.approx(4.0)


def test_metrics_stay_until_others_come(clock, log):
  with progress.Progress(
    'train', 3, interval=0, clock=clock, stream=log
  ) as bar:
    for metrics in ({'loss': np.float32(2)}, None, {'loss': 1}):
      clock.now += 1
      bar.update(1, metrics)
  assert [line.rpartition('  ')[2] for line in _lines(log)[1:]] == [
    'loss 2',
    'loss 2',
    'loss 1',
  ]


def test_an_empty_loop(clock, log):
  with progress.Progress('train', 0, clock=clock, stream=log):
    pass
  assert _lines(log) == ['train  0/0 steps  100%  took 0s']


def test_standard_error_is_the_default(capsys, clock):
  with progress.Progress('train', 1, unit='image', clock=clock) as bar:
    clock.now += 0.25
    bar.update(1)
  captured = capsys.readouterr()
  assert captured.out == ''
  assert 'train  1/1 image  100%  4.0 image/s' in captured.err


def test_a_bar_on_a_terminal(clock):
  terminal = _Terminal()
  with progress.Progress(
    'search', 400, initial=99, clock=clock, stream=terminal
  ) as bar:
    clock.now += 60
    bar.update(1)
    clock.now += 10
    bar.update(21, {'loss': 1.234})
  last = terminal.getvalue().rstrip('\n').rpartition('\r')[2]
  assert last.startswith('search  30%|')
  assert '121/400' in last
  assert '2.1 step/s  left 2m13s  loss 1.234' in last
  # A bar redraws its line: there is one line end, at the close.
  assert terminal.getvalue().count('\n') == 1


@pytest.mark.parametrize(
  'seconds, text',
  [
    (0, '0s'),
    (59.4, '59s'),
    (59.6, '1m00s'),
    (133, '2m13s'),
    (3725, '1h02m'),
    (273_600, '3d04h'),
  ],
)
def test_format_duration(seconds, text):
  assert progress.format_duration(seconds) == text
