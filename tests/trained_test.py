"""What was trained is what is judged, reported and gone on with.

Genotype file, images and labels lie outside of the work directory; whatever
becomes of them, a number is that of the training, or there is none.
"""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax import same_run
from ms_ranas_jax import stages
from ms_ranas_jax.data import datasets
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.model import model as model_lib
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import interruption
from ms_ranas_jax.space import genotype as genotype_lib

SHAPE, CLASSES = (8, 8, 1), 3
TRAIN, TEST, HELD_OUT = 96, 40, 24
CELLS = genotype_lib.Genotype(
  (('sep_conv_3x3', 0), ('skip_connect', 1)),
  (2,),
  (('max_pool_3x3', 0), ('skip_connect', 1)),
  (2,),
)
OTHER = genotype_lib.Genotype(
  (('avg_pool_3x3', 0), ('avg_pool_3x3', 1)), (2,), CELLS.reduction, (2,)
)


def _arrays(seed=0):
  """Images that tell their class, most of the time."""
  rng = np.random.default_rng(seed)
  arrays = {}
  for part, count in ('train', TRAIN), ('test', TEST):
    labels = rng.integers(0, CLASSES, count)
    images = rng.integers(0, 120, (count, *SHAPE))
    images[np.arange(count), 2 * labels + 1] += 130
    arrays[f'x_{part}'] = images.astype(np.uint8)
    arrays[f'y_{part}'] = labels
  arrays['y_train'][:CLASSES] = np.arange(CLASSES)
  return arrays


def _config(folder, family, **changes):
  config = default_config.get_config()
  config.stages = ('train', 'evaluate')
  config.num_devices = 1
  config.dataset.update(
    name='npz', dir=str(folder / 'data.npz'), holdout=HELD_OUT
  )
  config.train.update(epochs=3, batch_size=12, chunk_steps=6)
  config.train.network.update(channels=4, scales=2)
  if family == 'msdnet':
    config.train.network.update(family='msdnet', blocks=2, base=1, growth=2)
    config.train.learning_rate = 0.1
  else:
    config.train.network.update(layers=3, nodes=1)
    config.train.genotype = str(folder / 'cells.json')
  config.update_from_flattened_dict(changes)
  return config


def _run(config, folder, stop=None):
  said = []
  stages.run_stages(config, str(folder / 'run'), said.append, stop)
  return '\n'.join(said)


def _json(folder, name):
  return json.loads((folder / 'run' / name).read_text())


def _results(folder):
  return [
    (folder / 'run' / name).read_bytes()
    for name in (
      'evaluate/anytime.json',
      'evaluate/budgeted.json',
      'evaluate/classes.json',
      'evaluate/predictions.npz',
      'model/model.json',
      'model/params.safetensors',
    )
  ]


def _write_inputs(folder):
  np.savez(folder / 'data.npz', **_arrays())
  (folder / 'cells.json').write_text(CELLS.to_json())


def _move(folder, target):
  """Copies a finished run, whose config names places in its folder."""
  shutil.copytree(folder, target, dirs_exist_ok=True)
  path = target / 'run/config.json'
  path.write_text(path.read_text().replace(str(folder), str(target)))
  return target


@pytest.fixture(scope='module', params=['grid', 'msdnet'])
def family(request):
  return request.param


@pytest.fixture(scope='module')
def finished(family, tmp_path_factory):
  folder = tmp_path_factory.mktemp(family)
  _write_inputs(folder)
  _run(_config(folder, family), folder)
  return folder


@pytest.fixture
def folder(finished, tmp_path):
  return _move(finished, tmp_path)


@pytest.mark.parametrize('family', ['grid'], indirect=True)
@pytest.mark.parametrize('fate', ['rewritten', 'gone', 'broken'])
def test_the_genotype_file_may_change_after_the_training(
  folder, family, fate, plain_figures
):
  before = _results(folder)
  path = folder / 'cells.json'
  if fate == 'gone':
    path.unlink()
  else:
    path.write_text(OTHER.to_json() if fate == 'rewritten' else 'no genotype')
  shutil.rmtree(folder / 'run/evaluate')
  for chosen in ('evaluate', 'report'), ('describe', 'train', 'evaluate'):
    _run(_config(folder, family, stages=chosen), folder)
    assert _results(folder) == before
  assert 'of c(k-2)' in (folder / 'run/report.html').read_text()
  # Beside the config's list of all operations.
  assert 'avg_pool_3x3 of' not in (folder / 'run/report.html').read_text()
  assert _json(folder, 'describe/train_network.json')['exits'] == [
    dict(exit_) for exit_ in _json(folder, 'model/model.json')['exits']
  ]


