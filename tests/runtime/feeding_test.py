"""Examples brought in windows are those of the plan, on every device."""

import contextlib
import time

import numpy as np
import pytest

from ms_ranas_jax.runtime import feeding
from ms_ranas_jax.runtime import parallel

EPOCHS, STEPS, MOST = 2, 7, 3
IMAGES = np.arange(40 * 6, dtype=np.uint8).reshape(40, 3, 2)
DATA = {'images': IMAGES, 'labels': np.arange(40, dtype=np.int32)}
ROW = 6 + 4  # bytes of an example


def _batches(lead, batch):
  def batches(epoch):
    generator = np.random.default_rng(epoch)
    return generator.integers(0, 40, (STEPS, *lead, batch)).astype(np.int32)

  return batches


@contextlib.contextmanager
def _open(resident_bytes, devices=1, lead=(), batch=4):
  plan = feeding.Plan(EPOCHS, STEPS, _batches(lead, batch), MOST)
  with contextlib.ExitStack() as stack:
    yield (
      plan,
      feeding.open_feed(DATA, plan, devices, resident_bytes, stack),
    )


def _calls(feed, cuts):
  """Yields epoch, start and stop of calls that end with a window at most."""
  for epoch in range(EPOCHS):
    start = 0
    while start < STEPS:
      left = feed.window - start % feed.window
      stop = min(start + cuts, start + left, STEPS)
      yield epoch, start, stop
      start = stop


@pytest.mark.parametrize('lead', [(), (2,), (3, 2)])
@pytest.mark.parametrize('devices', [1, 2])
@pytest.mark.parametrize('resident', [0, 200, 10**6])
def test_every_device_sees_its_examples_of_every_step(lead, devices, resident):
  seen = 0
  with _open(resident, devices, lead) as (plan, feed):
    for epoch, start, stop in _calls(feed, 2):
      fed = feed(epoch, start, stop)
      expected = plan.batches(epoch)[start:stop]
      assert fed.indices.shape == expected.shape
      wanted = parallel.local_parts(expected, devices)
      given = parallel.local_parts(fed.indices, devices)
      for place in range(devices):
        for name, array in DATA.items():
          on_device = np.asarray(fed.data[name])
          if devices > 1:
            on_device = on_device[place]
          np.testing.assert_array_equal(
            on_device[given[place]], array[wanted[place]]
          )
        seen += stop - start
  assert seen == devices * EPOCHS * STEPS


def test_one_device_is_that_of_each_of_several_processes(monkeypatch):
  """Who judges on one device has no place on the axis of all of them."""
  monkeypatch.setattr(parallel, '_local_places', lambda _: [])
  with _open(0) as (plan, feed):
    fed = feed(0, 2, 3)
    np.testing.assert_array_equal(
      fed.data['labels'][fed.indices], plan.batches(0)[2:3]
    )


def test_data_that_fit_lie_there_as_a_whole():
  total = 40 * ROW
  with _open(total) as (_, feed):
    assert feed.window == STEPS
    assert feed(1, 2, 4).data['images'].shape == IMAGES.shape
  with _open(total - 1) as (_, feed):
    assert feed(1, 2, 3).data['images'].shape != IMAGES.shape


@pytest.mark.parametrize(
  ('resident', 'devices', 'window'),
  [
    (0, 1, 1),
    (2 * 4 * ROW, 1, 1),
    (4 * 4 * ROW, 1, 2),
    (4 * 4 * ROW - 1, 1, 1),
    (4 * 4 * ROW, 2, MOST),  # which is what a call may be
  ],
)
def test_two_windows_are_as_many_bytes_as_may_be(resident, devices, window):
  with _open(resident, devices) as (_, feed):
    assert feed.window == window
    if resident:
      images = feed(0, 0, 1).data
      used = 2 * sum(np.asarray(x).nbytes for x in images.values())
      assert used <= resident * devices


def test_the_next_window_is_filled_before_it_is_asked_for():
  asked = []

  def batches(epoch):
    asked.append(epoch)
    return _batches((), 4)(epoch)

  plan = feeding.Plan(EPOCHS, STEPS, batches, MOST)
  with contextlib.ExitStack() as stack:
    feed = feeding.open_feed(DATA, plan, 1, 0, stack)
    asked.clear()
    feed(0, STEPS - 1, STEPS)
    for _ in range(1000):  # ten seconds for the thread to come to it
      if len(asked) == 2:
        break
      time.sleep(0.01)
  assert asked == [0, 1]


def test_a_failure_of_reading_is_that_of_the_call():
  def batches(epoch):
    if epoch:
      raise OSError('the disk is gone')
    return _batches((), 4)(epoch)

  plan = feeding.Plan(EPOCHS, STEPS, batches, MOST)
  with contextlib.ExitStack() as stack:
    feed = feeding.open_feed(DATA, plan, 1, 0, stack)
    feed(0, STEPS - 1, STEPS)
    with pytest.raises(OSError, match='the disk is gone'):
      feed(1, 0, 1)
