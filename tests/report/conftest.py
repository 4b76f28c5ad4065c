"""A work directory that looks like one of a finished run."""

import json

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
import numpy as np
import pytest

from ms_ranas_jax.anytime import budgets
from ms_ranas_jax.anytime import classes
from ms_ranas_jax.data import cifar_files
from ms_ranas_jax.model import description
from ms_ranas_jax.space import genotype
from ms_ranas_jax.space import grid

PRIMITIVES = (
  'none',
  'max_pool_3x3',
  'avg_pool_3x3',
  'skip_connect',
  'sep_conv_3x3',
  'sep_conv_5x5',
  'dil_conv_3x3',
  'dil_conv_5x5',
)


SEEDS = 8
MODEL = 'c0ffee' * 8
CLASSES = cifar_files.CLASS_NAMES['cifar10']


@pytest.fixture(scope='session')
def primitives():
  return PRIMITIVES


@pytest.fixture(scope='session')
def plan():
  """The paper's final network: two nodes, three scales, seven layers."""
  return grid.build_plan(
    grid.NetworkSpec(channels=16, layers=7, nodes=2, scales=3)
  )


def _metrics(path, rng, num_exits, epochs, judged):
  lines = []
  for epoch in range(epochs):
    for chunk in range(4):
      time = (epoch + (chunk + 1) / 4) / epochs
      best = np.linspace(0.88, 0.95, num_exits)
      accuracy = best - 0.6 * np.exp(-5 * time)
      accuracy += 0.008 * rng.normal(size=num_exits)
      line = {
        'step': 100 * (4 * epoch + chunk),
        'epoch': epoch,
        'train_loss': num_exits * (0.1 + 2.2 * np.exp(-4 * time)),
        'train_accuracy': (accuracy + 0.03).tolist(),
        'seconds': 12.5,
      }
      if judged == 'holdout':
        line['learning_rate'] = 0.0125 * (1 + np.cos(np.pi * time))
      else:
        costs = 9e7 - 3e7 * time + 5e6 * rng.normal(size=SEEDS)
        line['expected_cost'] = 8.6e7 - 2.4e7 * time
        line['valid_loss_by_seed'] = (
          num_exits * (0.3 + 2 * np.exp(-4 * time))
          + 0.1 * rng.normal(size=SEEDS)
        ).tolist()
        if chunk == 3:
          line['derived_cost'] = costs.mean()
          line['derived_cost_by_seed'] = costs.tolist()
      if judged == 'valid' or chunk == 3:
        line[f'{judged}_loss'] = num_exits * (0.3 + 2 * np.exp(-4 * time))
        line[f'{judged}_accuracy'] = accuracy.tolist()
      lines.append(json.dumps(line))
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text('\n'.join(lines) + '\n')


def _write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(
    content if isinstance(content, str) else json.dumps(content, indent=1)
  )


def _candidates(rng, num_exits):
  records = []
  for index in range(24):
    last = rng.uniform(4e7, 1.2e8)
    of_epoch = {'seed': index, 'epoch': 20}
    records.append(
      {
        'sources': [of_epoch if index < SEEDS else {'random': index}],
        'macs': np.linspace(0.2 * last, last, num_exits).astype(int).tolist(),
        'score': 0.7 + 0.1 * np.log(last / 4e7) + 0.02 * rng.normal(),
        'allowed': 5e7 < last < 1.1e8,
        'chosen': False,
      }
    )
  best = max((r for r in records if r['allowed']), key=lambda r: r['score'])
  best['chosen'] = True
  return {'budget_range': [0, 1.2e8], 'left': 0, 'candidates': records}


def _seeds(rng):
  shares = rng.integers(1, 8, (SEEDS, SEEDS)) / 8
  shares = np.triu(shares, 1) + np.triu(shares, 1).T + np.eye(SEEDS)
  return {
    'chosen': 3,
    'seeds': [{'seed': seed} for seed in range(SEEDS)],
    'agreement': {'operations': shares.tolist()},
  }


