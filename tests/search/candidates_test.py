"""Candidates: where they come from, how they are judged, which is chosen."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax import settings
from ms_ranas_jax.costs import cost
from ms_ranas_jax.data.datasets import load_dataset
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.search import candidates
from ms_ranas_jax.search import cost_term
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space.genotype import Genotype
from ms_ranas_jax.training import initialization
from ms_ranas_jax.training import losses

FEW = {
  name: ops.PRIMITIVES[name]
  for name in ('none', 'avg_pool_3x3', 'skip_connect', 'sep_conv_3x3')
}
# Two nodes, all operations, edges within and from outside the cell.
CELLS = Genotype(
  normal=(
    ('skip_connect', 0),
    ('sep_conv_3x3', 1),
    ('avg_pool_3x3', 0),
    ('sep_conv_3x3', 2),
  ),
  normal_concat=(2, 3),
  reduction=(
    ('skip_connect', 0),
    ('avg_pool_3x3', 1),
    ('sep_conv_3x3', 0),
    ('skip_connect', 1),
  ),
  reduction_concat=(2, 3),
)
BATCH = 8


def _config(**changes):
  config = default_config.get_config()
  config.search.update(select='area', batch_size=BATCH)
  config.search.candidates.update(last_epochs=2, random=3)
  for section in (config.search, config.train):
    section.network.update(channels=4, layers=3, nodes=2, scales=1)
  config.search.primitives = tuple(FEW)
  config.update_from_flattened_dict(changes)
  return settings.parse(config)


@pytest.fixture(scope='module')
def dataset():
  digits = load_dataset('digits')
  return dataclasses.replace(
    digits,
    train_images=digits.train_images[:48],
    train_labels=digits.train_labels[:48],
  )


def _spec(config, dataset, name):
  return grid.network_spec(
    getattr(config, name).network, dataset.image_shape, dataset.num_classes
  )


def _judged(config, dataset):
  searched, derived = (_spec(config, dataset, n) for n in ('search', 'train'))
  term = cost_term.build_cost_term(config.search, derived, FEW)
  return candidates.what_is_judged(config.search, searched, derived, term, FEW)


def _params_alone(params, shapes):
  """Picks the params of the edges of `CELLS` out of those of the search."""

  def pick(path, shape):
    *folder, module, name = path = [key.key for key in path]
    leaf = params
    for key in path:
      leaf = leaf[key]
    cell, state = path[0].split('_'), path[1].removeprefix('state_')
    if cell[0] != 'cell' or not state.isdigit():
      return leaf
    number = int(state)
    operation = next(n for n in FEW if f'{module}{name}'.find(n) >= 0)
    # Edges that leave a state are stacked by node, from its first reader on.
    rows = [
      index // 2 - max(number - 1, 0)
      for index, edge in enumerate(CELLS.edges(int(cell[1]) > 0))
      if edge == (operation, number)
    ]
    leaf = np.take(leaf, rows, axis=1 if name == 'kernel' else 0)
    assert leaf.shape == shape.shape
    return leaf

  return jax.tree_util.tree_map_with_path(pick, shapes)


def _logits(network):
  return lambda variables, weights, images: network.apply(
    variables, images, weights, train=True
  )


def test_one_hot_scores_are_those_of_the_network_alone(dataset):
  """Of a network without the edges and operations that are not chosen."""
  config = _config()
  spec = _spec(config, dataset, 'search')
  mixed = network_lib.search_network(spec, FEW)
  weights = alphas_lib.one_hot_weights(CELLS, FEW)
  variables = initialization.init_variables(mixed, jax.random.key(3), weights)
  batches = np.random.default_rng(0).permutation(48)[:32].reshape(4, BATCH)
  accuracy, loss = candidates.build_score(_logits(mixed), dataset)(
    variables, weights, batches
  )
  alone = dataclasses.replace(
    network_lib.derived_network(spec, CELLS, FEW), search=True
  )
  shapes = jax.eval_shape(
    lambda: initialization.init_variables(alone, jax.random.key(0))
  )
  params = _params_alone(variables['params'], shapes['params'])
  apply = jax.jit(lambda x: alone.apply({'params': params}, x, train=True))
  right, total = np.zeros(2), np.zeros(2)
  for rows in batches:
    images = dataset.train_images[rows] / np.float32(255)
    logits = np.asarray(
      apply((images - dataset.mean) / dataset.std), np.float64
    )
    labels = dataset.train_labels[rows]
    right += (logits.argmax(-1) == labels).sum(axis=1)
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    total -= logs[:, np.arange(BATCH), labels].sum(axis=1)
  np.testing.assert_allclose(accuracy, right / 32, rtol=1e-6)
  np.testing.assert_allclose(loss, total / 32, rtol=1e-4)
  assert np.ptp(loss) > 1e-3


def test_all_candidates_share_one_program(dataset, monkeypatch):
  network = network_lib.search_network(_spec(_config(), dataset, 'search'), FEW)
  traced = []
  exit_losses = losses.exit_losses

  def watched(*args):
    traced.append(args)
    return exit_losses(*args)

  monkeypatch.setattr(losses, 'exit_losses', watched)
  score = candidates.build_score(_logits(network), dataset)
  uniform = {k: np.full((5, 4), 0.25, np.float32) for k in edges_lib.KINDS}
  batches = np.arange(BATCH)[None]
  variables = initialization.init_variables(network, jax.random.key(0), uniform)
  found = [
    score(variables, weights, batches)[1]
    for weights in (uniform, alphas_lib.one_hot_weights(CELLS, FEW))
  ]
  assert len(traced) == 1
  assert (found[0] != found[1]).all()


def test_the_images_are_whole_batches_of_the_validation_half():
  half = np.arange(100, 121)
  batches = candidates.validation_batches(_config().search, half)
  np.testing.assert_array_equal(batches, np.arange(100, 116).reshape(2, BATCH))
  few = _config(**{'search.candidates.images': 15})
  np.testing.assert_array_equal(
    candidates.validation_batches(few.search, half), [np.arange(100, 108)]
  )


def _alphas_of(genotype):
  weights = alphas_lib.one_hot_weights(genotype, FEW)
  return {kind: 5 * jnp.asarray(table) for kind, table in weights.items()}


def _with_first(operation):
  """CELLS with another operation on the first normal edge."""
  return dataclasses.replace(CELLS, normal=((operation, 0), *CELLS.normal[1:]))


def test_candidates_are_of_the_last_epochs_and_random(dataset):
  config = _config()
  first, second = _with_first('avg_pool_3x3'), _with_first('sep_conv_3x3')
  histories = {
    0: [_alphas_of(g) for g in (first, first, second, CELLS)],
    1: [_alphas_of(g) for g in (first, second, second, CELLS)],
  }
  found = candidates.gather(0, histories, _judged(config, dataset))
  by_hand, drawn = found[:2], found[2:]
  # None twice: both seeds came to the same two.
  assert [[dict(s) for s in c.sources] for c in by_hand] == [
    [{'seed': 0, 'epoch': 3}, {'seed': 1, 'epoch': 3}],
    [{'seed': 0, 'epoch': 2}, {'seed': 1, 'epoch': 2}],
  ]
  np.testing.assert_equal(
    [alphas_lib.one_hot_weights(c.genotype, FEW) for c in by_hand],
    [alphas_lib.one_hot_weights(g, FEW) for g in (CELLS, second)],
  )
  assert [c.sources for c in drawn] == [({'random': n},) for n in range(3)]
  # The alphas that a search starts from are no epoch's.
  config = _config(
    **{'search.candidates.last_epochs': 9, 'search.candidates.random': 0}
  )
  epochs = [
    source['epoch']
    for candidate in candidates.gather(
      0, {0: histories[0]}, _judged(config, dataset)
    )
    for source in candidate.sources
  ]
  assert sorted(epochs) == [1, 2, 3]


@pytest.mark.parametrize(
  ('changes', 'name', 'range_'),
  [
    ({'train.network.channels': 8}, 'train', ()),
    ({'train.network.layers': 4}, 'search', ()),
    ({'train.network.exits': 'last'}, 'search', (1e3, 1e5)),
  ],
)
def test_whose_macs_count(changes, name, range_, dataset):
  """Of the network to be trained, where its exits are as many."""
  changes = {**changes, 'search.candidates.budget_range': range_}
  config = _config(**changes)
  judged = _judged(config, dataset)
  assert judged.network == name
  network = network_lib.derived_network(
    _spec(config, dataset, name), CELLS, FEW
  )
  exits = [exit_.macs for exit_ in cost.network_cost(network).exits]
  assert judged.macs(CELLS) == exits
  assert len(exits) == 2
  low, high = judged.budget_range
  if range_:
    assert (low, high) == range_
  else:
    dearest = Genotype(
      *(
        value
        for kind in edges_lib.KINDS
        for value in (
          tuple(('sep_conv_3x3', s) for s in (0, 1, 0, 1)),
          CELLS.concat(kind == 'reduction'),
        )
      )
    )
    assert (low, high) == (0, judged.macs(dearest)[-1])
  # Chance, the first exit, the last one.
  area = (
    0.1 * (min(max(exits[0], low), high) - low)
    + 0.5 * (min(max(exits[1], low), high) - min(max(exits[0], low), high))
    + 0.75 * (high - min(max(exits[1], low), high))
  )
  assert judged.score(exits, [0.5, 0.75]) == pytest.approx(area / (high - low))


class _Interrupted(Exception):
  """Stands for a kill."""


def _fake_score(best, calls, most=10**9):
  """Judges one genotype better than all others."""
  wanted = alphas_lib.one_hot_weights(best, FEW)

  def score(variables, weights, batches):
    assert batches.shape == (1, 2)
    if len(calls) == most:
      raise _Interrupted
    calls.append(variables)
    is_best = all((weights[k] == wanted[k]).all() for k in wanted)
    return np.float32([0.2, 0.9 if is_best else 0.4]), np.float32([2, 1])

  return score


JUDGES = {7: ('params of 7', np.zeros((1, 2), int))}


def _choose(
  dataset, path, best, calls, most=10**9, judges=None, short=None, **changes
):
  config = _config(**changes)
  judged = _judged(config, dataset)
  found = candidates.gather(0, {}, judged)
  found.append(candidates.Candidate(CELLS, ({'seed': 7, 'epoch': 2},)))
  score = _fake_score(best or found[1].genotype, calls, most)
  content = candidates.choose(
    found, judged, score, judges or JUDGES, str(path), short
  )
  return json.loads(json.dumps(content, default=np.ndarray.tolist)), judged


def test_the_planted_best_is_chosen(dataset, tmp_path):
  path, calls = tmp_path / 'search/candidates.json', []
  content, judged = _choose(dataset, path, None, calls)
  assert json.loads(path.read_text()) == content
  assert calls == ['params of 7'] * 4
  assert content['left'] == 0
  assert content['images'] == {'7': 2}
  assert content['network'] == 'train'
  assert content['budget_range'] == list(judged.budget_range)
  records = content['candidates']
  assert [r['chosen'] for r in records] == [False, True, False, False]
  assert [r['sources'] for r in records] == [
    [{'random': 0}],
    [{'random': 1}],
    [{'random': 2}],
    [{'seed': 7, 'epoch': 2}],
  ]
  for record in records:
    genotype = Genotype(**record['genotype'])
    last = 0.9 if record['chosen'] else 0.4
    assert record['accuracy'] == pytest.approx([0.2, last])
    assert record['loss'] == [2, 1]
    assert record['macs'] == judged.macs(genotype)
    assert record['cost'] == record['macs'][-1]
    assert record['allowed'] is True
    assert record['score'] == pytest.approx(
      judged.score(record['macs'], [0.2, last]), rel=1e-6
    )
    assert record['by_seed'] == [
      {
        'seed': 7,
        'accuracy': record['accuracy'],
        'loss': [2, 1],
        'score': record['score'],
      }
    ]


def test_the_best_after_a_short_training_is_chosen(dataset, tmp_path):
  """Among those that are best before it; interrupted once."""
  path, trained = tmp_path / 'candidates.json', []

  def accuracies(number, spec, genotype):
    if len(trained) == 1 and spec not in trained:
      trained.append(spec)
      raise _Interrupted
    trained.append((number, genotype))
    return [0.3, 0.5 if number else 0.7]

  short = candidates.ShortTraining(2, 5, accuracies)
  found = candidates.gather(0, {}, _judged(_config(), dataset))
  with pytest.raises(_Interrupted):
    _choose(dataset, path, None, [], short=short)
  part = json.loads(path.read_text())
  assert part['left'] == 1
  assert not any(record['chosen'] for record in part['candidates'])
  content, judged = _choose(dataset, path, None, [], short=short)
  assert content['left'] == 0
  # The planted best and the first of the others; both once.
  assert [t for t in trained if isinstance(t, tuple)] == [
    (1, found[1].genotype),
    (0, found[0].genotype),
  ]
  records = content['candidates']
  assert ['short' in r for r in records] == [True, True, False, False]
  assert [r['chosen'] for r in records] == [True, False, False, False]
  for record, last in zip(records, (0.7, 0.5), strict=False):
    assert record['short'] == {
      'epochs': 5,
      'accuracy': [0.3, last],
      'score': judged.score(record['macs'], [0.3, last]),
    }
  # Other epochs are trained anew.
  trained.clear()
  content, _ = _choose(
    dataset,
    path,
    None,
    [],
    short=candidates.ShortTraining(
      4, 6, lambda number, *_: [0.3, 0.9 if number == 3 else 0.5]
    ),
  )
  assert [r['chosen'] for r in content['candidates']] == [False] * 3 + [True]
  assert {r['short']['epochs'] for r in content['candidates']} == {6}


def test_an_interrupted_choice_goes_on(dataset, tmp_path):
  whole, _ = _choose(dataset, tmp_path / 'whole.json', CELLS, [])
  path, calls = tmp_path / 'candidates.json', []
  with pytest.raises(_Interrupted):
    _choose(dataset, path, CELLS, calls, most=2)
  part = json.loads(path.read_text())
  assert (len(part['candidates']), part['left']) == (2, 2)
  assert not any(record['chosen'] for record in part['candidates'])
  again = []
  assert _choose(dataset, path, CELLS, again)[0] == whole
  assert (len(calls), len(again)) == (2, 2)
  assert path.read_bytes() == (tmp_path / 'whole.json').read_bytes()
  # What is whole is not judged again.
  _choose(dataset, path, CELLS, again)
  assert len(again) == 2
  assert path.read_bytes() == (tmp_path / 'whole.json').read_bytes()


def test_every_seed_judges_every_candidate(dataset, tmp_path):
  rows = np.zeros((1, 2), int)
  calls = []
  content, _ = _choose(
    dataset,
    tmp_path / 'c.json',
    None,
    calls,
    judges={0: ('zero', rows), 1: ('one', rows)},
  )
  assert calls == ['zero', 'one'] * 4
  for record in content['candidates']:
    assert [entry['seed'] for entry in record['by_seed']] == [0, 1]
    assert record['score'] == pytest.approx(
      np.mean([entry['score'] for entry in record['by_seed']])
    )
  best = candidates.best_of_each_seed(content['candidates'])
  chosen = Genotype(**content['candidates'][1]['genotype'])
  assert best == {0: chosen, 1: chosen}
  assert candidates.scores_of(content['candidates'], [chosen]) == [
    content['candidates'][1]['score']
  ]
  other = _with_first('sep_conv_3x3')
  assert candidates.scores_of(content['candidates'], [chosen, other]) is None


def test_what_costs_too_much_is_listed_and_not_chosen(dataset, tmp_path):
  content, judged = _choose(dataset, tmp_path / 'a.json', None, [])
  costs = [record['cost'] for record in content['candidates']]
  target = costs[-1]
  fields = {
    'search.cost.target': float(target),
    'search.cost.tolerance': 1e-6,
    'search.candidates.random': 40,
  }
  # The best one costs something else.
  best = Genotype(**content['candidates'][0]['genotype'])
  assert costs[0] != target
  content, _ = _choose(dataset, tmp_path / 'b.json', best, [], **fields)
  records = content['candidates']
  (chosen,) = (record for record in records if record['chosen'])
  assert chosen['allowed'] and chosen['cost'] == target
  for record in records:
    assert record['allowed'] == (abs(record['cost'] - target) < 1)


def test_when_nothing_costs_what_it_may(dataset, tmp_path, monkeypatch):
  judged = _judged(_config(), dataset)
  found = [candidates.Candidate(CELLS, ({'random': 0},))]
  target = 0.5 * judged.cost_term.cost(CELLS)
  section = dataclasses.replace(judged.cost_term.config, target=target)
  term = dataclasses.replace(judged.cost_term, config=section)
  judged = dataclasses.replace(judged, cost_term=term)
  with pytest.raises(UsageError, match='none of the 1 candidates costs'):
    candidates.choose(
      found, judged, _fake_score(CELLS, []), JUDGES, str(tmp_path / 'c.json')
    )


@pytest.mark.parametrize(
  'text',
  ['[]', '{}', '{"candidates": [1]}', '{"candidates": [{"genotype": {}}]}'],
)
def test_a_broken_file_is_refused(text, dataset, tmp_path):
  path = tmp_path / 'candidates.json'
  path.write_text(text)
  with pytest.raises(UsageError, match=r'candidates\.json is not what'):
    _choose(dataset, path, CELLS, [])


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'search.method': 'random', 'search.candidates.random': 0},
      "search.candidates.random = 0, but search.method = 'random'",
    ),
    (
      {'search.method': 'random', 'search.cost.weight': 0.5},
      'search.cost.weight',
    ),
    (
      {
        'search.candidates.random': 0,
        'search.candidates.last_epochs': 0,
      },
      'nothing to choose among',
    ),
    ({'search.candidates.images': 7}, 'search.candidates.images = 7'),
    ({'search.candidates.images': 25}, 'at most the 24 images'),
    (
      {
        'search.select': 'last',
        'search.candidates.last_epochs': 3,
        'search.candidates.random': 8,
        'search.candidates.images': 7,
      },
      "images = 7 does nothing while config.search.select = 'last'; set it to",
    ),
  ],
)
def test_choices_that_cannot_be_made_are_refused(changes, message, dataset):
  with pytest.raises(UsageError, match=message):
    candidates.check_selection(
      _config(**changes).search, len(dataset.train_images)
    )


def test_choices_that_can_be_made(dataset):
  for changes in (
    {},
    {'search.candidates.images': 24},
    {'search.method': 'random', 'search.select': 'last'},
  ):
    candidates.check_selection(
      _config(**changes).search, len(dataset.train_images)
    )
  assert candidates.is_by_area(_config(**{'search.method': 'random'}).search)
  assert not candidates.is_by_area(_config(**{'search.select': 'last'}).search)
