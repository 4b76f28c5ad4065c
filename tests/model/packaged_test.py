"""The trained networks that come with the package."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import ms_ranas_jax as mr
from ms_ranas_jax import predict
from ms_ranas_jax.baselines import cells
from ms_ranas_jax.model import model as model_lib

# A wheel is downloaded by everybody, also by who never loads these.
_MOST_BYTES = 350_000


@pytest.fixture(scope='module', params=mr.packaged_networks())
def name(request):
  """The name of each."""
  return request.param


def _card(name):
  folder = pathlib.Path(model_lib.find_folder(name))
  return (folder / 'README.md').read_text(encoding='utf-8')


def test_the_names_are_told():
  assert mr.packaged_networks() == ('cifar10_tiny',)
  with pytest.raises(mr.UsageError, match=r'package: cifar10_tiny\.$'):
    mr.load_model('cifar10_huge')


def test_it_is_loaded_by_its_name(name):
  model = mr.load_model(name)
  answer = model.predict(np.zeros((1, *model.image_shape), np.uint8), q=1.0)
  assert answer.names[0] in model.class_names
  assert _MOST_BYTES > sum(
    file.stat().st_size
    for file in pathlib.Path(model_lib.find_folder(name)).iterdir()
  )


def test_a_folder_of_that_name_comes_first(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  packaged = model_lib.find_folder(name)
  shutil.copytree(packaged, tmp_path / name)
  assert model_lib.find_folder(name) == name
  assert model_lib.find_folder(packaged) == packaged


def test_pictures_are_classified_by_its_name(name, tmp_path, capsys):
  from PIL import Image

  Image.new('RGB', (40, 40)).save(tmp_path / 'black.png')
  argv = [f'--model={name}', '--json', str(tmp_path / 'black.png')]
  assert predict.main(argv) == 0
  assert json.loads(capsys.readouterr().out)['name']


def test_the_card_says_what_the_model_says(name):
  model = mr.load_model(name)
  rows = re.findall(r'(?m)^\| (\d+) \| (.+) \|$', _card(name))
  assert len(rows) == len(model.exits)
  accuracies = model.description.evaluation.accuracies
  for exit_, (number, row) in enumerate(rows):
    cost = model.exits[exit_]
    assert int(number) == exit_
    assert row.split(' | ') == [
      f'{100 * accuracies[exit_]:.2f} %',
      f'{cost.macs:,}',
      f'{cost.params:,}',
      f'{cost.peak_activation_bytes:,}',
    ]


def test_the_card_has_the_genotype_that_was_trained(name, tmp_path):
  (text,) = re.findall(r'```json\n(.+?)```', _card(name), re.DOTALL)
  path = tmp_path / 'genotype.json'
  path.write_text(text)
  assert cells.load_genotype(str(path)) == mr.load_model(name).genotype


@pytest.mark.slow
def test_the_card_says_how_good_it_is(
  name, shared_cifar10, tmp_path, as_users_compile
):
  """All test images, by every exit, as they come from a copy of the data."""
  script = shared_cifar10 / 'unpack.py'
  subprocess.run([sys.executable, str(script), str(tmp_path)], check=True)
  dataset = mr.load_dataset('cifar10', str(tmp_path))
  model = mr.load_model(name)
  accuracies = model.description.evaluation.accuracies
  answers = model.steps(dataset.test_images)
  for answer, said in zip(answers, accuracies, strict=True):
    accuracy = np.mean(answer.labels == dataset.test_labels)
    # An answer between two classes may fall to either on another machine.
    assert accuracy == pytest.approx(said, abs=5e-4)