def _latency(num_exits):
  entries = []
  for threads, size, runtime, first in (
    (1, 1, 'xla', 4.0),
    (1, 1, 'onnxruntime', 1.25),
    (1, 1, 'onnxruntime_int8', 1.5),
    (1, 1, 'litert', 0.5),
    (1, 1, 'litert_int8', 0.25),
    (1, 64, 'onnxruntime', 60.0),
    (2, 1, 'onnxruntime', 1.0),
  ):
    medians = first * np.arange(1, num_exits + 1)
    entries.append(
      {
        'runtime': runtime,
        'threads': threads,
        'batch_size': size,
        'rounds': 200,
        'exits': [
          {'median': median, 'low': 0.75 * median, 'high': 1.5 * median}
          for median in medians.tolist()
        ],
      }
    )
  return {
    'machine': {'processor': 'Abacus 3', 'cores': 2, 'system': 'Linux x86_64'},
    'versions': {'jax': '0.9.1', 'onnxruntime': '1.22.3'},
    'model': MODEL,
    'entries': entries,
  }


def _quantized(anytime):
  def cells(accuracy, scale, milliseconds, lost, weights):
    return {
      'accuracy': accuracy - lost,
      **({'weight_bytes': 40960 * scale} if weights else {}),
      'file_bytes': 51200 * scale,
      'milliseconds': milliseconds,
    }

  return {
    'model': MODEL,
    'dataset': anytime['dataset'],
    'num_examples': anytime['num_examples'],
    'test_images': anytime['test_images'],
    'calibration_q': 0.5,
    'calibration_images': [500 - 60 * k for k in range(len(anytime['exits']))],
    'exits': [
      {
        'exit': k,
        'onnx': {
          'float32': cells(exit_['accuracy'], 4 + k, 1.25 + k, 0, True),
          'int8': cells(exit_['accuracy'], 1 + k, 1.5 + k, 0.0125, True),
        },
        'tflite': {
          'float32': cells(exit_['accuracy'], 9, 0.5 + k, 0, False),
          'int8': cells(exit_['accuracy'], 3, 0.25 + k, -0.005, False),
        },
      }
      for k, exit_ in enumerate(anytime['exits'])
    ],
  }


def fill(workdir, plan, epochs=20, name='cifar10'):
  """Fills a work directory with the results of a made-up run.

  Args:
    workdir: a pathlib path.
    plan: of both networks.
    epochs: of the search and of the training.
    name: of the data set.
  """
  rng = np.random.default_rng(0)
  nodes, num_exits = plan.spec.nodes, len(plan.exits)
  edges = nodes * (nodes + 3) // 2
  _write(
    workdir / 'config.json',
    {
      'stages': ['describe', 'search', 'train', 'evaluate', 'report'],
      'seed': 0,
      'dataset': {'name': name, 'dir': '', 'holdout': 5000},
      'search': {
        'order': 2,
        'epochs': epochs,
        'network': {'channels': 16, 'exits': 'all_but_first'},
      },
      'train': {'epochs': epochs, 'genotype': ''},
    },
  )

  drift = 0.5 / epochs * rng.normal(size=(2, 1, edges, len(PRIMITIVES)))
  steps = 0.04 * rng.normal(size=(2, epochs, edges, len(PRIMITIVES))) + drift
  start = 1e-3 * rng.normal(size=(2, 1, edges, len(PRIMITIVES)))
  alphas = np.cumsum(np.concatenate([start, steps], axis=1), axis=1)
  (workdir / 'search').mkdir(parents=True)
  np.savez(
    workdir / 'search/alphas.npz',
    normal=alphas[0].astype(np.float32),
    reduction=alphas[1].astype(np.float32),
  )

  def strongest(final):
    kept, first = [], 0
    for node in range(nodes):
      rows = final[first : first + 2 + node, 1:]
      best = sorted(range(2 + node), key=lambda s: -rows[s].max())[:2]
      kept += [(PRIMITIVES[1 + int(rows[s].argmax())], s) for s in best]
      first += 2 + node
    return kept

  concat = tuple(range(2, 2 + nodes))
  found = genotype.Genotype(
    strongest(alphas[0, -1]), concat, strongest(alphas[1, -1]), concat
  )
  _write(workdir / 'search/genotype.json', found.to_json())
  _metrics(workdir / 'search/metrics.jsonl', rng, num_exits, epochs, 'valid')
  _metrics(workdir / 'train/metrics.jsonl', rng, num_exits, epochs, 'holdout')

  _write(workdir / 'search/candidates.json', _candidates(rng, num_exits))
  _write(workdir / 'search/seeds.json', _seeds(rng))

  macs = np.linspace(15.1e6, 126.3e6, num_exits).astype(int).tolist()
  params = np.linspace(0.6e6, 5.0e6, num_exits).astype(int).tolist()
  costs = [
    {
      'exit': k,
      'layer': exit_.layer,
      'macs': macs[k],
      'flops_msdnet': int(1.04 * macs[k]),
      'params': params[k],
      'total_params': params[-1],
      'peak_activation_bytes': 786432 + 1024 * k,
      'params_deployed': int(0.9 * params[k]),
    }
    for k, exit_ in enumerate(plan.exits)
  ]
  for network in ('search', 'train'):
    _write(
      workdir / f'describe/{network}_network.json',
      {
        'params': params[-1],
        'macs': macs[-1],
        'flops_msdnet': int(1.04 * macs[-1]),
        'exits': costs,
      },
    )

  images = 4000
  hard = rng.uniform(size=images)
  sure = np.linspace(0.9, 0.5, num_exits)[:, np.newaxis]
  confidence = 1 - hard * sure + 0.05 * rng.normal(size=(num_exits, images))
  wrong = np.linspace(0.5, 0.32, num_exits)[:, np.newaxis]
  correct = rng.uniform(size=images) < 1 - hard**4 * wrong
  anytime = {
    'dataset': name,
    'num_examples': images,
    'test_images': {'test_labels': {'sha256': 'beef' * 16}},
    'exits': [
      {**cost, 'accuracy': float(correct[k].mean()), 'loss': 0.31 - 0.01 * k}
      for k, cost in enumerate(costs)
    ],
    'expected_accuracy': 0.853,
    'budget_range': [0, macs[-1]],
  }
  _write(workdir / 'evaluate/anytime.json', anytime)
  _write(workdir / 'evaluate/latency.json', _latency(num_exits))
  _write(workdir / 'export/quantized.json', _quantized(anytime))
  description.write(
    str(workdir / 'model'),
    description.Description(
      network={'family': 'grid'},
      dtype='float32',
      image_shape=(32, 32, 3),
      mean=(0.5,) * 3,
      std=(0.25,) * 3,
      class_names=CLASSES,
      exits=(),
      tensors=description.Tensors(MODEL, {}),
    ),
  )
  labels = rng.integers(0, len(CLASSES), images)
  wrong = (labels + rng.integers(1, len(CLASSES), correct.shape)) % len(CLASSES)
  tables = [
    classes.confusion(labels, answers, len(CLASSES))
    for answers in np.where(correct, labels, wrong)
  ]
  _write(
    workdir / 'evaluate/classes.json',
    {
      'dataset': name,
      'num_examples': images,
      'class_names': CLASSES,
      'images': tables[-1].sum(axis=1).tolist(),
      'accuracies': [classes.accuracies(table) for table in tables],
      'confusion': tables[-1].tolist(),
    },
  )
  _write(
    workdir / 'evaluate/budgeted.json',
    {
      'points': budgets.budgeted_curve(confidence, confidence, correct, macs),
    },
  )


