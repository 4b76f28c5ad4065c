"""Tests of the page."""

import base64
import hashlib
from html import parser
import json
import re
import shutil
import types
from xml.etree import ElementTree

import numpy as np
import pytest

from ms_ranas_jax import errors
from ms_ranas_jax.baselines import cells as published_cells
from ms_ranas_jax.baselines import resnet8
from ms_ranas_jax.report import alphas
from ms_ranas_jax.report import page
from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.space import edges as edges_lib

_VOID = {'meta', 'img'}


class _Reader(parser.HTMLParser):
  """Checks that tags are closed, and collects text and images."""

  def __init__(self):
    super().__init__()
    self.open = []
    self.images = []
    self.tags = []
    self.text = []

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag == 'img':
      self.images.append(dict(attrs))
    if tag not in _VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] != 'style':
      self.text.append(data)


def _read(path):
  with open(path, encoding='utf-8') as file:
    markup = file.read()
  reader = _Reader()
  reader.feed(markup)
  reader.close()
  assert reader.open == []
  return markup, reader, ' '.join(''.join(reader.text).split())


def _trained(workdir, plan, cells=None):
  """What was trained, by the files of a made-up run."""
  cost = json.loads((workdir / 'describe/train_network.json').read_text())
  if cells is None:
    cells = published_cells.load_genotype(str(workdir / 'search/genotype.json'))
  return page.Trained(plan, cells, cost)


@pytest.fixture(scope='module')
def finished(tmp_path_factory, fill_workdir, plan, primitives):
  """A finished run with its report: the folder and the page's path."""
  workdir = tmp_path_factory.mktemp('runs') / 'some_run'
  fill_workdir(workdir, plan)
  trained = _trained(workdir, plan)
  return workdir, page.write_report(str(workdir), plan, trained, primitives)


def test_the_whole_report(finished):
  workdir, path = finished
  assert path == str(workdir / 'report.html')
  markup, reader, text = _read(path)
  names = {
    'anytime',
    'budgeted',
    'milliseconds',
    'class_accuracy',
    'confusion',
    'train_grid',
    'search_grid',
    'train_learning',
    'search_learning',
    'search_cost',
    'search_candidates',
    'search_seeds',
    *(
      f'search_{what}_{kind}'
      for what in ('cell', 'weights', 'final')
      for kind in ('normal', 'reduction')
    ),
  }
  assert {p.name for p in (workdir / 'figures').iterdir()} == {
    f'{name}.{ending}' for name in names for ending in ('svg', 'png')
  }
  assert len(reader.images) == len(names)
  shown = set()
  for image in reader.images:
    kind, _, data = image['src'].partition(',')
    assert kind == 'data:image/svg+xml;base64'
    assert len(image['alt']) > 20
    svg = base64.b64decode(data)
    ElementTree.fromstring(svg)
    shown.add(hashlib.sha256(svg).hexdigest())
  for name in names:
    svg = (workdir / f'figures/{name}.svg').read_bytes()
    assert hashlib.sha256(svg).hexdigest() in shown
  for part in (
    'Results',
    'Milliseconds and 8 bits',
    'Classes',
    'Network',
    'Cells',
    'Training',
    'Search',
    'Config',
  ):
    name = part.lower().replace(' ', '-')
    assert ('h2', {'id': name}) in reader.tags
  assert 'class="missing"' not in markup
  assert (
    'Expected accuracy under a budget drawn evenly from 0 to 126.3 · 10⁶ macs: '
    '85.30 %' in text
  )
  assert 'An anytime network: some_run' in text
  found = published_cells.load_genotype(str(workdir / 'search/genotype.json'))
  assert 'As DARTS prints them' in text and found.to_darts() in text


def test_the_table_of_exits(finished):
  workdir, path = finished
  markup, _, _ = _read(path)
  table = re.search(r'<table><thead>(.*?)</table>', markup).group(1)
  head = re.findall(r'<th scope="col">(.*?)</th>', table)
  rows = [
    re.findall(r'<td>(.*?)</td>', row)
    for row in re.findall(r'<tr>(<td>.*?)</tr>', table)
  ]
  exits = json.loads((workdir / 'evaluate/anytime.json').read_text())['exits']
  assert len(rows) == len(exits)
  last = dict(zip(head, rows[-1]))
  assert last == {
    'exit': '5',
    'layer': '6',
    'accuracy, %': f'{100 * exits[-1]["accuracy"]:.2f}',
    'loss': '0.260',
    'macs, 10⁶': '126.3',
    'macs, % of last': '100.0',
    'flops (MSDNet), 10⁶': '131.4',
    'params so far': '5,000,000',
    'params in all': '5,000,000',
    'params deployed': '4,500,000',
    'peak activations, KiB': '773',
  }
  assert dict(zip(head, rows[0]))['macs, % of last'] == '12.0'


