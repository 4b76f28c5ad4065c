"""A model at hand: answers, where they stop, what is refused, its folder."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from scipy import special

from ms_ranas_jax.costs import cost
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.model import description as description_lib
from ms_ranas_jax.model import model as model_lib

TEMPERATURES = (40.0, 55.0, 60.0)  # random logits are far apart
THRESHOLDS = {0.5: (0.7, 0.6, 0.0), 1.5: (2.0, 0.9, 0.0)}


@pytest.fixture(scope='module')
def evaluated(model):
  """The model, as an evaluation leaves it."""
  evaluation = description_lib.Evaluation(
    dataset='toy',
    test_images={},
    other_images=False,
    accuracies=(0.5, 0.6, 0.7),
    num_holdout=25,
    temperatures=TEMPERATURES,
    thresholds=THRESHOLDS,
  )
  return dataclasses.replace(
    model,
    description=dataclasses.replace(model.description, evaluation=evaluation),
  )


@pytest.fixture(scope='module')
def logits(model, images):
  """Those of the whole network, (exits, images, classes)."""
  mean, std = np.array((0.5, 0.4, 0.3)), np.array((0.2, 0.3, 0.4))
  x = ((images / 255.0 - mean) / std).astype(np.float32)
  network = model.network
  return np.asarray(
    jax.jit(lambda v, x: network.apply(v, x, train=False))(model.variables, x)
  )


def _probabilities(logits, exit_):
  scaled = logits[exit_].astype(np.float64) / TEMPERATURES[exit_]
  return special.softmax(scaled, axis=-1)


def _check(answer, expected, exits, model):
  """The answer is that of these exits."""
  count = len(expected)
  np.testing.assert_allclose(answer.probabilities, expected, atol=1e-5)
  np.testing.assert_array_equal(answer.exits, exits)
  np.testing.assert_array_equal(answer.labels, expected.argmax(-1))
  assert answer.labels.dtype == answer.exits.dtype == np.int32
  assert answer.probabilities.dtype == np.float64
  assert [model.class_names[label] for label in answer.labels] == list(
    answer.names
  )
  macs = [e.macs for e in cost.network_cost(model.network).exits]
  np.testing.assert_array_equal(answer.macs, np.array(macs)[exits])
  np.testing.assert_array_equal(answer.confidence, expected.max(-1)) if (
    count == 0
  ) else np.testing.assert_allclose(
    answer.confidence, expected.max(-1), atol=1e-5
  )


@pytest.mark.parametrize('exit_', [0, 1, 2, None])
def test_an_exit_answers_for_all(evaluated, images, logits, exit_):
  last = 2 if exit_ is None else exit_
  answer = evaluated.predict(images, exit=exit_)
  exits = np.full(len(images), last)
  _check(answer, _probabilities(logits, last), exits, evaluated)


def test_a_budget_is_kept_to(evaluated, images, logits):
  macs = [e.macs for e in evaluated.exits]
  for budget, exit_ in (macs[0], 0), (macs[1] + 0.5, 1), (1e12, 2):
    answer = evaluated.predict(images, budget_macs=budget)
    exits = np.full(len(images), exit_)
    _check(answer, _probabilities(logits, exit_), exits, evaluated)
    assert answer.macs.max() <= budget
  with pytest.raises(UsageError, match=f'first exit takes {macs[0]:,}'):
    evaluated.predict(images, budget_macs=macs[0] - 1)


@pytest.mark.parametrize(
  ('choice', 'thresholds'),
  [
    ({'confidence': 0.75}, (0.75, 0.75, 0)),
    ({'confidence': (0.5, 0.9, 0.9)}, (0.5, 0.9, 0)),
    ({'q': 0.5}, THRESHOLDS[0.5]),
    ({'q': 1.5}, THRESHOLDS[1.5]),
    ({'confidence': 0.75, 'exit': 1}, (0.75, 0)),
    ({'confidence': 0.0}, (0, 0, 0)),
    ({'confidence': 1.0}, (1, 1, 0)),
  ],
  ids=str,
)
def test_images_stop_where_they_are_sure(
  evaluated, images, logits, choice, thresholds
):
  every = np.stack([_probabilities(logits, k) for k in range(len(thresholds))])
  exits = (every.max(-1) >= np.array(thresholds)[:, None]).argmax(0)
  answer = evaluated.predict(images, **choice)
  _check(answer, every[exits, np.arange(len(images))], exits, evaluated)


def test_steps_give_one_answer_after_another(evaluated, images, logits):
  for batch_size in (6, 250):
    answers = list(evaluated.steps(images, batch_size=batch_size))
    assert len(answers) == 3
    for exit_, answer in enumerate(answers):
      exits = np.full(len(images), exit_)
      _check(answer, _probabilities(logits, exit_), exits, evaluated)


def test_batches_do_not_matter(evaluated, images):
  one = evaluated.predict(images, confidence=0.75)
  for batch_size in (1, 6):
    other = evaluated.predict(images, confidence=0.75, batch_size=batch_size)
    np.testing.assert_array_equal(other.exits, one.exits)
    np.testing.assert_allclose(
      other.probabilities, one.probabilities, atol=1e-6
    )


def test_no_images(evaluated, images):
  answer = evaluated.predict(images[:0], q=0.5)
  assert answer.probabilities.shape == (0, 4)
  assert [len(a.labels) for a in evaluated.steps(images[:0])] == [0, 0, 0]


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda x: x[0], r'images\[None\]'),
    (lambda x: x / np.float32(255), '0 to 255'),
    (lambda x: x.astype(np.int64), '0 to 255'),
    (lambda x: x[:, :4], 'bring them to that size'),
    (lambda x: x[..., :1], 'bring them to that size'),
    (lambda x: x[..., 0], 'bring them to that size'),
  ],
)
def test_images_that_do_not_fit_are_refused(model, images, change, words):
  for ask in (model.predict, model.steps):
    with pytest.raises(UsageError, match=words):
      ask(change(images))


def test_grey_images_want_an_axis(model):
  grey = dataclasses.replace(
    model,
    description=dataclasses.replace(model.description, image_shape=(8, 8, 1)),
  )
  with pytest.raises(UsageError, match=r'images\[\.\.\., None\]'):
    grey.predict(np.zeros((5, 8, 8), np.uint8))


@pytest.mark.parametrize(
  ('choice', 'words'),
  [
    ({'exit': 3}, 'exit = 3: the network has exits 0 to 2'),
    ({'exit': -1}, 'exit = -1'),
    ({'exit': 1, 'budget_macs': 1e9}, 'give one of them'),
    ({'q': 0.5, 'confidence': 0.5}, 'give one of them'),
    ({'q': 0.7}, 'solved for 0.5, 1.5'),
    ({'confidence': (0.5, 0.5)}, 'each of the 3 exits'),
    ({'confidence': -0.5}, 'a number of 0 to 1'),
    ({'confidence': 90}, 'a number of 0 to 1'),
    ({'confidence': (0.5, 0.5, 3)}, 'which nobody comes up to'),
    ({'confidence': np.nan}, 'a number of 0 to 1'),
    ({'batch_size': 0}, 'at least 1'),
  ],
  ids=str,
)
def test_choices_that_cannot_be_had_are_refused(
  evaluated, images, choice, words
):
  with pytest.raises(UsageError, match=words):
    evaluated.predict(images, **choice)


def test_without_an_evaluation_there_is_no_q(model, images):
  with pytest.raises(UsageError, match="run the 'evaluate' stage"):
    model.predict(images, q=0.5)
  plain = model.predict(images, exit=0)
  assert plain.confidence.mean() > 0.8  # not calibrated


@pytest.fixture(scope='module')
def saved(evaluated, tmp_path_factory):
  """Its folder, to be left as it is."""
  folder = tmp_path_factory.mktemp('models') / 'model'
  evaluated.save(folder)
  return folder


@pytest.fixture
def folder(saved, tmp_path):
  """A copy of it, to be changed."""
  return shutil.copytree(saved, tmp_path / 'copy')


def test_a_folder_holds_all_there_is(saved, evaluated, images):
  assert sorted(p.name for p in saved.iterdir()) == [
    'model.json',
    'params.safetensors',
  ]
  loaded = model_lib.load_model(saved)
  jax.tree.map(
    np.testing.assert_array_equal, loaded.variables, evaluated.variables
  )
  assert loaded.network == evaluated.network
  assert loaded.genotype == evaluated.genotype
  written = dataclasses.replace(loaded.description, tensors=None)
  assert written == evaluated.description
  for choice in {'q': 0.5}, {'exit': 1}, {}:
    found, expected = (m.predict(images, **choice) for m in (loaded, evaluated))
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    np.testing.assert_array_equal(found.exits, expected.exits)


def test_a_work_directory_stands_for_its_model(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'run/model')
  model = model_lib.load_model(str(tmp_path / 'run'))
  assert model.class_names == ('cat', 'dog', 'owl', 'bee')


def test_a_folder_of_an_earlier_version(evaluated, tmp_path):
  """It does not say what is deployed, and its checksum is without that."""
  exits = tuple(
    dataclasses.replace(exit_, params_deployed=None)
    for exit_ in evaluated.exits
  )
  description = dataclasses.replace(evaluated.description, exits=exits)
  earlier = dataclasses.replace(evaluated, description=description)
  earlier.save(str(tmp_path / 'model'))
  written = json.loads((tmp_path / 'model/model.json').read_text())
  assert all('params_deployed' not in exit_ for exit_ in written['exits'])
  assert model_lib.load_model(tmp_path / 'model').exits == exits


def test_a_home_folder_is_expanded(evaluated, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  evaluated.save('~/copy')
  assert (tmp_path / 'copy/model.json').is_file()
  for path in '~/copy', pathlib.Path('~/copy'):
    assert model_lib.load_model(path).exits == evaluated.exits
  with pytest.raises(UsageError, match='copy holds a model already'):
    evaluated.save('~/copy')


def test_an_archived_model_is_to_be_unpacked(saved, tmp_path):
  path = shutil.make_archive(str(tmp_path / 'model'), 'gztar', saved)
  with pytest.raises(UsageError, match='is an archive; unpack it'):
    model_lib.load_model(path)


def test_a_model_is_not_written_over(saved, evaluated):
  with pytest.raises(UsageError, match='holds a model already'):
    evaluated.save(saved)


def _edit(change):
  def edit(folder):
    path = folder / 'model.json'
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))

  return edit


def _truncate(folder):
  path = folder / 'params.safetensors'
  path.write_bytes(path.read_bytes()[:-100])


def _change_a_byte(folder):
  path = folder / 'params.safetensors'
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize(
  ('damage', 'words'),
  [
    (lambda f: (f / 'model.json').unlink(), 'neither a model folder nor'),
    (lambda f: (f / 'model.json').write_text('{"format'), 'not valid JSON'),
    (lambda f: (f / 'model.json').write_text('[]'), 'no description'),
    (lambda f: (f / 'params.safetensors').unlink(), 'is missing'),
    (_truncate, 'damaged'),
    (_change_a_byte, 'checksum'),
    (_edit(lambda v: v.update(version=99)), 'version 99'),
    (_edit(lambda v: v.update(tensors=None)), 'not come to its end'),
    (_edit(lambda v: v.pop('mean')), '"mean" is no list'),
    (_edit(lambda v: v.update(mean=[0.5])), 'not of 3 channels'),
    (_edit(lambda v: v.update(std=[0.5, 0, 1])), 'not positive'),
    (_edit(lambda v: v['class_names'].pop()), 'checksum'),
    (_edit(lambda v: v['network'].update(family='vgg')), 'checksum'),
    (_edit(lambda v: v['network']['sizes'].update(channels=6)), 'checksum'),
    (_edit(lambda v: v['mean'].reverse()), 'checksum'),
    (_edit(lambda v: v['exits'][0].update(macs=5)), 'checksum'),
    (_edit(lambda v: v['exits'][0].pop('macs')), 'exits'),
    (_edit(lambda v: v['tensors']['shapes'].popitem()), 'one too many'),
    (
      _edit(lambda v: v['tensors']['shapes'].update(x=[1])),
      'x is missing',
    ),
    (
      _edit(lambda v: v['tensors']['shapes'].popitem() and None),
      'not the file',
    ),
    (
      _edit(lambda v: v['evaluation']['temperatures'].append('a')),
      '"temperatures" is no list of numbers',
    ),
    (
      _edit(lambda v: v['evaluation']['temperatures'].append(1.0)),
      'exits',
    ),
  ],
)
def test_a_damaged_folder_is_refused_in_a_sentence(folder, damage, words):
  damage(folder)
  with pytest.raises(UsageError, match=words) as caught:
    model_lib.load_model(folder)
  assert str(folder) in str(caught.value)
  assert '\n' not in str(caught.value)


def test_other_params_are_a_model_without_an_evaluation(
  saved, evaluated, images, tmp_path
):
  """What was measured of some params is not said of others."""
  loaded = model_lib.load_model(saved)
  halves = jax.tree.map(lambda x: x / 2, dict(loaded.variables))
  with pytest.raises(UsageError, match='Model.with_variables'):
    dataclasses.replace(loaded, variables=halves).save(tmp_path / 'wrong')
  assert not (tmp_path / 'wrong').exists()
  tuned = loaded.with_variables(halves)
  with pytest.raises(UsageError, match='no thresholds were solved'):
    tuned.predict(images, q=0.5)
  tuned.save(tmp_path / 'tuned')
  again = model_lib.load_model(tmp_path / 'tuned')
  assert again.description.evaluation is None and not again.description.data
  np.testing.assert_array_equal(
    again.predict(images).probabilities, tuned.predict(images).probabilities
  )
  # The same params may be saved elsewhere, with all that is known of them.
  loaded.save(tmp_path / 'copy')
  copy = model_lib.load_model(tmp_path / 'copy')
  assert copy.description == loaded.description


def test_a_model_does_not_hide_the_one_of_a_work_directory(
  saved, evaluated, tmp_path
):
  shutil.copytree(saved, tmp_path / 'run/model')
  with pytest.raises(UsageError, match='run/model holds a model already'):
    evaluated.save(tmp_path / 'run')


@pytest.mark.parametrize(
  ('sizes', 'words'),
  [
    ({'family': 'vgg'}, "network.family = 'vgg'"),
    ({'sizes': {}}, 'network.sizes has not the fields'),
    ({'sizes': None}, 'network.sizes has not the fields'),
  ],
)
def test_a_network_that_cannot_be_made_is_refused(model, sizes, words):
  description = dataclasses.replace(
    model.description, network={**model.description.network, **sizes}
  )
  with pytest.raises(UsageError, match=words):
    model_lib.network_of(description, 'somewhere')


def test_class_names_must_be_as_many_as_classes(model):
  with pytest.raises(UsageError, match='class_names has 2 entries'):
    model_lib.build_model(
      model.network, model.variables, (0.5,) * 3, (0.5,) * 3, ('a', 'b')
    )
  with pytest.raises(UsageError, match='each of 3 channels'):
    model_lib.build_model(model.network, model.variables, (0.5,), (0.5,))
  with pytest.raises(UsageError, match='those of std positive'):
    model_lib.build_model(
      model.network, model.variables, (0.5,) * 3, (0.5, np.nan, 0.5)
    )
  numbered = model_lib.build_model(
    model.network, model.variables, (0.5,) * 3, (0.5,) * 3, range(4)
  )
  assert numbered.class_names == ('0', '1', '2', '3')


_ELSEWHERE = """
import sys
import jax
import numpy as np
import ms_ranas_jax as mr
before = jax.config.jax_compilation_cache_dir
model = mr.load_model(sys.argv[1])
answer = model.predict(np.load(sys.argv[2]), q=0.5)
np.save(sys.argv[3], answer.probabilities)
print(before, jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize('chosen', ['', 'mine'])
def test_another_process_answers_the_same_and_keeps_what_it_compiled(
  saved, evaluated, images, tmp_path, chosen
):
  np.save(tmp_path / 'images.npy', images)
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XDG_CACHE_HOME': str(tmp_path / 'home'),
    'JAX_COMPILATION_CACHE_DIR': chosen and str(tmp_path / chosen),
  }
  if not chosen:
    # As a program of one's own: with all optimisations.
    for name in (
      'JAX_COMPILATION_CACHE_DIR',
      'JAX_DISABLE_MOST_OPTIMIZATIONS',
      'XLA_FLAGS',
    ):
      environment.pop(name, None)
  out = subprocess.run(
    [
      sys.executable,
      '-c',
      _ELSEWHERE,
      str(saved),
      str(tmp_path / 'images.npy'),
      str(tmp_path / 'answer.npy'),
    ],
    env=environment,
    check=True,
    capture_output=True,
    text=True,
  ).stdout.split()
  expected = str(tmp_path / (chosen or 'home/ms_ranas_jax'))
  assert out == [expected if chosen else 'None', expected]
  # Few optimisations and two devices here; one there, and all where nothing
  # is chosen.
  np.testing.assert_allclose(
    np.load(tmp_path / 'answer.npy'),
    evaluated.predict(images, q=0.5).probabilities,
    atol=1e-5,
  )
  if not chosen:
    assert list((tmp_path / 'home/ms_ranas_jax').iterdir())