@pytest.fixture(scope='session')
def fill_workdir():
  """The function that fills a work directory."""
  return fill


@pytest.fixture
def workdir(tmp_path, plan):
  """The work directory of a finished run."""
  path = tmp_path / 'some_run'
  fill(path, plan)
  return path


def _shown_texts(figure):
  """Returns the texts that are drawn upright or level."""
  texts = list(figure.texts)
  for legend in figure.legends:
    texts += legend.get_texts()
  for axes in figure.axes:
    texts += axes.texts
    if axes.axison:
      texts += [
        axes._left_title,
        axes.title,
        axes.xaxis.label,
        axes.yaxis.label,
      ]
      texts += [
        label
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis._update_ticks()
        for label in (tick.label1,)
      ]
  return [
    text
    for text in texts
    if text.get_visible()
    and text.get_text().strip()
    # Boxes of slanted texts meet although the texts do not.
    and text.get_rotation() in (0, 90)
  ]


@pytest.fixture(scope='session')
def check_texts():
  """Asserts that the texts of a figure lie in it and do not overlap."""

  def check(figure, least=1):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [
      # Of the text alone: an annotation would add its line.
      (text.get_text(), Text.get_window_extent(text, renderer))
      for text in _shown_texts(figure)
    ]
    assert len(boxes) >= least
    for index, (text, box) in enumerate(boxes):
      assert box.x0 >= -0.5 and box.x1 <= figure.bbox.x1 + 0.5, text
      assert box.y0 >= -0.5 and box.y1 <= figure.bbox.y1 + 0.5, text
      for other, other_box in boxes[:index]:
        apart = (
          box.x1 < other_box.x0 + 1
          or other_box.x1 < box.x0 + 1
          or box.y1 < other_box.y0 + 1
          or other_box.y1 < box.y0 + 1
        )
        assert apart, f'{text!r} meets {other!r}'

  return check