def _rows(markup, heads):
  """The rows of the table with these heads."""
  head = ''.join(f'<th scope="col">{text}</th>' for text in heads)
  _, _, table = markup.partition(f'<tr>{head}</tr>')
  body, _, _ = table.partition('</tbody>')
  return [
    re.findall(r'<td>(.*?)</td>', row)
    for row in re.findall(r'<tr>(.*?)</tr>', body)
  ]


def test_the_tables_of_classes(finished):
  workdir, path = finished
  markup, _, text = _read(path)
  content = json.loads((workdir / 'evaluate/classes.json').read_text())
  names, table = content['class_names'], np.array(content['confusion'])
  heads = ['number', 'class', 'images', *(f'exit {k}, %' for k in range(6))]
  assert _rows(markup, heads) == [
    [
      str(number),
      name,
      str(content['images'][number]),
      *(f'{100 * of_exit[number]:.1f}' for of_exit in content['accuracies']),
    ]
    for number, name in enumerate(names)
  ]
  mistakes = _rows(markup, ['class', 'taken for', 'images', 'of the class, %'])
  assert len(mistakes) == 10
  counts = [int(count) for _, _, count, _ in mistakes]
  off = table - np.diag(table.diagonal())
  assert counts == sorted(off.ravel())[::-1][:10]
  for true, answer, count, share in mistakes:
    row = names.index(true)
    assert true != answer
    assert table[row, names.index(answer)] == int(count)
    assert share == f'{100 * int(count) / table[row].sum():.1f}'
  assert 'Test accuracy of 10 classes, at the first' in text


def test_the_table_of_milliseconds(finished):
  workdir, path = finished
  markup, _, text = _read(path)
  content = json.loads((workdir / 'evaluate/latency.json').read_text())
  heads = ['runtime', 'threads', 'images at a time', 'rounds']
  rows = _rows(markup, heads + [f'exit {k}, ms' for k in range(6)])
  assert len(rows) == len(content['entries'])
  assert rows[0] == [
    'XLA',
    *('1', '1', '200'),
    '4.00 (3.00–6.00)',
    '8.00 (6.00–12.0)',
    '12.0 (9.00–18.0)',
    '16.0 (12.0–24.0)',
    '20.0 (15.0–30.0)',
    '24.0 (18.0–36.0)',
  ]
  assert [row[:3] for row in rows[1:]] == [
    ['ONNX Runtime', '1', '1'],
    ['ONNX Runtime, 8 bits', '1', '1'],
    ['LiteRT', '1', '1'],
    ['LiteRT, 8 bits', '1', '1'],
    ['ONNX Runtime', '1', '64'],
    ['ONNX Runtime', '2', '1'],
  ]
  assert rows[4][4] == '0.250 (0.188–0.375)'
  assert rows[5][-1] == '360 (270–540)'
  assert (
    'Measured on Abacus 3, 2 cores, Linux x86_64, with jax 0.9.1, onnxruntime '
    '1.22.3.' in text
  )


def test_the_table_of_8_bits(finished):
  workdir, path = finished
  markup, _, text = _read(path)
  exits = json.loads((workdir / 'evaluate/anytime.json').read_text())['exits']
  rows = _rows(
    markup,
    [
      'runtime',
      'exit',
      'accuracy in floats, %',
      'accuracy in 8 bits, %',
      'points won or lost',
      'weights in floats, bytes',
      'weights in 8 bits, bytes',
      'file in floats, bytes',
      'file in 8 bits, bytes',
      'ms in floats',
      'ms in 8 bits',
    ],
  )
  assert len(rows) == 12
  # Slower and less often right, and the other way round.
  accuracy = exits[1]['accuracy']
  assert rows[1] == [
    'ONNX Runtime',
    '1',
    f'{100 * accuracy:.2f}',
    f'{100 * (accuracy - 0.0125):.2f}',
    '-1.25',
    *('204,800', '81,920', '256,000', '102,400', '2.25', '2.50'),
  ]
  assert rows[7] == [
    'LiteRT',
    '1',
    f'{100 * accuracy:.2f}',
    f'{100 * (accuracy + 0.005):.2f}',
    '+0.50',
    *('–', '–', '460,800', '153,600', '1.50', '1.25'),
  ]
  assert (
    'on 4,000 test images of cifar10.' in text
    and 'q = 0.5: 500, 440, 380, 320, 260, 200 images.' in text
  )