@pytest.mark.parametrize('family', ['grid'], indirect=True)
def test_a_search_that_finds_another_cell_does_not_change_what_was_trained(
  folder, family
):
  before = _results(folder)
  config = _config(folder, family, **{'train.genotype': ''})
  path = folder / 'run/config.json'
  path.write_text(json.dumps(config.to_dict()))
  (folder / 'run/search').mkdir()
  (folder / 'run/search/genotype.json').write_text(OTHER.to_json())
  said = _run(config, folder)
  assert 'is not the genotype that' in said
  assert _results(folder) == before
  # The same one as DARTS prints it is no other one.
  (folder / 'run/search/genotype.json').write_text(CELLS.to_darts())
  assert 'is not the genotype that' not in _run(config, folder)
  assert _results(folder) == before


def _another(arrays, name):
  return arrays | {name: _arrays(seed=1)[name]}


def _one_label(arrays, name):
  labels = arrays[name].copy()
  labels[-1] = (labels[-1] + 1) % CLASSES
  return arrays | {name: labels}


@pytest.mark.parametrize('chosen', [('evaluate',), ('train', 'evaluate')])
@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda a: _another(a, 'x_train'), 'train_images are other ones'),
    (lambda a: _one_label(a, 'y_train'), 'train_labels are other ones'),
    (lambda a: _another(a, 'x_test'), 'test_images are other ones'),
    (lambda a: _one_label(a, 'y_test'), 'test_labels are other ones'),
    (
      lambda a: a | {'y_test': CLASSES - 1 - a['y_test']},
      'test_labels are other ones',
    ),
    (
      lambda a: a | {k: a[k][:-1] for k in ('x_train', 'y_train')},
      r'train_images were \[96, 8, 8, 1\], now \[95, 8, 8, 1\]',
    ),
  ],
  ids=[
    'images',
    'one label',
    'test images',
    'one test label',
    'test labels reversed',
    'one image less',
  ],
)
def test_other_images_or_labels_are_refused(
  folder, family, chosen, change, words
):
  before = _results(folder)
  np.savez(folder / 'data.npz', **change(_arrays()))
  with pytest.raises(UsageError, match=words) as caught:
    _run(_config(folder, family, stages=chosen), folder)
  assert 'evaluate.dataset.name' in str(caught.value)
  assert _results(folder) == before


def test_the_same_images_elsewhere_go_on(folder, family):
  before = _results(folder)
  (folder / 'elsewhere').mkdir()
  path = shutil.move(folder / 'data.npz', folder / 'elsewhere/x.npz')
  _run(_config(folder, family, **{'dataset.dir': str(path)}), folder)
  assert _results(folder) == before


def test_other_test_images_are_judged_when_asked_for(
  folder, family, plain_figures
):
  before = _json(folder, 'evaluate/anytime.json')
  assert before['other_images'] is False
  settled = _json(folder, 'model/model.json')['evaluation']
  arrays = _arrays(seed=5)
  arrays['y_test'] = (arrays['y_test'] + 1) % CLASSES  # all wrong
  np.savez(folder / 'others.npz', **arrays)
  fields = {
    'stages': ('evaluate', 'report'),
    'evaluate.dataset.name': 'npz',
    'evaluate.dataset.dir': str(folder / 'others.npz'),
  }
  said = _run(_config(folder, family, **fields), folder)
  assert 'not those of the training' in said
  anytime = _json(folder, 'evaluate/anytime.json')
  assert anytime['other_images'] is True
  assert anytime['exits'][-1]['accuracy'] < before['exits'][-1]['accuracy']
  markup = (folder / 'run/report.html').read_text()
  assert 'other images than those of the training' in markup
  evaluation = _json(folder, 'model/model.json')['evaluation']
  assert evaluation['other_images'] is True
  # They settle nothing.
  for name in 'temperatures', 'thresholds', 'num_holdout':
    assert evaluation[name] == settled[name]


