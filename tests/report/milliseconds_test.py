"""Tests of milliseconds and 8 bits: what is read of them, and their picture."""

import json

from matplotlib import colors as mpl_colors
import numpy as np
import pytest

from ms_ranas_jax import errors
from ms_ranas_jax.report import html_page
from ms_ranas_jax.report import inputs
from ms_ranas_jax.report import milliseconds
from ms_ranas_jax.report import style

_LATENCY, _QUANTIZED = 'evaluate/latency.json', 'export/quantized.json'


def _entry(runtime, medians, threads=1, batch_size=1):
  exits = [{'median': m, 'low': 0.9 * m, 'high': 2 * m} for m in medians]
  return {
    'runtime': runtime,
    'threads': threads,
    'batch_size': batch_size,
    'rounds': 11,
    'exits': exits,
  }


def _quantized(onnx, tflite=None):
  exits = []
  for k, accuracy in enumerate(onnx):
    pair = {'float32': {'accuracy': 0.5}, 'int8': {'accuracy': accuracy}}
    exits.append({'exit': k, 'onnx': pair})
    if tflite is not None:
      int8 = {'accuracy': tflite[k]}
      exits[-1]['tflite'] = {'float32': {'accuracy': 0.5}, 'int8': int8}
  return exits


def test_the_lines_are_of_one_image_on_one_thread():
  lines = milliseconds.lines_of(
    [
      _entry('xla', [1, 2]),
      _entry('onnxruntime', [3, 4]),
      _entry('onnxruntime_int8', [5, 6]),
      _entry('litert_int8', [7, 8]),
      _entry('an_abacus', [9, 10]),
      _entry('onnxruntime', [11, 12], threads=2),
      _entry('onnxruntime', [13, 14], batch_size=64),
    ],
    [0.7, 0.8],
    _quantized([0.6, 0.9], [0.65, 0.75]),
  )
  assert [line.name for line in lines] == [
    'XLA',
    'ONNX Runtime',
    'ONNX Runtime, 8 bits',
    'LiteRT, 8 bits',
  ]
  np.testing.assert_allclose(
    [line.times for line in lines],
    [
      [[0.9 * m, 0.9 * n], [m, n], [2 * m, 2 * n]]
      for m, n in ((1, 2), (3, 4), (5, 6), (7, 8))
    ],
  )
  np.testing.assert_allclose(
    [line.accuracies for line in lines],
    [[0.7, 0.8], [0.7, 0.8], [0.6, 0.9], [0.65, 0.75]],
  )
  assert [line.dashed for line in lines] == [False, False, True, True]
  assert lines[1].color == lines[2].color != lines[3].color


def test_lines_of_8_bits_need_their_accuracy():
  entries = [
    _entry('onnxruntime', [1]),
    _entry('onnxruntime_int8', [1]),
    _entry('litert_int8', [1]),
  ]
  shown = [
    [line.name for line in milliseconds.lines_of(entries, [0.7], quantized)]
    for quantized in ((), _quantized([0.6]))
  ]
  assert shown == [['ONNX Runtime'], ['ONNX Runtime', 'ONNX Runtime, 8 bits']]