def test_a_work_directory_without_classes(
  workdir, plan, primitives, plain_figures
):
  """One of before; it is told what to do."""
  (workdir / 'evaluate/classes.json').unlink()
  path = page.write_report(str(workdir), plan, page.Trained(plan), primitives)
  _, _, text = _read(path)
  assert 'no evaluate/classes.json in this work directory; run the' in text
  assert not (workdir / 'figures/confusion.svg').exists()


def test_top_5_is_in_the_table_where_it_was_measured(
  workdir, plan, primitives, plain_figures
):
  path = workdir / 'evaluate/anytime.json'
  anytime = json.loads(path.read_text())
  for exit_ in anytime['exits']:
    exit_['top5_accuracy'] = 0.9871
  path.write_text(json.dumps(anytime))
  markup, _, _ = _read(
    page.write_report(str(workdir), plan, page.Trained(plan), primitives)
  )
  assert '>top-5 accuracy, %</th>' in markup and '>98.71</td>' in markup


def test_the_page_needs_nothing_else_and_fits_a_phone(finished):
  markup, reader, _ = _read(finished[1])
  for tag, attrs in reader.tags:
    assert tag not in ('script', 'link', 'iframe')
    for name in ('src', 'href'):
      if name in attrs:
        assert attrs[name].startswith(('data:', '#'))
  assert 'url(' not in markup and '@import' not in markup
  viewport = {
    'name': 'viewport',
    'content': 'width=device-width, initial-scale=1',
  }
  assert ('meta', viewport) in reader.tags
  assert 'prefers-color-scheme: dark' in markup


def test_writing_it_again_gives_the_same(finished, plan, primitives):
  workdir, path = finished
  before = {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}
  page.write_report(str(workdir), plan, _trained(workdir, plan), primitives)
  after = {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}
  assert before == after


def test_an_empty_work_directory(tmp_path, primitives):
  path = page.write_report(str(tmp_path), None, None, primitives)
  markup, reader, text = _read(path)
  assert reader.images == []
  assert markup.count('class="missing"') == 8
  assert 'The network has not been evaluated' in text
  assert [p.name for p in tmp_path.iterdir()] == ['report.html']


def test_only_the_search(workdir, plan, primitives, plain_figures):
  for name in (
    'train',
    'model',
    'evaluate',
    'export',
    'describe',
    'config.json',
  ):
    path = workdir / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  _, reader, text = _read(
    page.write_report(str(workdir), plan, None, primitives)
  )
  assert len(reader.images) == 11
  assert 'The normal cell that the search found.' in text
  assert 'The network has not been evaluated' in text
  assert 'No training has been recorded' in text
  assert 'No search has been recorded' not in text


def test_a_resnet8(tmp_path, primitives, plain_figures):
  resnet = resnet8.build_plan(resnet8.ResNet8Spec(exits=(0,)))
  trained = page.Trained(resnet)
  _, reader, text = _read(
    page.write_report(str(tmp_path), None, trained, primitives)
  )
  assert len(reader.images) == 1
  assert 'the first exit that needs a stack.' in text


def test_a_training_of_another_genotype(
  workdir, plan, primitives, plain_figures
):
  shutil.rmtree(workdir / 'search')
  (workdir / 'evaluate/anytime.json').unlink()
  trained = _trained(workdir, plan, published_cells.AMOEBANET)
  path = page.write_report(str(workdir), None, trained, primitives)
  _, reader, text = _read(path)
  # budgeted, grid, two cells, learning
  assert len(reader.images) == 5
  assert 'The reduction cell that was trained.' in text
  assert published_cells.AMOEBANET.to_darts() in text
  assert any(
    'conv_7x1_1x7 of c(k-2)' in image['alt'] for image in reader.images
  )
  # Without an evaluation the costs come from the description.
  assert 'params so far' in text and 'accuracy, %' not in text
  assert 'No search has been recorded' in text


def test_text_is_escaped(tmp_path, primitives):
  workdir = tmp_path / '<b>run'
  (workdir / 'evaluate').mkdir(parents=True)
  evil = '<script>alert("&")</script>'
  (workdir / 'config.json').write_text(
    json.dumps({'dataset': {'name': evil}, evil: [evil]})
  )
  (workdir / 'evaluate/anytime.json').write_text(
    json.dumps(
      {
        'dataset': evil,
        'num_examples': 3,
        'exits': [{'exit': evil, 'accuracy': 0.5, 'macs': 9}],
      }
    )
  )
  markup, reader, text = _read(
    page.write_report(str(workdir), None, None, primitives)
  )
  assert not any(tag in ('script', 'b') for tag, _ in reader.tags)
  assert '<b>run' in text
  assert text.count('<script>alert(') == 4
  assert markup.count('&lt;script&gt;') == 4


