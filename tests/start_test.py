"""A training that starts from a finished network, and may keep parts of it."""

import dataclasses
import json
import shutil

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ms_ranas_jax
from ms_ranas_jax import default_config
from ms_ranas_jax import stages
from ms_ranas_jax.baselines import resnet8
from ms_ranas_jax.data import datasets
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.model import start as start_lib
from ms_ranas_jax.runtime.interruption import Interrupted
from ms_ranas_jax.training import initialization

COUNT, HELD_OUT = 120, 20


def _grouped(directory):
  """Digits in fewer classes, so many as a file says."""
  with open(f'{directory}/classes', encoding='utf-8') as file:
    classes = int(file.read())
  digits = datasets.load_dataset('digits')
  return dataclasses.replace(
    digits,
    name='grouped',
    num_classes=classes,
    train_images=digits.train_images[:COUNT],
    train_labels=digits.train_labels[:COUNT] % classes,
    test_labels=digits.test_labels % classes,
    class_names=tuple(f'{classes}_{k}' for k in range(classes)),
  )


def _folder(folder, classes):
  folder.mkdir(exist_ok=True)
  (folder / 'classes').write_text(f'{classes}')
  return str(folder)


def _config(data, **changes):
  config = default_config.get_config()
  config.stages = ('train', 'evaluate')
  config.num_devices = 1
  config.dataset.update(
    name='tests.start_test:_grouped', dir=data, holdout=HELD_OUT
  )
  config.train.update(epochs=1, batch_size=20, chunk_steps=5)
  config.train.network.update(channels=2, layers=2, nodes=1, scales=1)
  config.train.genotype = f'{data}/cells.json'
  config.update_from_flattened_dict(changes)
  return config


def _run(config, folder):
  said = []
  stages.run_stages(config, str(folder), said.append)
  return '\n'.join(said)


def _variables(folder):
  model = ms_ranas_jax.load_model(folder)
  return traverse_util.flatten_dict(model.variables, sep='/')


@pytest.fixture(name='finished', scope='module')
def _finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp('start')
  data = _folder(folder / 'ten', 10)
  edges = (('skip_connect', 0), ('sep_conv_3x3', 1))
  cells = ms_ranas_jax.Genotype(edges, (2,), edges, (2,))
  for name in 'ten', 'five':
    _folder(folder / name, 10 if name == 'ten' else 5)
    (folder / name / 'cells.json').write_text(cells.to_json())
  _run(_config(data), folder / 'run')
  return folder


def _start_config(finished, classes, **changes):
  changes = {'train.start_from': str(finished / 'run'), **changes}
  return _config(str(finished / classes), **{'train.genotype': ''} | changes)


def test_other_classes_have_new_classifiers_and_all_else_is_kept(
  finished, tmp_path
):
  """A step of next to nothing: what there is before the first one."""
  frozen = {'train.freeze': ('stem', 'cell_0')}
  config = _start_config(
    finished, 'five', **frozen, **{'train.learning_rate': 1e-9}
  )
  said = _run(config, tmp_path / 'run')
  assert f'starts from {finished}/run/model, with new classifiers' in said
  before, after = _variables(finished / 'run'), _variables(tmp_path / 'run')
  assert before.keys() == after.keys()
  kept = [n for n in before if 'params/' in n and 'exit' not in n]
  assert len(kept) > 10
  for name in kept:
    moved = np.abs(before[name] - after[name]).max()
    if name.startswith(('params/stem', 'params/cell_0')):
      assert moved == 0, name
    else:
      assert moved < 1e-6, name
  heads = [n for n in before if 'exit' in n]
  assert {after[name].shape[-1] for name in heads} == {5}
  told = json.loads((tmp_path / 'run/model/model.json').read_text())['start']
  assert told['drawn'] == sorted(heads)
  source = json.loads((finished / 'run/model/model.json').read_text())
  assert told['sha256'] == source['tensors']['sha256']
  assert source['start'] == {}


def test_the_same_classes_start_where_the_other_training_ended(
  finished, tmp_path
):
  config = _start_config(finished, 'ten', **{'train.learning_rate': 1e-9})
  said = _run(config, tmp_path / 'run')
  assert 'new classifiers' not in said
  before, after = _variables(finished / 'run'), _variables(tmp_path / 'run')
  for name in before:
    if name.startswith('params'):
      np.testing.assert_allclose(before[name], after[name], atol=1e-6)


def test_what_has_begun_goes_on_without_it(finished, tmp_path, stop_at_call):
  """Interrupted after some steps, and the model is gone."""
  source = tmp_path / 'source'
  shutil.copytree(finished / 'run', source)
  changes = {'train.start_from': str(source), 'train.epochs': 2}
  config = _start_config(finished, 'ten', **changes)
  whole = tmp_path / 'whole'
  _run(config, whole)
  with pytest.raises(Interrupted):
    stages.run_stages(
      config, str(tmp_path / 'run'), lambda _: None, stop_at_call(3)
    )
  shutil.rmtree(source)
  _run(config, tmp_path / 'run')
  found, expected = _variables(tmp_path / 'run'), _variables(whole)
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array)
  # Another one begins, and says what it lacks.
  with pytest.raises(UsageError, match='config.train.start_from'):
    _run(config, tmp_path / 'other')


