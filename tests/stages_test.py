"""The stages: a small run on digits from end to end, and what describe says."""

import base64
import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax import fields as fields_lib
from ms_ranas_jax import stages
from ms_ranas_jax.baselines import cells
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import metrics

_COST = {'params', 'macs', 'flops_msdnet', 'params_deployed', 'exits'}
_EXIT_COST = {
  'exit',
  'layer',
  'macs',
  'flops_msdnet',
  'params',
  'total_params',
  'peak_activation_bytes',
  'params_deployed',
}
_PRIMITIVES = ('none', 'max_pool_3x3', 'skip_connect', 'sep_conv_3x3')
_LAYERS = 3
_EXITS = _LAYERS - 1
_CHUNK = 10
_SEARCH_STEPS = (1437 // 2) // 64
_TRAIN_STEPS = (1437 - 200) // 64


def _config(**fields):
  """The smallest networks with two scales, two exits and both cells."""
  config = default_config.get_config()
  config.num_devices = 1
  for section in (config.search, config.train):
    section.epochs = 1
    section.batch_size = 64
    section.chunk_steps = _CHUNK
    section.network.update(channels=4, layers=_LAYERS, nodes=1, scales=2)
  config.search.primitives = _PRIMITIVES
  config.update_from_flattened_dict(fields)
  return config


def _run(config, workdir):
  """Runs the stages of a config and returns what was said."""
  said = []
  stages.run_stages(config, str(workdir), said.append)
  return '\n'.join(said)


def _json(path):
  return json.loads(path.read_text(encoding='utf-8'))


def _contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
  """Of the work directory, the genotype and the images alike."""
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  edges = [['skip_connect', 0], ['skip_connect', 1]]
  value = {'normal': edges, 'normal_concat': [2]}
  value |= {'reduction': edges, 'reduction_concat': [2]}
  (tmp_path / 'g.json').write_text(json.dumps(value))
  config = _config(stages=('describe',))
  config.train.genotype = '~/g.json'
  _run(config, '~/run')
  assert _json(tmp_path / 'run/describe/train_network.json')['params'] > 0
  assert not (tmp_path / '~').exists()
  # As it was written, so that another machine may have another home folder.
  assert _json(tmp_path / 'run/config.json')['train']['genotype'] == '~/g.json'
  config.dataset.update(name='npz', dir='~/absent.npz')
  config.evaluate.dataset.update(name='npz', dir='~/other.npz')
  with pytest.raises(UsageError, match=f"'{tmp_path}/absent.npz', not a file"):
    _run(config, '~/other')


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> pathlib.Path:
  """The work directory of a run of all stages, to be left as it is."""
  workdir = tmp_path_factory.mktemp('runs') / 'tiny'
  said = _run(_config(), workdir)
  for text in ('1437 training and 360 test', str(workdir), 'search network: '):
    assert text in said
  for text in ('search found', 'train: finished 1 epochs', 'report.html'):
    assert text in said
  return workdir


@pytest.fixture
def workdir(finished, tmp_path) -> pathlib.Path:
  """A copy of it, to run stages in."""
  return shutil.copytree(finished, tmp_path / finished.name)


def test_the_work_directory_holds_what_it_should(finished):
  names = {name for name in _contents(finished) if '/checkpoints/' not in name}
  names = {re.sub(r'tensorboard/.*', 'tensorboard/', n) for n in names}
  names = {re.sub(r'figures/.*\.', 'figures/*.', n) for n in names}
  assert names == {
    '.lock',
    'begun.json',
    'config.json',
    'describe/search_network.json',
    'describe/train_network.json',
    'images/examples.npz',
    'images/summary.json',
    'search/metrics.jsonl',
    'search/tensorboard/',
    'search/alphas.npz',
    'search/genotype.json',
    'model/model.json',
    'model/params.safetensors',
    'train/genotype.json',
    'train/metrics.jsonl',
    'train/tensorboard/',
    'evaluate/anytime.json',
    'evaluate/budgeted.json',
    'evaluate/classes.json',
    'evaluate/predictions.npz',
    'figures/*.svg',
    'figures/*.png',
    'report.html',
  }
  for stage, step in ('search', _SEARCH_STEPS), ('train', _TRAIN_STEPS):
    assert (finished / stage / 'checkpoints' / str(step)).is_dir()


def test_the_whole_config_is_written(finished):
  written = _json(finished / 'config.json')
  assert written == json.loads(json.dumps(_config().to_dict()))


def _check_cost(cost, num_exits):
  assert set(cost) == _COST
  assert len(cost['exits']) == num_exits
  for index, exit_ in enumerate(cost['exits']):
    assert set(exit_) == _EXIT_COST
    assert all(type(value) is int for value in exit_.values())
    assert exit_['exit'] == index
    assert exit_['total_params'] == cost['params']
  # Costs are cumulative, and the last exit needs the whole network.
  for name in 'layer', 'macs', 'flops_msdnet', 'params', 'params_deployed':
    values = [exit_[name] for exit_ in cost['exits']]
    assert values == sorted(set(values)), name
  assert cost['exits'][-1]['params'] == cost['params']
  assert cost['exits'][-1]['macs'] == cost['macs']
  assert cost['exits'][-1]['flops_msdnet'] == cost['flops_msdnet']


@pytest.mark.parametrize('name', ['search', 'train'])
def test_describe(finished, name):
  cost = _json(finished / f'describe/{name}_network.json')
  _check_cost(cost, _EXITS)
  assert [exit_['layer'] for exit_ in cost['exits']] == [1, 2]


def test_search_metrics(finished):
  records = metrics.read_metrics(finished / 'search/metrics.jsonl')
  assert [r['step'] for r in records] == [_CHUNK, _SEARCH_STEPS]
  for record in records:
    ends = {'derived_cost', 'normal_skips', 'reduction_skips'}
    ends = ends if record['step'] == _SEARCH_STEPS else set()
    assert set(record) == ends | {
      'expected_cost',
      'step',
      'epoch',
      'train_loss',
      'train_accuracy',
      'train_gradient_norm',
      'valid_loss',
      'valid_accuracy',
      'valid_gradient_norm',
      'seconds',
    }
    assert record['epoch'] == 0 and record['seconds'] > 0
    for half in 'train', 'valid':
      assert record[f'{half}_loss'] > 0
      assert len(record[f'{half}_accuracy']) == _EXITS
      assert all(0 <= a <= 1 for a in record[f'{half}_accuracy'])


def test_alphas(finished):
  with np.load(finished / 'search/alphas.npz') as arrays:
    alphas = dict(arrays)
  assert set(alphas) == {'normal', 'reduction'}
  for kind, values in alphas.items():
    assert values.shape == (2, 2, len(_PRIMITIVES))  # epochs + 1
    assert values.dtype == np.float32
    assert (values[0] != values[1]).all(), kind


def test_the_genotype_is_the_one_that_the_last_alphas_stand_for(finished):
  text = (finished / 'search/genotype.json').read_text()
  value = json.loads(text)
  assert set(value) == {
    'normal',
    'normal_concat',
    'reduction',
    'reduction_concat',
  }
  with np.load(finished / 'search/alphas.npz') as arrays:
    for kind in 'normal', 'reduction':
      last = np.where(
        np.array(_PRIMITIVES) == 'none', -np.inf, arrays[kind][-1]
      ).argmax(axis=1)
      found = {state: operation for operation, state in value[kind]}
      assert found == {0: _PRIMITIVES[last[0]], 1: _PRIMITIVES[last[1]]}
      assert value[f'{kind}_concat'] == [2]
  assert (finished / 'train/genotype.json').read_text() == text
  assert cells.load_genotype(str(finished / 'train/genotype.json'))


def test_train_metrics(finished):
  records = metrics.read_metrics(finished / 'train/metrics.jsonl')
  assert [r['step'] for r in records] == [_CHUNK, _TRAIN_STEPS]
  every = {
    'step',
    'epoch',
    'train_loss',
    'train_accuracy',
    'train_gradient_norm',
    'learning_rate',
    'seconds',
  }
  assert set(records[0]) == every
  assert set(records[1]) == every | {'holdout_loss', 'holdout_accuracy'}
  for record in records:
    assert record['epoch'] == 0
    assert record['learning_rate'] == pytest.approx(0.025)
    assert len(record['train_accuracy']) == _EXITS
  assert len(records[1]['holdout_accuracy']) == _EXITS


def test_anytime(finished):
  anytime = _json(finished / 'evaluate/anytime.json')
  cost = _json(finished / 'describe/train_network.json')
  assert set(anytime) == {
    'dataset',
    'num_examples',
    'exits',
    'expected_accuracy',
    'budget_range',
    'other_images',
    'test_images',
  }
  assert anytime['other_images'] is False
  assert (anytime['dataset'], anytime['num_examples']) == ('digits', 360)
  assert anytime['budget_range'] == [0, cost['macs']]
  for exit_ in anytime['exits']:
    assert set(exit_) == _EXIT_COST | {
      'accuracy',
      'loss',
      'temperature',
      'calibration_error_before',
      'calibration_error',
    }
    assert (360 * exit_['accuracy']) == pytest.approx(
      round(360 * exit_['accuracy']), abs=1e-4
    )
    assert exit_['loss'] > 0
  assert [
    {name: exit_[name] for name in _EXIT_COST} for exit_ in anytime['exits']
  ] == cost['exits']
  # Budgets from nothing to the last exit: chance below the first exit, then
  # the accuracy of the first.
  reached = cost['exits'][0]['macs'] / cost['macs']
  assert anytime['expected_accuracy'] == pytest.approx(
    0.1 * reached + anytime['exits'][0]['accuracy'] * (1 - reached)
  )


def test_classes_and_predictions(finished):
  anytime = _json(finished / 'evaluate/anytime.json')
  classes = _json(finished / 'evaluate/classes.json')
  with np.load(finished / 'evaluate/predictions.npz') as arrays:
    written = dict(arrays)
  digits = [str(number) for number in range(10)]
  assert classes['class_names'] == written['class_names'].tolist() == digits
  assert sum(classes['images']) == len(written['label']) == 360
  assert classes['images'] == np.bincount(written['label']).tolist()
  assert written['confidence'].shape == (_EXITS, 360)
  assert 0 < written['confidence'].min() <= written['confidence'].max() <= 1
  for exit_, answers, of_classes in zip(
    anytime['exits'],
    written['prediction'],
    classes['accuracies'],
    strict=True,
  ):
    right = answers == written['label']
    assert exit_['accuracy'] == pytest.approx(right.mean())
    assert of_classes == pytest.approx(
      [right[written['label'] == number].mean() for number in range(10)]
    )
  table = np.zeros((10, 10), int)
  np.add.at(table, (written['label'], written['prediction'][-1]), 1)
  assert classes['confusion'] == table.tolist()


def test_budgeted(finished):
  budgeted = _json(finished / 'evaluate/budgeted.json')
  cost = _json(finished / 'describe/train_network.json')
  assert set(budgeted) == {'num_holdout', 'points'}
  assert budgeted['num_holdout'] == 200
  assert len(budgeted['points']) == 39
  first, last = (exit_['macs'] for exit_ in cost['exits'])
  for point in budgeted['points']:
    assert set(point) == {'q', 'accuracy', 'macs', 'fractions', 'thresholds'}
    assert len(point['thresholds']) == _EXITS
    assert point['thresholds'][-1] == 0
    assert 0 <= point['accuracy'] <= 1
    assert len(point['fractions']) == _EXITS
    assert sum(point['fractions']) == pytest.approx(1)
    assert point['macs'] == pytest.approx(
      np.dot(point['fractions'], [first, last])
    )
  qs = [point['q'] for point in budgeted['points']]
  assert qs == pytest.approx([p / 20 for p in range(1, 40)])


def test_the_report_is_one_file(finished):
  """It points to nothing outside of itself."""
  markup = (finished / 'report.html').read_text(encoding='utf-8')
  links = re.findall(r'(?:src|href|srcset|action|data)\s*=\s*"([^"]*)"', markup)
  assert links
  for link in links:
    assert link.startswith(('data:', '#')), link[:80]
  assert not re.search(r'url\(|@import|<script|<link|<iframe', markup)
  images = [link for link in links if link.startswith('data:')]
  drawn = [base64.b64decode(image.split(',', 1)[1]) for image in images]
  figures = sorted((finished / 'figures').glob('*.svg'))
  assert len(figures) == len(drawn) >= 10
  for svg in figures:
    assert svg.with_suffix('.png').is_file()
  for svg in drawn:
    text = svg.decode('utf-8')
    assert not re.search(r'(?:href|src)="(?!#|data:)', text)
  for word in 'Results', 'Network', 'Cells', 'Training', 'Search', 'Config':
    assert f'>{word}</h2>' in markup


def test_running_again_changes_nothing(workdir):
  before = _contents(workdir)
  _run(_config(), workdir)
  after = _contents(workdir)
  assert sorted(after) == sorted(before)
  assert [name for name in after if after[name] != before[name]] == []


@pytest.mark.parametrize(
  ('stage', 'folder'),
  [
    ('describe', 'describe'),
    ('evaluate', 'evaluate'),
    ('report', 'figures'),
  ],
)
def test_a_stage_can_run_alone(workdir, stage, folder):
  """From what the stages before it wrote, it writes the same again."""
  before = _contents(workdir)
  shutil.rmtree(workdir / folder)
  _run(_config(stages=(stage,)), workdir)
  after = _contents(workdir)
  assert sorted(after) == sorted(before)
  # The config and the report, which shows it, say which stages ran.
  expected = (
    {'config.json', 'report.html'} if folder == 'figures' else {'config.json'}
  )
  assert {name for name in after if after[name] != before[name]} == expected
  assert _json(workdir / 'config.json') == json.loads(before['config.json']) | {
    'stages': [stage]
  }


def test_a_changed_field_is_refused(workdir):
  before = _contents(workdir)
  with pytest.raises(UsageError, match=r'another config: seed was 0, now 1;'):
    _run(_config(seed=1), workdir)
  assert _contents(workdir) == before


@pytest.mark.parametrize(
  'fields',
  [
    {'num_devices': 2},
    {'lowering': 'conv'},
    {'evaluate.batch_size': 7},
    {'evaluate.budget_range': (1000, 2000)},
    {'stages': ('evaluate',), 'num_devices': 0},
    {'stages': ()},
  ],
  ids=repr,
)
def test_what_decides_nothing_may_change(workdir, fields):
  """How fast, and which stages: not what comes out."""
  _run(_config(**{'stages': ('describe',)} | fields), workdir)
  written = fields_lib.flatten(_json(workdir / 'config.json'))
  for name, value in fields.items():
    assert written[name] == json.loads(json.dumps(value))


def test_what_was_searched_elsewhere_is_trained_as_one_likes(workdir):
  """After a search alone no field of the training is bound."""
  for folder in 'train', 'model', 'evaluate', 'figures':
    shutil.rmtree(workdir / folder)
  before = _contents(workdir)
  config = _config(**{'train.learning_rate': 0.05, 'dataset.holdout': 100})
  config.train.network.update(channels=6, layers=2)
  config.stages = ('search', 'describe')
  assert 'was found before' in _run(config, workdir)
  after = _contents(workdir)
  changed = {n for n in before if after[n] != before[n]}
  assert changed == {
    'begun.json',
    'config.json',
    'describe/train_network.json',
  }


@pytest.mark.slow
def test_the_same_seed_finds_the_same_cell(finished, tmp_path):
  _run(_config(stages=('search',)), tmp_path)
  for name in 'alphas.npz', 'genotype.json':
    again = (tmp_path / 'search' / name).read_bytes()
    assert again == (finished / 'search' / name).read_bytes()


@pytest.mark.slow
def test_where_images_lie_changes_no_bit(tmp_path):
  """Of the search, of the training, and of what a choice by area judges."""
  fields = {'search.select': 'area', 'search.candidates.random': 2}
  runs = {'all': 2**31, 'few': 20_000}
  for name, resident_bytes in runs.items():
    config = _config(stages=('search', 'train'), **fields)
    config.dataset.resident_bytes = resident_bytes
    _run(config, tmp_path / name)
  for name in 'search/alphas.npz', 'search/genotype.json':
    there = (tmp_path / 'few' / name).read_bytes()
    assert there == (tmp_path / 'all' / name).read_bytes()
  judged = [_json(tmp_path / name / 'search/candidates.json') for name in runs]
  assert judged[0] == judged[1]
  params = [
    (tmp_path / name / 'model/params.safetensors').read_bytes() for name in runs
  ]
  assert params[0] == params[1]


def test_a_published_cell_is_trained_without_a_search(tmp_path):
  """Only what its stages need is looked at."""
  config = _config(stages=('describe',))
  config.train.genotype = 'NASNet'
  config.train.network.nodes = 5
  said = _run(config, tmp_path)
  assert 'train network: ' in said
  _check_cost(_json(tmp_path / 'describe/train_network.json'), _EXITS)


def test_describe_of_darts(tmp_path, repo_root):
  """The counts of the reference code, with no dataset on the disk."""
  namespace = {}
  path = repo_root / 'configs/darts.py'
  exec(compile(path.read_text(), str(path), 'exec'), namespace)
  config = namespace['get_config']()
  config.stages = ('describe',)
  config.dataset.dir = str(tmp_path / 'no/dataset')
  config.train.genotype = 'DARTS_V2'
  workdir = tmp_path / 'darts'
  said = _run(config, workdir)
  search = _json(workdir / 'describe/search_network.json')
  train = _json(workdir / 'describe/train_network.json')
  _check_cost(search, 1)
  _check_cost(train, 1)
  assert search['params'] == 1_930_618
  assert train['params'] == 3_349_342
  assert train['macs'] == 528_359_040
  assert 'search network: 1,930,618 params' in said
  assert 'train network: 3,349,342 params, 528,359,040 macs' in said
  # And the table of exits, under its heads.
  table = said.split('528,359,040 macs\n')[1]
  assert 'params in all' in table.splitlines()[0]
  assert '528,359,040' in table.splitlines()[1]


def test_describe_leaves_out_a_network_that_is_not_known(tmp_path):
  _run(_config(stages=('describe',)), tmp_path)
  assert sorted(_contents(tmp_path)) == [
    '.lock',
    'begun.json',
    'config.json',
    'describe/search_network.json',
  ]


def test_describe_of_exits_after_chosen_layers(tmp_path):
  config = _config(stages=('describe',))
  config.search.network.update(layers=4, exits=(1,))
  _run(config, tmp_path)
  cost = _json(tmp_path / 'describe/search_network.json')
  # The last layer's classifier is always there.
  assert [exit_['layer'] for exit_ in cost['exits']] == [1, 3]


@pytest.mark.slow
def test_a_random_search_of_two_seeds(tmp_path):
  """Through the program, on digits: what is written, said and shown."""
  config = _config(stages=('search', 'report'))
  config.search.update(method='random', num_seeds=2, batch_size=256)
  config.search.candidates.update(random=3, images=256)
  config.search.network.scales = 1
  said = _run(config, tmp_path)
  content = _json(tmp_path / 'search/candidates.json')
  assert content['images'] == {'0': 256, '1': 256}
  assert (content['left'], len(content['candidates'])) == (0, 3)
  (best,) = (c for c in content['candidates'] if c['chosen'])
  assert best['score'] == max(c['score'] for c in content['candidates'])
  assert best['genotype'] == _json(tmp_path / 'search/genotype.json')
  # The network to be trained has as many exits; its macs count.
  assert content['network'] == 'train'
  compared = _json(tmp_path / 'search/seeds.json')
  assert [record['seed'] for record in compared['seeds']] == [0, 1]
  for text in (
    'the best of 3 candidates; area over budgets of 0 to ',
    'two seeds keep the same edges in 100% of all cases',
    f'random {best["sources"][0]["random"]}',
  ):
    assert text in said
  figures = {path.name for path in (tmp_path / 'figures').glob('*.svg')}
  assert {'search_candidates.svg', 'search_seeds.svg'} <= figures
  assert 'search_cost.svg' not in figures
  before = _contents(tmp_path)
  _run(config, tmp_path)
  assert _contents(tmp_path) == before


def test_a_hypernetwork_is_described_and_not_the_mixed_network(tmp_path):
  """Which such a search does not compute."""
  config = _config(stages=('describe', 'report'))
  config.search.update(method='ghn', primitives=('none', 'skip_connect'))
  said = _run(config, tmp_path)
  assert re.search(r'search: a hypernetwork of [\d,]+ params', said)
  assert 'search network' not in said
  assert not (tmp_path / 'describe/search_network.json').exists()
  assert (tmp_path / 'report.html').is_file()


def test_a_class_without_images_is_refused_before_anything_starts(tmp_path):
  config = _config()
  config.dataset.train_images = 210
  config.train.update(class_weights='balanced', batch_size=2)
  config.search.batch_size = 2
  with pytest.raises(UsageError, match='^train.class_weights = .* no image'):
    _run(config, tmp_path / 'new')
  assert not (tmp_path / 'new').exists()


def test_a_choice_that_cannot_be_made_is_refused_before_the_search(tmp_path):
  config = _config()
  config.search.method = 'random'
  config.search.candidates.random = 0
  with pytest.raises(UsageError, match='search.candidates.random = 0'):
    _run(config, tmp_path)
  assert not list(tmp_path.iterdir())