def test_names_in_data_cannot_leave_the_work_directory(tmp_path, primitives):
  workdir = tmp_path / 'run'
  (workdir / 'evaluate').mkdir(parents=True)
  for evil in ('../../evil', str(tmp_path / 'evil')):
    (workdir / 'config.json').write_text(
      json.dumps({'dataset': {'name': evil}, 'study': {'figure': evil}})
    )
    exits = [{'exit': evil, 'accuracy': 0.5, 'macs': 9}]
    (workdir / 'evaluate/anytime.json').write_text(
      json.dumps({'dataset': evil, 'num_examples': 3, 'exits': exits})
    )
    page.write_report(str(workdir), None, None, primitives)
  assert list((workdir / 'figures').iterdir())
  assert [path.name for path in tmp_path.iterdir()] == ['run']
  assert not [path for path in tmp_path.rglob('*') if 'evil' in path.name]


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('config.json', '{', 'config.json'),
    ('search/genotype.json', '{}', 'genotype.json'),
    ('train/metrics.jsonl', 'nonsense\n{"step": 1}\n', 'metrics.jsonl'),
    ('evaluate/anytime.json', '{"exits": []}', 'no list "exits"'),
    ('evaluate/anytime.json', '[]', 'no list "exits"'),
    (
      'evaluate/anytime.json',
      '{"exits": [{"macs": 1, "accuracy": "high"}]}',
      '"exits" 0: "accuracy" is not a number',
    ),
    ('evaluate/budgeted.json', '{"points": [3]}', '"points" 0'),
    ('describe/search_network.json', '{}', 'search_network.json'),
    ('evaluate/classes.json', '[]', 'no "class_names"'),
    ('evaluate/classes.json', '{"class_names": []}', 'no "class_names"'),
    *(
      (
        'evaluate/classes.json',
        json.dumps(
          {
            'class_names': ['cat', 'dog'],
            'confusion': [[3, 1], [0, 4]],
            'accuracies': [[0.75, 1.0]],
          }
          | change
        ),
        message,
      )
      for change, message in (
        ({'class_names': ['cat', 2]}, 'no "class_names"'),
        ({'class_names': ['cat']}, 'table "confusion"'),
        ({'confusion': [[3, 1]]}, 'table "confusion"'),
        ({'confusion': [[3, 1], [0]]}, 'table "confusion"'),
        ({'confusion': [[3, 1], [0, -4]]}, 'table "confusion"'),
        ({'confusion': [[3, 1], [0, True]]}, 'table "confusion"'),
        ({'confusion': None}, 'table "confusion"'),
        ({'confusion': [[3, 1], [0, 10**30]]}, 'table "confusion"'),
        ({'accuracies': [[0.75]]}, 'and "accuracies"'),
        ({'accuracies': [[0.75, 'x']]}, 'and "accuracies"'),
        ({'accuracies': [0.75]}, 'and "accuracies"'),
        ({'accuracies': [[0.75, 1e9]]}, 'and "accuracies"'),
        ({}, 'not of the same evaluation as anytime.json'),
        (
          {'accuracies': [[0.75, 1.0]] * 6},
          'not of the same evaluation as anytime.json',
        ),
      )
    ),
    ('evaluate/latency.json', '[]', 'no list "entries"'),
    ('export/quantized.json', '{', 'quantized.json'),
    ('search/alphas.npz', 'nonsense', 'alphas.npz cannot be read'),
    ('search/candidates.json', '{"candidates": [3]}', '"candidates" 0'),
    (
      'search/candidates.json',
      '{"candidates": [{"score": 1}]}',
      'candidates.json: "budget_range"',
    ),
    (
      'search/candidates.json',
      '{"candidates": [{"score": 1}], "budget_range": [0, 1]}',
      '"sources" is not a list',
    ),
    (
      'search/candidates.json',
      '{"candidates": [{"score": 1, "sources": [], "macs": [true]}],'
      ' "budget_range": [0, 1]}',
      '"macs" is not a list',
    ),
    ('search/seeds.json', '{"seeds": [{}]}', '"seed" is not a number'),
    (
      'search/seeds.json',
      '{"seeds": [{"seed": 1}], "chosen": 1, "agreement": {"operations": [1]}}',
      'no table of the seeds',
    ),
    (
      'search/seeds.json',
      '{"seeds": [{"seed": 1}], "chosen": 2,'
      ' "agreement": {"operations": [[1]]}}',
      '"chosen" none of them',
    ),
  ],
)
def test_broken_files_are_refused(
  workdir, plan, primitives, name, content, message
):
  (workdir / name).write_text(content)
  with pytest.raises(errors.UsageError, match=message) as caught:
    page.write_report(str(workdir), plan, page.Trained(plan), primitives)
  assert str(workdir / name) in str(caught.value)
  assert not (workdir / 'report.html').exists()
  assert not (workdir / 'figures').exists()


