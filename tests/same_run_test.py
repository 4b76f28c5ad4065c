"""What may change in a work directory, and what is done again."""

import json
import pathlib
import shutil
import sys

import numpy as np
import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax import same_run
from ms_ranas_jax import stages
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.model import model as model_lib
from ms_ranas_jax.runtime import metrics

_TOYS = pathlib.Path(__file__).parent / 'toys'
_TRAINED = ('train', 'model', 'evaluate')


def _config(**fields):
  """A network that compiles within seconds, trained for an epoch."""
  config = default_config.get_config(family='my_family:FAMILY')
  config.num_devices = 1
  config.stages = ('train', 'evaluate')
  config.dataset.train_images = 260
  config.train.epochs = 1
  config.train.batch_size = 20
  config.train.network.channels = 4
  config.update_from_flattened_dict(fields)
  return config


def _run(config, workdir, **flags):
  """Runs the stages of a config and returns what was said."""
  said = []
  stages.run_stages(config, str(workdir), said.append, **flags)
  return '\n'.join(said)


def _contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


def _lies_aside(after, before, parts):
  """Whether all that there was of some parts is the same in aside/1."""
  names = [name for name in before if name.split('/')[0] in parts]
  assert names
  return all(after[f'aside/1/{name}'] == before[name] for name in names)


