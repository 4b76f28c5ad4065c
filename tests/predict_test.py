"""The command that classifies pictures."""

import json
import os
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from ms_ranas_jax import predict
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.model import model as model_lib
from ms_ranas_jax.space import genotype
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib

NAMES = ('cat', 'dog', 'owl')
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 6, 6, 3), np.uint8)


@pytest.fixture(scope='module')
def model(fill):
  edges = (('skip_connect', 0), ('max_pool_3x3', 1))
  network = network_lib.derived_network(
    grid.NetworkSpec(
      channels=4, layers=3, nodes=1, image_shape=(6, 6, 3), num_classes=3
    ),
    genotype.Genotype(edges, (2,), edges, (2,)),
    lowering='conv',
  )
  variables = fill(network, np.zeros((1, 6, 6, 3), 'f4'), train=False)
  return model_lib.build_model(
    network, variables, (0.5,) * 3, (0.25,) * 3, NAMES
  )


@pytest.fixture(scope='module')
def place(model, tmp_path_factory):
  """A folder with the model and pictures."""
  folder = tmp_path_factory.mktemp('place')
  model.save(folder / 'model')
  (folder / 'pictures').mkdir()
  for index, pixels in enumerate(PIXELS):
    Image.fromarray(pixels).save(folder / f'pictures/{index}.png')
  Image.fromarray(PIXELS[0]).convert('L').resize((12, 20)).save(
    folder / 'grey.png'
  )
  (folder / 'broken.png').write_text('no picture')
  return folder


def _call(capsys, place, *argv):
  status = predict.main(
    [f'--model={place / "model"}', *(str(arg) for arg in argv)]
  )
  out, err = capsys.readouterr()
  return status, out, err


def test_a_line_of_json_per_picture(capsys, place, model):
  status, out, err = _call(capsys, place, '--json', place / 'pictures')
  records = [json.loads(line) for line in out.splitlines()]
  assert (status, err) == (0, '')
  answer = model.predict(PIXELS)
  for index, record in enumerate(records):
    assert record.pop('milliseconds') > 0
    assert record.pop('confidence') == pytest.approx(answer.confidence[index])
    assert record == {
      'file': str(place / f'pictures/{index}.png'),
      'label': answer.labels[index],
      'name': answer.names[index],
      'exit': 1,
      'macs': model.exits[1].macs,
    }
  assert len(records) == 5


def test_a_table(capsys, place, model):
  status, out, _ = _call(capsys, place, place / 'pictures/2.png')
  head, row = out.splitlines()
  assert status == 0
  assert head.split() == ['file', 'class', 'confidence', 'exit', 'macs', 'ms']
  assert row.split()[1] == model.predict(PIXELS[2:3]).names[0]
  assert f'{model.exits[1].macs:,}' in row


def test_what_is_done_to_a_picture_is_told(capsys, place):
  status, out, err = _call(
    capsys, place, '--json', place / 'grey.png', place / 'pictures'
  )
  assert (status, len(out.splitlines())) == (0, 6)
  assert err == (
    'ms_ranas_jax: 1 picture: grey to RGB, cut to the middle, 12x20 scaled to '
    '6x6 (bicubic)\n'
  )


def test_a_broken_picture_is_told_and_the_others_are_classified(capsys, place):
  status, out, err = _call(
    capsys, place, '--json', place / 'broken.png', place / 'pictures'
  )
  assert (status, len(out.splitlines())) == (2, 5)
  assert 'broken.png is no picture' in err


@pytest.mark.parametrize(
  ('flag', 'choice'),
  [
    ('--exit=0', {'exit': 0}),
    ('--budget_macs=1e12', {'budget_macs': 1e12}),
    ('--confidence=0.9', {'confidence': 0.9}),
    ('--budget_ms=1e9', {'exit': 1}),
  ],
)
def test_where_to_stop(capsys, place, model, flag, choice):
  _, out, _ = _call(capsys, place, '--json', flag, place / 'pictures')
  exits = [json.loads(line)['exit'] for line in out.splitlines()]
  assert exits == model.predict(PIXELS, **choice).exits.tolist()


def test_a_budget_in_milliseconds_takes_the_last_exit_within():
  assert predict.exit_within([1.0, 2.0, 4.0], 2.5) == 1
  assert predict.exit_within([1.0, 2.0, 4.0], 9) == 2
  with pytest.raises(UsageError, match='first exit takes 1.00 ms'):
    predict.exit_within([1.0, 2.0], 0.5)


def test_milliseconds_are_measured_for_every_exit(model):
  found = predict.exit_milliseconds(model)
  assert len(found) == 2 and min(found) > 0


@pytest.mark.parametrize(
  ('argv', 'words'),
  [
    (['nowhere.png'], 'nowhere.png is not there'),
    (['x' * 5000], 'check the path'),
    (['--exit=7', 'grey.png'], 'exits 0 to 1'),
    (['--q=0.5', 'grey.png'], 'no thresholds were solved'),
    (['--budget_ms=0', 'grey.png'], 'on this machine'),
    (['--budget_macs=1', 'grey.png'], 'budget_macs = 1.0'),
  ],
)
def test_bad_input_is_a_sentence(capsys, place, monkeypatch, argv, words):
  monkeypatch.chdir(place)
  status, out, err = _call(capsys, place, *argv)
  assert (status, out) == (2, '')
  assert words in err and err.count('\n') == 1


def test_a_folder_without_a_model_is_refused(capsys, place):
  status = predict.main([f'--model={place}/pictures', str(place / 'grey.png')])
  assert status == 2
  assert 'neither a model folder' in capsys.readouterr().err


def test_flags_that_contradict_are_refused(capsys, place):
  with pytest.raises(SystemExit) as caught:
    _call(capsys, place, '--exit=0', '--budget_ms=3', 'x.png')
  assert caught.value.code == 2
  assert 'not allowed with' in capsys.readouterr().err


def test_it_is_a_command(place, repo_root):
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'ms_ranas_jax.predict',
      f'--model={place / "model"}',
      '--json',
      str(place / 'grey.png'),
    ],
    cwd=repo_root,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=True,
  )
  assert json.loads(done.stdout)['name'] in NAMES


def test_who_has_read_enough_may_leave(place, repo_root):
  command = f'{sys.executable} -m ms_ranas_jax.predict --model={place}/model'
  done = subprocess.run(
    ['bash', '-c', f'{command} --json {place}/pictures | true'],
    cwd=repo_root,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stderr == ''