@pytest.mark.parametrize(
  'change',
  [
    lambda content: content['accuracies'].pop(),
    lambda content: content['accuracies'][-1].reverse(),
    lambda content: content['accuracies'][0].__setitem__(3, None),
    lambda content: content['confusion'].reverse(),
    lambda content: content['confusion'][2].__setitem__(2, 0),
    lambda content: content.update(confusion=[[0] * 10] * 10),
  ],
)
def test_classes_of_another_evaluation_are_refused(
  workdir, plan, primitives, change
):
  path = workdir / 'evaluate/classes.json'
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))
  with pytest.raises(errors.UsageError, match='not of the same evaluation'):
    page.write_report(str(workdir), plan, page.Trained(plan), primitives)
  assert not (workdir / 'report.html').exists()


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    ({'normal': np.zeros((3, 5, 8))}, 'does not hold'),
    (
      {'normal': np.zeros((5, 8)), 'reduction': np.zeros((5, 8))},
      'expected finite numbers',
    ),
    (
      {
        'normal': np.zeros((3, 5, 8)),
        'reduction': np.full((3, 5, 8), np.nan),
      },
      'expected finite numbers',
    ),
    (
      {'normal': np.zeros((3, 5, 7)), 'reduction': np.zeros((3, 5, 7))},
      '7 operations, but 8 primitives',
    ),
    (
      {'normal': np.zeros((3, 6, 8)), 'reduction': np.zeros((3, 6, 8))},
      'fit no cell',
    ),
    (
      {k: np.zeros((3, 5, 8)) for k in edges_lib.KINDS}
      | {'normal_edges': np.zeros((3, 5))},
      'does not hold .* and "reduction_edges"',
    ),
    (
      {k: np.zeros((3, 5, 8)) for k in edges_lib.KINDS}
      | {'normal_edges': np.zeros((3, 5)), 'reduction_edges': np.zeros((3, 4))},
      r'"reduction_edges": expected finite numbers, \(epochs \+ 1, edges\)',
    ),
  ],
)
def test_broken_alphas_are_refused(workdir, plan, primitives, arrays, message):
  np.savez(workdir / 'search/alphas.npz', **arrays)
  with pytest.raises(errors.UsageError, match=message):
    page.write_report(str(workdir), plan, page.Trained(plan), primitives)
  assert not (workdir / 'report.html').exists()
  assert not (workdir / 'figures').exists()


def test_what_partial_channels_keep_follows_from_the_table(
  workdir, plan, primitives, monkeypatch, plain_figures
):
  with np.load(workdir / 'search/alphas.npz') as file:
    arrays = dict(file)
  plain = alphas_lib.derive_genotype(
    edges_lib.softmax_weights({k: a[-1] for k, a in arrays.items()})
  )
  # The logits of edges are for those that node 1 would not keep without them.
  for kind in edges_lib.KINDS:
    (weaker,) = {0, 1, 2} - {state for _, state in getattr(plain, kind)[2:]}
    logits = np.zeros(arrays[kind].shape[:2], np.float32)
    logits[-1, 2 + weaker] = 5.0
    arrays[f'{kind}_edges'] = logits
  np.savez(workdir / 'search/alphas.npz', **arrays)
  found = alphas_lib.derive_genotype(
    edges_lib.softmax_weights({k: a[-1] for k, a in arrays.items()})
  )
  assert set(found.normal) != set(plain.normal)
  (workdir / 'search/genotype.json').write_text(found.to_json())
  drawn = []

  def draw_final(weights, primitives, kept):
    drawn.append((weights, kept))
    return alphas.draw_final(weights, primitives, kept)

  monkeypatch.setattr(
    page,
    'alphas',
    types.SimpleNamespace(
      draw_history=alphas.draw_history, draw_final=draw_final
    ),
  )
  page.write_report(str(workdir), plan, page.Trained(plan), primitives)
  tables, framed = zip(*drawn, strict=True)
  derived = alphas_lib.derive_genotype(
    dict(zip(edges_lib.KINDS, tables, strict=True))
  )
  assert framed == (derived.normal, derived.reduction)


def test_a_missing_work_directory(tmp_path, primitives):
  with pytest.raises(errors.UsageError, match='is not there'):
    page.write_report(str(tmp_path / 'nothing'), None, None, primitives)