@pytest.mark.parametrize(
  ('firsts', 'num_exits', 'scale'),
  [
    ((4.0, 1.2, 1.3, 0.4, 0.2), 3, 'log'),  # as they are
    ((4.0, 4.0, 4.0, 4.0, 4.0), 2, 'linear'),  # one above the other
    ((900.0, 0.004, 20.0, 0.02, 1.0), 19, 'log'),
    ((3.0,), 1, 'linear'),
  ],
)
def test_the_picture(firsts, num_exits, scale, check_texts):
  names = ('xla', 'onnxruntime', 'onnxruntime_int8', 'litert', 'litert_int8')
  accuracies = np.linspace(0.9, 0.95, num_exits).tolist()
  entries = [
    _entry(name, (first * np.linspace(1, 2, num_exits)).tolist())
    for name, first in zip(names, firsts)
  ]
  lines = milliseconds.lines_of(
    entries, accuracies, _quantized(accuracies, accuracies)
  )
  figure = milliseconds.draw(lines)
  check_texts(figure, least=4 + len(firsts))
  (axes,) = figure.axes
  assert axes.get_xscale() == scale
  drawn = [line for line in axes.get_lines() if line.get_label() != '_rule']
  lines.sort(key=lambda line: -line.times[1, -1])
  assert len(drawn) == len(lines) == len(firsts)
  for line, shown in zip(lines, drawn, strict=True):
    np.testing.assert_allclose(shown.get_xdata(), line.times[1])
    np.testing.assert_allclose(shown.get_ydata(), 100 * line.accuracies)
    assert shown.get_color() == line.color
    assert (shown.get_linestyle() == '-') != line.dashed
  bars, marks = axes.collections[0::2], axes.collections[1::2]
  for line, bar, mark in zip(lines, bars, marks, strict=True):
    np.testing.assert_allclose(
      [[x for x, _ in segment] for segment in bar.get_segments()],
      line.times[[0, 2]].T,
    )
    assert [mpl_colors.to_hex(c) for c in mark.get_facecolors()] == (
      style.exit_colors(num_exits)
    )
  low, high = axes.get_xlim()
  assert low < min(line.times[0].min() for line in lines)
  assert high > max(line.times[2].max() for line in lines)
  # The slowest is named lowest.
  names = [text.get_text() for text in axes.texts]
  heights = [text.xy[1] for text in axes.texts]
  assert names == [line.name for line in lines]
  assert heights == sorted(heights) and heights[-1] < 1
  assert max(axes.get_yticks()) <= 100


def test_milliseconds_in_words():
  assert [
    milliseconds._milliseconds(value)
    for value in (0, 0.01234, 0.1, 1.386, 23.456, 189.3, 12345.6)
  ] == ['0', '0.0123', '0.100', '1.39', '23.5', '189', '12,346']
  assert [milliseconds._points(s) for s in (-0.01, 1e-6, 0.0025)] == [
    '-1.00',
    '0.00',
    '+0.25',
  ]


def _change(workdir, name, change):
  path = workdir / name
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


def _section(workdir, primitives):
  """The section as markup, without drawing anything else."""
  page = html_page.Page(str(workdir))
  milliseconds.add(page, inputs.read(str(workdir), primitives))
  return page.markup('', ())


@pytest.fixture
def undrawn(monkeypatch):
  """The lines that would have been drawn, a list per picture."""
  drawn = []

  def draw(lines):
    drawn.append(lines)
    return style.canvas(9, 9)[0]

  monkeypatch.setattr(milliseconds, 'draw', draw)
  return drawn


@pytest.mark.parametrize(
  'forget',
  [
    lambda content: content.update(model='of another'),
    lambda content: content.update(model=None),
    lambda content: content.pop('model'),  # of a release of before
    # Of a network with other exits, which is refused where it is of this one.
    lambda content: (
      content.update(model='of another'),
      content.get('exits', []) and content['exits'].pop(),
    ),
  ],
)
def test_files_of_another_model_are_not_shown(
  workdir, primitives, undrawn, forget
):
  _change(workdir, _QUANTIZED, forget)
  markup = _section(workdir, primitives)
  assert f'{_QUANTIZED} is not of the model in this' in markup
  assert 'file in 8 bits, bytes' not in markup
  (lines,) = undrawn
  assert [line.name for line in lines] == ['XLA', 'ONNX Runtime', 'LiteRT']
  _change(workdir, _LATENCY, forget)
  markup = _section(workdir, primitives)
  assert f'{_LATENCY} is not of the model in this' in markup
  assert len(undrawn) == 1 and '<table' not in markup


@pytest.mark.parametrize('left', ['nothing', 'a training that goes on'])
def test_without_a_model_they_are_of_no_model(
  workdir, primitives, undrawn, left
):
  if left == 'nothing':
    (workdir / 'model/model.json').unlink()
  else:
    _change(workdir, 'model/model.json', lambda c: c.update(tensors=None))
  # It names no model either, which makes it of none and not of this one.
  _change(workdir, _LATENCY, lambda c: c.update(model=None))
  markup = _section(workdir, primitives)
  assert markup.count('is not of the model in this') == 2
  assert undrawn == [] and '<table' not in markup