@pytest.fixture(scope='module', autouse=True)
def _toys():
  """The family is found by its name."""
  sys.path.insert(0, str(_TOYS))
  yield
  sys.path.remove(str(_TOYS))


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A finished run, to be left as it is."""
  workdir = tmp_path_factory.mktemp('runs') / 'toy'
  _run(_config(), workdir)
  return workdir


@pytest.fixture
def workdir(finished, tmp_path):
  """A copy of it."""
  return shutil.copytree(finished, tmp_path / finished.name)


def test_a_training_goes_on_to_more_epochs(workdir):
  before = _contents(workdir)
  longer = {'train.epochs': 2}
  with pytest.raises(UsageError, match="epochs was 1, now 2: add 'train' to"):
    _run(_config(stages=('evaluate',), **longer), workdir)
  assert _contents(workdir) == before
  said = _run(_config(stages=('train',), **longer), workdir)
  assert f'{workdir}/aside/1' in said and 'finished 2 epochs' in said
  # What was done is not done again, and the schedule is that of two epochs.
  lines = (workdir / 'train/metrics.jsonl').read_bytes()
  assert lines.startswith(before['train/metrics.jsonl'])
  records = metrics.read_metrics(workdir / 'train/metrics.jsonl')
  assert [r['epoch'] for r in records] == [0, 1]
  rates = [r['learning_rate'] for r in records]
  assert rates == pytest.approx([0.025, 0.0125])
  # The old result lies aside, whole, and nothing judges the new params yet.
  after = _contents(workdir)
  params = 'model/params.safetensors'
  assert after[params] != before[params]
  assert _lies_aside(after, before, set(_TRAINED) - {'train'})
  assert 'evaluate/anytime.json' not in after
  assert model_lib.load_model(workdir / 'aside/1').description.evaluation
  assert model_lib.load_model(workdir).description.evaluation is None
  _run(_config(**longer), workdir)
  assert model_lib.load_model(workdir).description.evaluation
  with pytest.raises(UsageError, match=r'train.epochs was 2, now 1;'):
    _run(_config(), workdir)


def test_what_was_judged_between_does_not_change_the_rest(workdir, tmp_path):
  _run(_config(**{'train.epochs': 2}), workdir)
  other = tmp_path / 'other'
  _run(_config(stages=('train',)), other)
  _run(_config(stages=('train',), **{'train.epochs': 2}), other)
  params = 'model/params.safetensors'
  assert (other / params).read_bytes() == (workdir / params).read_bytes()


def test_without_its_checkpoints_a_training_cannot_go_on(workdir):
  shutil.rmtree(workdir / 'train/checkpoints')
  with pytest.raises(UsageError, match='or say --redo: then train is done'):
    _run(_config(**{'train.epochs': 2}), workdir)


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('train.learning_rate', 0.05),
    ('dataset.holdout', 100),
    ('seed', 1),
    ('dtype', 'bfloat16'),
    ('dataset.train_images', 250),
    ('train.network.length', 3),
  ],
)
def test_what_a_training_depends_on_is_bound(finished, field, value):
  before = _contents(finished)
  config = _config(**{field: value})
  with pytest.raises(UsageError, match=f'another config: {field} was .*--redo'):
    _run(config, finished)
  assert _contents(finished) == before


def test_a_stage_is_done_again_where_that_is_said(workdir):
  before = _contents(workdir)
  config = _config(**{'train.learning_rate': 0.05})
  config.stages = ('evaluate',)
  with pytest.raises(UsageError, match='train kept in .* add it to config'):
    _run(config, workdir, redo=True)
  assert _contents(workdir) == before
  config.stages = ('train', 'evaluate')
  said = _run(config, workdir, redo=True)
  assert f'{workdir}/aside/1' in said
  after = _contents(workdir)
  assert _lies_aside(after, before, _TRAINED)
  (record,) = metrics.read_metrics(workdir / 'train/metrics.jsonl')
  assert record['learning_rate'] == pytest.approx(0.05)
  old, new = map(model_lib.load_model, (workdir / 'aside/1', workdir))
  assert old.description.evaluation and new.description.evaluation
  assert old.description.tensors != new.description.tensors
  # The same command goes on: it does not begin anew each time.
  assert 'aside' not in _run(config, workdir, redo=True)
  assert _contents(workdir) == after


def test_a_search_that_is_done_again_takes_what_read_it_along(tmp_path):
  values = _config().to_dict()
  for name in ('search/genotype.json', 'train/checkpoints/5/state'):
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text('{}')
  same_run.write_config(values, str(tmp_path))
  for stage in 'search', 'train':
    same_run.begin(str(tmp_path), stage)
  same_run.finish(str(tmp_path), 'search')
  changed = _config(**{'search.epochs': 7, 'stages': ('search',)})
  again = same_run.compare(changed.to_dict(), str(tmp_path), redo=True).again
  assert again == ('search', 'train', 'evaluate', 'export', 'report')
  # Of a genotype of its own the training has read no search.
  values['train']['genotype'] = changed.train.genotype = 'DARTS_V2'
  same_run.write_config(values, str(tmp_path))
  again = same_run.compare(changed.to_dict(), str(tmp_path), redo=True).again
  assert again == ('search', 'report')


@pytest.mark.parametrize('begun', [(), ('search',), ('search', 'train')])
def test_what_has_kept_nothing_binds_nothing(tmp_path, begun):
  """Such as after a first loss that was not finite."""
  same_run.write_config(_config().to_dict(), str(tmp_path))
  for stage in begun:
    same_run.begin(str(tmp_path), stage)
  changed = _config(**{'search.epochs': 7, 'train.clip': 1.0, 'seed': 4})
  found = same_run.compare(changed.to_dict(), str(tmp_path))
  assert found == same_run.Changes()


def test_while_it_searches_the_network_to_train_is_bound(tmp_path):
  (tmp_path / 'search/checkpoints/3').mkdir(parents=True)
  same_run.write_config(_config().to_dict(), str(tmp_path))
  same_run.begin(str(tmp_path), 'search')
  changed = _config(**{'train.network.channels': 9, 'train.clip': 1.0})
  with pytest.raises(UsageError, match='config: train.network.channels was 4'):
    same_run.compare(changed.to_dict(), str(tmp_path))
  same_run.finish(str(tmp_path), 'search')
  found = same_run.compare(changed.to_dict(), str(tmp_path))
  assert found == same_run.Changes()


def test_a_training_that_kept_nothing_begins_with_another_config(
  workdir,
):
  """Its description is there, and no params or checkpoint."""
  path = workdir / 'model/model.json'
  value = json.loads(path.read_text())
  path.write_text(json.dumps(value | {'tensors': None, 'evaluation': None}))
  shutil.rmtree(workdir / 'train/checkpoints')
  config = _config(**{'train.network.length': 1, 'stages': ('train',)})
  _run(config, workdir)
  assert json.loads(path.read_text())['network']['sizes']['length'] == 1


def test_a_report_of_another_evaluation_is_refused(workdir):
  config = _config(stages=('report',))
  config.evaluate.budget_range = (100, 2000)
  with pytest.raises(UsageError, match="add 'evaluate' to config.stages"):
    _run(config, workdir)
  config.stages = ('evaluate',)
  _run(config, workdir)
  content = json.loads((workdir / 'evaluate/anytime.json').read_text())
  assert content['budget_range'] == [100, 2000]
  with pytest.raises(UsageError, match="add 'evaluate' to config.stages"):
    _run(_config(stages=('report',)), workdir)


def test_a_finished_run_is_judged_from_elsewhere(finished, tmp_path):
  before = _contents(finished)
  config = _config(stages=('evaluate',))
  config.evaluate.model = str(finished)
  _run(config, tmp_path)
  assert _contents(finished) == before
  after = _contents(tmp_path)
  for name in 'evaluate/anytime.json', 'evaluate/budgeted.json':
    assert after[name] == before[name]
  for name in 'model/model.json', 'model/params.safetensors':
    assert after[name] == before[name]
  # It may be judged without naming the model again, but not trained on.
  _run(_config(stages=('evaluate',)), tmp_path)
  with pytest.raises(UsageError, match='was not trained in this work dir'):
    _run(_config(stages=('train',)), tmp_path)
  config.stages = ('train', 'evaluate')
  with pytest.raises(UsageError, match="config.stages has 'train'; remove"):
    _run(config, tmp_path)
  assert _contents(tmp_path).keys() == after.keys()


def test_another_model_is_not_written_over(finished, workdir):
  config = _config(stages=('evaluate',))
  config.evaluate.model = str(finished)
  _run(config, workdir)  # of the same params
  path = workdir / 'model/model.json'
  value = json.loads(path.read_text())
  value['tensors']['sha256'] = '0' * 64
  path.write_text(json.dumps(value))
  with pytest.raises(UsageError, match='is another model; name another'):
    _run(config, workdir)


def test_without_held_out_images_there_are_no_thresholds(finished, tmp_path):
  config = _config(**{'dataset.holdout': 0, 'dataset.train_images': 60})
  config.stages = ('train', 'evaluate', 'report')
  said = _run(config, tmp_path)
  assert 'there are no thresholds' in said
  assert 'digits: 60 training and 360 test images of 10 classes, ' in said
  (record,) = metrics.read_metrics(tmp_path / 'train/metrics.jsonl')
  assert record['step'] == 3 and 'holdout_loss' not in record
  budgeted = json.loads((tmp_path / 'evaluate/budgeted.json').read_text())
  assert budgeted == {'num_holdout': 0, 'points': []}
  anytime = json.loads((tmp_path / 'evaluate/anytime.json').read_text())
  for exit_ in anytime['exits']:
    assert exit_['temperature'] == 1
    assert exit_['calibration_error'] == exit_['calibration_error_before']
  page = (tmp_path / 'report.html').read_text()
  assert 'there are no thresholds and no budgeted batch curve' in page
  model = model_lib.load_model(tmp_path)
  assert sum(model.description.data['images_per_class']) == 60
  images = np.zeros((2, 8, 8, 1), np.uint8)
  assert model.predict(images, confidence=0.5).labels.shape == (2,)
  with pytest.raises(UsageError, match='no thresholds were solved'):
    model.predict(images, q=0.5)


def test_fewer_held_out_images_than_exits_are_refused(finished, tmp_path):
  config = _config(**{'dataset.holdout': 1})
  with pytest.raises(UsageError, match='holdout = 1, but the network has 2 ex'):
    _run(config, tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('stage', ['search', 'train'])
def test_augmentation_beyond_the_images_is_refused(tmp_path, stage):
  config = default_config.get_config()
  config.stages = ('search', 'train')
  config[stage].cutout = 16
  with pytest.raises(UsageError, match=f'config.{stage}.cutout = 16, but the '):
    _run(config, tmp_path)
  assert not list(tmp_path.iterdir())


def test_whatever_an_older_release_has_kept_stays_bound(tmp_path):
  """Also where another stage is the first to be run again."""
  values = _config().to_dict()
  (tmp_path / 'train/checkpoints/5').mkdir(parents=True)
  (tmp_path / 'config.json').write_text(json.dumps(values))
  same_run.write_config(values, str(tmp_path))
  same_run.begin(str(tmp_path), 'search')
  assert same_run.is_of_here(str(tmp_path), 'train')
  changed = _config(**{'train.clip': 1.0}).to_dict()
  with pytest.raises(UsageError, match='train.clip was 5.0, now 1.0'):
    same_run.compare(changed, str(tmp_path))


def test_a_result_is_set_aside_after_what_was_made_of_it(workdir, monkeypatch):
  """So that one that is killed between leaves nothing of another training."""
  moved = []
  monkeypatch.setattr(same_run.files, 'move', lambda s, _: moved.append(s))
  changes = same_run.Changes(('train', 'evaluate', 'report'))
  same_run.set_aside(str(workdir), changes)
  names = [pathlib.Path(path).name for path in moved]
  assert names == ['evaluate', 'train', 'model']
