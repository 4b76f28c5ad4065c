"""The report of a run that is going on, made beside it."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax import settings
from ms_ranas_jax import watch
from ms_ranas_jax.data import datasets
from ms_ranas_jax.data import summary
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import lock

_LOSS = {'train_loss': 2.0, 'valid_loss': 2.1}
_ACCURACY = {'train_accuracy': [0.2, 0.3], 'valid_accuracy': [0.2, 0.25]}


def _config():
  config = default_config.get_config()
  for section in (config.search, config.train):
    section.epochs = 4
    section.network.update(channels=4, layers=3, nodes=1, scales=2)
  return config


@pytest.fixture
def begun(tmp_path):
  """What a search leaves in its second epoch."""
  values = settings.complete(_config())
  files.write_json(tmp_path / 'config.json', values)
  files.write_json(tmp_path / 'begun.json', {'search': False})
  summary.write(datasets.load_dataset('digits'), str(tmp_path))
  lines = [
    {'step': 11 * (epoch + 1), 'epoch': epoch, 'seconds': 1.0}
    | _LOSS
    | _ACCURACY
    for epoch in range(2)
  ]
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  files.write_text(tmp_path / 'search' / 'metrics.jsonl', text + '{"step": 23')
  return tmp_path


def _page(workdir):
  return (workdir / 'report.html').read_text(encoding='utf-8')


def test_it_says_how_far_the_run_is(begun, capsys):
  with lock.hold(str(begun)):  # as the run does
    assert watch.main([str(begun)]) == 0
  assert str(begun / 'report.html') in capsys.readouterr().err
  page = _page(begun)
  assert 'The stage search is in epoch 2 of 4, at step 22.' in page
  assert 'digits: 1,437 training and 360 test images' in page
  assert 'Search, means over each epoch.' in page
  assert 'http-equiv="refresh"' not in page
  # Nothing of the run was touched.
  left = {'config.json', 'begun.json', 'images', 'search', '.lock'}
  assert {p.name for p in begun.iterdir()} == left | {'report.html', 'figures'}


def test_before_the_first_line_there_is_a_page_as_well(begun):
  (begun / 'search' / 'metrics.jsonl').unlink()
  path, through = watch.write_report(str(begun))
  assert path == str(begun / 'report.html') and not through
  assert 'The stage search has no line of metrics yet.' in _page(begun)


def test_it_follows_until_the_run_is_through(begun, monkeypatch, capsys):
  """A page that loads itself again, until there is nothing to wait for."""
  said = []

  def sleep(_):
    assert '<meta http-equiv="refresh" content="15">' in _page(begun)
    said.append(_page(begun).count('in epoch 2 of 4'))
    if len(said) == 2:
      files.write_json(begun / 'begun.json', {'search': True, 'train': False})
    elif len(said) == 3:
      assert 'The stage search is through.' in _page(begun)
      assert 'The stage train has no line of metrics yet.' in _page(begun)
      files.write_json(begun / 'begun.json', {'search': True, 'train': True})
    elif len(said) == 4:
      assert 'The stage evaluate is not through.' in _page(begun)
      exits = [{'exit': 0, 'accuracy': 0.5, 'macs': 10}]
      files.write_json(begun / 'evaluate/anytime.json', {'exits': exits})

  monkeypatch.setattr(watch.time, 'sleep', sleep)
  assert watch.main([str(begun), '--follow']) == 0
  assert said == [1, 1, 0, 0]
  assert 'http-equiv' not in _page(begun)
  assert 'is not through' not in _page(begun)
  assert capsys.readouterr().err.count('report.html') == 4


def test_what_is_no_run_is_refused(tmp_path, capsys):
  assert watch.main([str(tmp_path)]) == 2
  assert 'there is no config.json in' in capsys.readouterr().err
  (tmp_path / 'config.json').write_text('{')
  assert watch.main([str(tmp_path)]) == 2
  assert 'is not valid JSON' in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_ends_the_same_while_it_is_watched(repo_root, tmp_path):
  command = [sys.executable, '-m', 'ms_ranas_jax.main', '--config=digits']
  command += [f'--workdir={tmp_path / "run"}']
  for section in 'search', 'train':
    for name, value in ('channels', 4), ('layers', 3), ('scales', 1):
      command.append(f'--config.{section}.network.{name}={value}')
    command.append(f'--config.{section}.epochs=2')
  environment = {**os.environ, 'PYTHONPATH': str(repo_root)}
  process = subprocess.Popen(command, env=environment, cwd=tmp_path)
  pages = set()
  try:
    while process.poll() is None:
      if (tmp_path / 'run' / 'images' / 'summary.json').is_file():
        assert watch.main([str(tmp_path / 'run')]) == 0
        pages.add(_page(tmp_path / 'run').count('The stage'))
      time.sleep(1)
  finally:
    process.kill()
  assert process.returncode == 0 and len(pages) > 1
  anytime = files.read_json(tmp_path / 'run' / 'evaluate' / 'anytime.json')
  assert np.isfinite(anytime['expected_accuracy'])
