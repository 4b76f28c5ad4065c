"""Tests of the metrics of a run."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX import proto

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import metrics


def _events(directory):
  """Returns the TensorBoard events of a stage, oldest file first."""
  events = []
  for path in sorted((directory / 'tensorboard').iterdir()):
    data = path.read_bytes()
    # A record: length (8 bytes), its checksum (4), the event, its checksum (4).
    while data:
      length = int.from_bytes(data[:8], 'little')
      events.append(proto.event_pb2.Event.FromString(data[12 : 12 + length]))
      data = data[16 + length :]
  return events


def _scalars(directory):
  return [
    (event.step, value.tag, value.simple_value)
    for event in _events(directory)
    for value in event.summary.value
  ]


def test_writes_lines_and_events(tmp_path):
  with metrics.MetricsWriter(tmp_path / 'search', -1) as writer:
    writer.write({'step': 0, 'loss': jnp.float32(2.5), 'epoch': np.int64(1)})
    writer.write(
      {
        'step': 10,
        'accuracy': np.array([0.25, 0.5]),
        'accuracy_by_seed': [0.125, 0.875],
      }
    )
    # Before the close: each line is on its way to the disk at once.
    records = metrics.read_metrics(writer.path)
  assert records == [
    {'step': 0, 'loss': 2.5, 'epoch': 1},
    {
      'step': 10,
      'accuracy': [0.25, 0.5],
      'accuracy_by_seed': [0.125, 0.875],
    },
  ]
  assert writer.path == tmp_path / 'search' / 'metrics.jsonl'
  assert _scalars(tmp_path / 'search') == [
    (0, 'loss', 2.5),
    (0, 'epoch', 1.0),
    (10, 'accuracy/exit_0', 0.25),
    (10, 'accuracy/exit_1', 0.5),
    (10, 'accuracy/seed_0', 0.125),
    (10, 'accuracy/seed_1', 0.875),
  ]


def test_a_resumed_run_has_no_step_twice(tmp_path):
  with metrics.MetricsWriter(tmp_path, -1) as writer:
    for step in (10, 20, 30):
      writer.write({'step': step, 'loss': 1.0})
  with metrics.MetricsWriter(tmp_path, 20) as writer:
    writer.write({'step': 30, 'loss': 0.5})
  assert metrics.read_metrics(writer.path) == [
    {'step': 10, 'loss': 1.0},
    {'step': 20, 'loss': 1.0},
    {'step': 30, 'loss': 0.5},
  ]
  assert len(_scalars(tmp_path)) == 4
  start = proto.event_pb2.SessionLog.START
  purged = [
    event.step
    for event in _events(tmp_path)
    if event.session_log.status == start
  ]
  # TensorBoard hides what an earlier file says of this step and later ones.
  assert purged == [0, 21]


def test_minus_one_drops_everything(tmp_path):
  with metrics.MetricsWriter(tmp_path, -1) as writer:
    writer.write({'step': 0, 'loss': 1.0})
  with metrics.MetricsWriter(tmp_path, -1) as writer:
    assert metrics.read_metrics(writer.path) == []


@pytest.mark.parametrize(
  'cut', [b'{"step": 20, "lo', b'{"step"', b'\xff', b'3']
)
def test_a_last_line_cut_short_is_dropped(tmp_path, cut):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'{"step": 10}\n' + cut)
  assert metrics.read_metrics(path) == [{'step': 10}]
  with metrics.MetricsWriter(tmp_path, 30) as writer:
    writer.write({'step': 40})
  assert path.read_bytes() == b'{"step": 10}\n{"step": 40}\n'


def test_a_last_line_without_its_end_is_kept_whole(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'{"step": 10}\n{"step": 20}')
  with metrics.MetricsWriter(tmp_path, 30) as writer:
    writer.write({'step': 40})
  assert [record['step'] for record in metrics.read_metrics(path)] == [
    10,
    20,
    40,
  ]


@pytest.mark.parametrize('line', ['{"step": 1', '[1]', '{"loss": 1.0}'])
def test_a_broken_line_is_named_and_the_file_left_alone(tmp_path, line):
  path = tmp_path / 'metrics.jsonl'
  content = f'{{"step": 10}}\n{line}\n{{"step": 30}}\n'
  path.write_text(content)
  with pytest.raises(UsageError, match=r'metrics\.jsonl, line 2'):
    metrics.read_metrics(path)
  with pytest.raises(UsageError, match=r'metrics\.jsonl, line 2'):
    metrics.MetricsWriter(tmp_path, 0)
  assert path.read_text() == content


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(UsageError, match=r'metrics\.jsonl does not exist'):
    metrics.read_metrics(tmp_path / 'metrics.jsonl')


def test_refuses_a_diverged_run(tmp_path):
  with metrics.MetricsWriter(tmp_path, -1) as writer:
    with pytest.raises(UsageError, match='accuracy/exit_1 is nan at step 5'):
      writer.write({'step': 5, 'accuracy': [0.5, float('nan')]})
    assert metrics.read_metrics(writer.path) == []


@pytest.mark.parametrize(
  'record, error',
  [
    ({'loss': 1.0}, ValueError),
    ({'step': 1.5}, ValueError),
    ({'step': 1, 'loss': 'low'}, TypeError),
    ({'step': 1, 'loss': [[1.0]]}, TypeError),
  ],
)
def test_refuses_what_is_not_a_record(tmp_path, record, error):
  with metrics.MetricsWriter(tmp_path, -1) as writer:
    with pytest.raises(error):
      writer.write(record)
    assert writer.path.read_bytes() == b''


def test_lines_are_strict_json(tmp_path):
  with metrics.MetricsWriter(tmp_path, -1) as writer:
    writer.write({'step': 1, 'loss': np.float32(0.1)})
  (line,) = writer.path.read_text().splitlines()
  assert json.loads(line)['loss'] == float(np.float32(0.1))


def test_does_not_import_tensorflow():
  code = (
    'import sys; import ms_ranas_jax.runtime.metrics; '
    'sys.exit("tensorflow" in sys.modules)'
  )
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0