def test_a_model_from_elsewhere_is_not_taken_for_one_that_was_trained(
  folder, family
):
  model = model_lib.load_model(folder / 'run')
  shutil.rmtree(folder / 'run/model')
  model.with_variables(model.variables).save(folder / 'run/model')
  for chosen in ('evaluate',), ('train',):
    with pytest.raises(UsageError, match='was not trained in this work dir'):
      _run(_config(folder, family, stages=chosen), folder)


@pytest.mark.parametrize(
  ('trained', 'found', 'expected'),
  [
    # CIFAR-10's labels would pass for the first ones of CIFAR-100.
    ('abc', 'abd', 'd'),
    ('abc', 'cba', (2, 1, 0)),
    ('abcd', 'dba', (3, 1, 0)),
    # Labels of files count from 0, from 1, or are of a part of the classes.
    ('123', '123', (0, 1, 2)),
    ('123', '012', '0'),
    ('0123456', '135', (1, 3, 5)),
    # One has names and the other only numbers: the numbers count.
    ('abcd', '012', (0, 1, 2)),
    ('012', 'abc', (0, 1, 2)),
    ('ab', '012', '2'),
    ('abcd', '123', '1, 2, 3'),
  ],
)
def test_classes_of_other_test_images_are_known_by_their_names(
  finished, monkeypatch, trained, found, expected
):
  config = _config(finished, 'msdnet', **{'evaluate.dataset.name': 'npz'})
  config.evaluate.dataset.dir = str(finished / 'data.npz')
  run = stages.project(config, str(finished / 'run'))
  others = dataclasses.replace(run.dataset, class_names=tuple(found))
  # Labels of the training are not looked at.
  named = dataclasses.replace(
    run.dataset,
    class_names=tuple(trained),
    num_classes=len(trained),
    train_labels=run.dataset.train_labels % len(trained),
    test_labels=run.dataset.test_labels % len(trained),
  )
  object.__setattr__(run, 'dataset', named)
  monkeypatch.setattr(datasets, 'load_dataset', lambda *_, **__: others)
  if isinstance(expected, str):
    words = rf'has other classes than npz \({expected}\); name'
    with pytest.raises(UsageError, match=words):
      stages._judged_images(run)
    return
  judged = stages._judged_images(run)
  np.testing.assert_array_equal(
    judged.test_labels, np.array(expected)[others.test_labels]
  )
  assert judged.class_names == named.class_names


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'evaluate.dataset.dir': 'x'}, 'has no evaluate.dataset.name'),
    ({'evaluate.dataset.name': 'nothing'}, 'nothing'),
    ({'evaluate.dataset.name': 'digits'}, 'has other classes than npz'),
  ],
)
def test_test_images_that_do_not_fit_are_refused(folder, family, fields, words):
  with pytest.raises(UsageError, match=words):
    _run(_config(folder, family, stages=('evaluate',), **fields), folder)


def test_an_evaluation_wants_a_finished_training(tmp_path, family):
  _write_inputs(tmp_path)
  with pytest.raises(UsageError, match="run the 'train' stage"):
    _run(_config(tmp_path, family, stages=('evaluate',)), tmp_path)
  assert not (tmp_path / 'run').exists()


def test_a_training_goes_on_with_what_it_began_with(
  finished, family, tmp_path, stop_at_call
):
  """Interrupted, and its genotype file rewritten, it ends the same."""
  _write_inputs(tmp_path)
  with pytest.raises(interruption.Interrupted):
    _run(_config(tmp_path, family), tmp_path, stop_at_call(2))
  begun = _json(tmp_path, 'model/model.json')
  assert begun['tensors'] is None and begun['evaluation'] is None
  with pytest.raises(UsageError, match='not come to its end'):
    model_lib.load_model(tmp_path / 'run')
  (tmp_path / 'cells.json').write_text(OTHER.to_json())
  _run(_config(tmp_path, family), tmp_path)
  assert _results(tmp_path) == _results(finished)
  # And with other images it does not go on.
  np.savez(tmp_path / 'data.npz', **_another(_arrays(), 'x_train'))
  with pytest.raises(UsageError, match='train_images'):
    _run(_config(tmp_path, family, stages=('train',)), tmp_path)