def test_8_bits_on_other_images_are_not_drawn(workdir, primitives, undrawn):
  """Their accuracy is not to be compared with that beside it."""
  _change(workdir, 'evaluate/anytime.json', lambda c: c.update(test_images={}))
  markup = _section(workdir, primitives)
  (lines,) = undrawn
  assert [line.name for line in lines] == ['XLA', 'ONNX Runtime', 'LiteRT']
  assert 'of other test images than evaluate/anytime.json' in markup
  assert 'file in 8 bits, bytes' in markup


@pytest.mark.parametrize(
  ('missing', 'sentence', 'tables'),
  [
    ((_LATENCY,), 'There are no milliseconds', 1),
    ((_QUANTIZED,), 'Nothing was judged in 8 bits', 1),
    ((_LATENCY, _QUANTIZED), 'Nothing has been exported', 0),
  ],
)
def test_missing_files(workdir, primitives, undrawn, missing, sentence, tables):
  for name in missing:
    (workdir / name).unlink()
  markup = _section(workdir, primitives)
  assert markup.count('class="missing"') == 1 and sentence in markup
  assert markup.count('<table') == tables
  assert len(undrawn) == (_LATENCY not in missing)


def test_without_an_evaluation_there_are_tables_alone(
  workdir, primitives, undrawn
):
  (workdir / 'evaluate/anytime.json').unlink()
  markup = _section(workdir, primitives)
  assert undrawn == [] and markup.count('<table') == 2


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda c: c.update(entries=[]), 'no list "entries"'),
    (lambda c: c['entries'][1].update(threads='two'), '1: "threads" is not a'),
    (lambda c: c.update(machine='mine'), '"machine" is not an object'),
    (lambda c: c.pop('versions'), '"versions" is not an object'),
    (lambda c: c['entries'][2].update(runtime=3), '"entries" 2: no "runtime"'),
    (lambda c: c['entries'][0].pop('exits'), '"entries" 0: no "runtime"'),
    (lambda c: c['entries'][0].update(exits=[]), '"entries" 0: no "runtime"'),
    (lambda c: c['entries'][2]['exits'].pop(), '"entries" 2: no "runtime"'),
    *(
      (
        lambda c, value=value: c['entries'][0]['exits'][1].update(high=value),
        '"entries" 0: no "runtime"',
      )
      for value in (None, 'long', 0, -1.5)
    ),
    (
      lambda c: [entry['exits'].pop() for entry in c['entries']],
      'different numbers of exits',
    ),
  ],
)
def test_broken_milliseconds_are_refused(workdir, primitives, change, message):
  _change(workdir, _LATENCY, change)
  with pytest.raises(errors.UsageError, match=message) as caught:
    inputs.read(str(workdir), primitives)
  assert _LATENCY in str(caught.value) and str(workdir) in str(caught.value)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda c: c.update(exits=3), 'no list "exits"'),
    (lambda c: c['exits'][1].pop('exit'), '1: "exit" is not a number'),
    (lambda c: c.pop('dataset'), 'what was judged'),
    (lambda c: c.update(num_examples=-3), 'what was judged'),
    (lambda c: c.update(calibration_q='all'), 'what was judged'),
    (lambda c: c.update(calibration_images=[1.5]), 'what was judged'),
    (lambda c: c['exits'][1].pop('onnx'), '"exits" 1: no "accuracy"'),
    (lambda c: c['exits'][0].pop('onnx'), '"exits" 0: no "accuracy"'),
    (lambda c: c['exits'][2].pop('tflite'), '"exits" 2: no "accuracy"'),
    (lambda c: c['exits'][2].update(tflite=[]), '"exits" 2: no "accuracy"'),
    *(
      (
        lambda c, change=change: c['exits'][0]['onnx']['int8'].update(change),
        '"exits" 0: no "accuracy"',
      )
      for change in (
        {'accuracy': None},
        {'accuracy': 1.5},
        {'file_bytes': 'many'},
        {'milliseconds': -1},
      )
    ),
    (lambda c: c['exits'].pop(), 'different numbers of exits'),
  ],
)
def test_broken_comparisons_are_refused(workdir, primitives, change, message):
  _change(workdir, _QUANTIZED, change)
  with pytest.raises(errors.UsageError, match=message) as caught:
    inputs.read(str(workdir), primitives)
  assert _QUANTIZED in str(caught.value) and str(workdir) in str(caught.value)