def test_an_average_starts_there_as_well(finished, tmp_path):
  config = _start_config(
    finished, 'ten', **{'train.learning_rate': 1e-9, 'train.ema_decay': 0.99}
  )
  _run(config, tmp_path / 'run')
  before, after = _variables(finished / 'run'), _variables(tmp_path / 'run')
  for name in before:
    if name.startswith('params'):
      np.testing.assert_allclose(before[name], after[name], atol=1e-6)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'train.network.channels': 4},
      r'train.network.channels is 4, and 2 there; --config=configs/fine_tune',
    ),
    ({'train.genotype': 'DARTS_V1'}, 'nodes'),
    ({'train.network.family': 'resnet8'}, 'train.network.family is another'),
    ({'stages': ('search', 'train')}, 'has its cells already; remove'),
    ({'train.freeze': ('stem', 'nothing')}, "no module begins with 'nothing'"),
    ({'train.freeze': ('stem', 'cell', 'exit')}, 'leaves nothing to train'),
    (
      {'train.start_from': '', 'train.freeze': ('stem',)},
      'does nothing while config.train.start_from',
    ),
    ({'train.start_from': 'nowhere'}, 'config.train.start_from: nowhere is'),
    (
      {'train.start_from': 'cifar10_tiny', 'train.network.nodes': 2},
      'takes images of 3 channels, and these have 1',
    ),
  ],
)
def test_what_it_cannot_start_from_is_refused(
  finished, tmp_path, changes, message
):
  config = _start_config(finished, 'five', **changes)
  if changes.get('train.network.family'):
    config.train.network.update(channels=16, layers=5, nodes=2, scales=2)
  with pytest.raises(UsageError, match=message):
    _run(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_model_without_cells_is_no_start_of_a_grid(finished, tmp_path):
  network = resnet8.build_resnet8(
    resnet8.ResNet8Spec(channels=2, image_shape=(8, 8, 1), num_classes=5)
  )
  variables = ms_ranas_jax.init_variables(network, jax.random.key(0))
  folder = tmp_path / 'model'
  ms_ranas_jax.build_model(network, variables, (0.5,), (1.0,)).save(folder)
  changes = {'train.start_from': str(folder)}
  with pytest.raises(UsageError, match="family 'resnet8', which has no cells"):
    _run(_start_config(finished, 'five', **changes), tmp_path / 'run')
  # Its own family starts from it.
  config = default_config.get_fine_tuning_config(str(folder))
  config.dataset.name = 'tests.start_test:_grouped'
  config.dataset.dir = str(finished / 'five')
  start = stages.project(config).start
  assert start is not None and start.drawn  # classes of other names


def test_the_config_of_a_model_starts_from_it(finished):
  config = default_config.get_fine_tuning_config(str(finished / 'run'))
  assert config.train.start_from == str(finished / 'run')
  assert config.train.network.channels == 2
  config.dataset.name = 'tests.start_test:_grouped'
  config.dataset.dir = str(finished / 'five')
  run = stages.project(config)
  assert run.start is not None
  assert run.train_network().plan.spec.num_classes == 5


def test_a_network_of_the_package_may_be_started_from():
  model = ms_ranas_jax.load_model('cifar10_tiny')
  spec = dataclasses.replace(
    model.network.plan.spec, num_classes=3, image_shape=(48, 40, 3)
  )
  network = ms_ranas_jax.derived_network(spec, model.genotype)
  start = start_lib.read('cifar10_tiny', network, 'grid', ('a', 'b', 'c'))
  exits = [exit_.name for exit_ in network.plan.exits]
  assert {name.split('/')[1] for name in start.drawn} == set(exits)
  assert all(name.startswith('params/') for name in start.drawn)
  flat = traverse_util.flatten_dict(dict(model.variables), sep='/')
  assert flat.keys() == {*start.arrays, *start.drawn}
  for name, array in start.arrays.items():
    np.testing.assert_array_equal(array, flat[name])


def test_variables_take_the_values_that_are_given():
  variables = {'params': {'a': {'b': jnp.zeros(2)}, 'c': jnp.ones(3)}}
  variables['batch_stats'] = {}
  found = initialization.with_arrays(variables, {'params/a/b': np.arange(2.0)})
  assert jax.tree.structure(found) == jax.tree.structure(variables)
  np.testing.assert_array_equal(found['params']['a']['b'], [0, 1])
  np.testing.assert_array_equal(found['params']['c'], np.ones(3))
  for name, shape in ('params/a/b', 3), ('params/d', 2):
    with pytest.raises(ValueError, match=name):
      initialization.with_arrays(variables, {name: np.zeros(shape)})