def test_a_work_directory_of_before_goes_on(folder, family):
  """Without a model folder, and without the fields that are new."""
  before = _results(folder)
  shutil.rmtree(folder / 'run/model')
  path = folder / 'run/config.json'
  config = json.loads(path.read_text())
  del config['evaluate']['dataset']
  path.write_text(json.dumps(config))
  if family == 'grid':
    # What was trained is what the training wrote down then.
    (folder / 'cells.json').write_text(OTHER.to_json())
  with pytest.raises(UsageError, match="run the 'train' stage"):
    _run(_config(folder, family, stages=('evaluate',)), folder)
  _run(_config(folder, family), folder)
  assert _results(folder) == before


def test_a_field_that_was_renamed_is_translated(
  folder, family, monkeypatch, plain_figures
):
  monkeypatch.setattr(same_run, 'RENAMED_FIELDS', {'old.seed': 'seed'})
  path = folder / 'run/config.json'
  config = json.loads(path.read_text())
  del config['seed']
  path.write_text(json.dumps(config | {'old': {'seed': 0}}))
  _run(_config(folder, family, stages=('report',)), folder)
  config = json.loads(path.read_text())
  del config['seed']
  path.write_text(json.dumps(config | {'old': {'seed': 3}}))
  with pytest.raises(UsageError, match='seed was 3, now 0'):
    _run(_config(folder, family, stages=('report',)), folder)


def test_predictions_are_those_that_were_judged(finished):
  model = model_lib.load_model(finished / 'run')
  arrays = _arrays()
  anytime = _json(finished, 'evaluate/anytime.json')
  for exit_ in anytime['exits']:
    answer = model.predict(arrays['x_test'], exit=exit_['exit'])
    right = answer.labels == arrays['y_test']
    assert right.mean() == exit_['accuracy']
    assert set(answer.macs) == {exit_['macs']}
  written = files.read_npz(finished / 'run/evaluate/predictions.npz')
  np.testing.assert_array_equal(written['label'], arrays['y_test'])
  for exit_, (labels, confidence) in enumerate(
    zip(written['prediction'], written['confidence'], strict=True)
  ):
    answer = model.predict(arrays['x_test'], exit=exit_)
    np.testing.assert_array_equal(labels, answer.labels)
    np.testing.assert_allclose(confidence, answer.confidence, rtol=1e-6)
  assert tuple(written['class_names']) == model.description.class_names
  budgeted = _json(finished, 'evaluate/budgeted.json')
  spread = set()
  for point in budgeted['points']:
    for choice in {'q': point['q']}, {'confidence': point['thresholds']}:
      answer = model.predict(arrays['x_test'], **choice)
      right = answer.labels == arrays['y_test']
      assert right.mean() == point['accuracy']
      assert answer.macs.mean() == point['macs']
      found = np.bincount(answer.exits, minlength=len(anytime['exits'])) / TEST
      np.testing.assert_allclose(found, point['fractions'])
    spread.add(tuple(point['fractions']))
  assert len(spread) > 3
  assert model.description.evaluation.num_holdout == HELD_OUT


def test_a_model_folder_stands_alone(finished, tmp_path):
  """Copied elsewhere, with work directory and data gone, it answers alike."""
  there = _move(finished, tmp_path / 'there')
  images = _arrays()['x_test']
  expected = model_lib.load_model(there / 'run').predict(images, q=0.5)
  shutil.copytree(there / 'run/model', tmp_path / 'copy')
  shutil.rmtree(there)
  found = model_lib.load_model(tmp_path / 'copy').predict(images, q=0.5)
  for field in dataclasses.fields(expected):
    np.testing.assert_array_equal(
      getattr(found, field.name), getattr(expected, field.name)
    )
  assert os.listdir(tmp_path) == ['copy']
