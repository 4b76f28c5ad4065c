"""Every form in floats computes what the network computes, in its own runtime.

256 images each: the logits of every exit, and the classes.
"""

import json

import numpy as np
import onnx
import pytest
from scipy import special

from ms_ranas_jax import families
from ms_ranas_jax import plain_form
from ms_ranas_jax.anytime import early_exit
from ms_ranas_jax.costs import cost
from ms_ranas_jax.export import onnx_file
from ms_ranas_jax.export import preprocessing
from ms_ranas_jax.export import runners

litert = pytest.importorskip(
  'ms_ranas_jax.export.litert',
  reason='LiteRT is not installed, see setup.cfg',
  exc_type=ImportError,
)
interpreter = pytest.importorskip('ai_edge_litert.interpreter')

_TOLERANCE = 1e-4


def _check(found, expected):
  """Logits are the same, and so are the classes."""
  assert np.abs(found - expected).max() <= _TOLERANCE * np.abs(expected).max()
  np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))


def _preprocessing(model):
  return preprocessing.Preprocessing(
    model.description.mean, model.description.std
  )


@pytest.fixture(scope='module')
def step_files(case):
  """The ONNX files of the steps."""
  model, form, *_ = case
  return [
    onnx_file.step_model(form, step, _preprocessing(model)).SerializeToString()
    for step in range(len(form.steps))
  ]


@pytest.fixture(scope='module')
def anytime(case):
  """The ONNX file that stops early."""
  model, form, *_ = case
  return onnx_file.anytime_model(
    form, _preprocessing(model), model.temperatures
  ).SerializeToString()


def test_onnx_steps(case, step_files):
  _, _, images, expected = case
  _check(runners.logits(runners.load_onnx(step_files), images), expected)


def test_onnx_of_all_exits(case):
  model, form, images, expected = case
  file = onnx_file.all_exits_model(form, _preprocessing(model))
  session = runners.session(file.SerializeToString())
  (found,) = session.run(None, {'images': images})
  _check(found, expected)


def test_litert(case):
  model, form, images, expected = case
  steps = litert.load(litert.anytime_model(form, _preprocessing(model)))
  _check(runners.logits(steps, images, batch_size=1), expected)


def test_litert_computes_with_convolutions_and_pools(build):
  """Nothing is taken apart into slices and reshapes."""
  model = build('digits_grid')
  form = families.plain_form(
    model.description.network, model.network, model.variables
  )
  found = interpreter.Interpreter(
    model_content=litert.anytime_model(form, _preprocessing(model))
  )
  # Of the first signature.
  names = {detail['op_name'] for detail in found._get_ops_details()}
  assert {'CONV_2D', 'DEPTHWISE_CONV_2D'} <= names
  assert names <= {
    'ADD',
    'AVERAGE_POOL_2D',
    'CAST',
    'CONCATENATION',
    'CONV_2D',
    'DELEGATE',
    'DEPTHWISE_CONV_2D',
    'FULLY_CONNECTED',
    'MAX_POOL_2D',
    'MEAN',
    'MUL',
    'PAD',
    'PADV2',
    'RELU',
    'SUB',
  }


def _onnx_macs(model):
  """Counts multiply-adds by the shapes that ONNX itself infers."""
  inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
  shapes = {
    info.name: [d.dim_value or 1 for d in info.type.tensor_type.shape.dim]
    for info in (*inferred.value_info, *inferred.output)
  } | {tensor.name: list(tensor.dims) for tensor in inferred.initializer}
  total = 0
  for node in inferred.node:
    if node.op_type == 'Conv':
      total += np.prod(shapes[node.output[0]]) * np.prod(
        shapes[node.input[1]][1:]
      )
    elif node.op_type == 'Gemm':
      total += np.prod(shapes[node.input[1]])
  return total


def test_macs_are_those_of_the_cost_model(case, step_files):
  model, form, *_ = case
  expected = [exit_.macs for exit_ in cost.network_cost(model.network).exits]
  assert list(plain_form.macs(form)) == expected
  files = map(onnx.load_from_string, step_files)
  assert np.cumsum([_onnx_macs(file) for file in files]).tolist() == expected


def _confidence(logits, temperatures):
  """The largest probability of each exit, (exits, images)."""
  heat = np.array(temperatures)[:, None, None]
  return special.softmax(logits.astype(np.float64) / heat, axis=-1).max(axis=-1)


@pytest.mark.parametrize('threshold', [0.0, 0.3, 2.0])
def test_anytime_stops_where_an_exit_is_sure(case, anytime, threshold):
  model, _, images, expected = case
  session = runners.session(anytime)
  sure = _confidence(expected, model.temperatures)
  leaves = sure >= threshold
  leaves[-1] = True
  for row, image in enumerate(images[:32]):
    # The last threshold is not looked at.
    logits, exit_, confidence = session.run(
      None,
      {'image': image[None], 'thresholds': np.full(len(expected), threshold)},
    )
    assert exit_ == leaves[:, row].argmax()
    _check(logits[0], expected[exit_, row])
    np.testing.assert_allclose(confidence, sure[exit_, row], rtol=1e-3)


def test_nothing_is_computed_after_the_exit_that_answers(
  case, anytime, tmp_path
):
  _, form, images, _ = case
  counts = []
  for threshold in early_exit.EVERYBODY, early_exit.NOBODY:
    session = runners.session(anytime, profile=str(tmp_path / 'profile'))
    thresholds = np.full(len(form.steps), threshold)
    session.run(None, {'image': images[:1], 'thresholds': thresholds})
    with open(session.end_profiling(), encoding='utf-8') as file:
      events = json.load(file)
    run = [e['args'].get('op_name') for e in events if e.get('cat') == 'Node']
    counts.append(sum('Conv' in str(name) for name in run))
  per_step = [
    sum(isinstance(n.layer, plain_form.Convolution) for n in step.nodes)
    for step in form.steps
  ]
  # A runtime may join convolutions with what follows, but never drops one.
  assert counts == [per_step[0], sum(per_step)]
