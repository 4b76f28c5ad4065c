"""8 bits: what is calibrated on what, and what comes out."""

import numpy as np
import onnx
import pytest
from scipy import special

from ms_ranas_jax.export import folder
from ms_ranas_jax.export import int8
from ms_ranas_jax.export import runners

litert = pytest.importorskip(
  'ms_ranas_jax.export.litert',
  reason='LiteRT is not installed, see setup.cfg',
  exc_type=ImportError,
)

IMAGES = 96


@pytest.fixture(scope='module')
def model(build):
  return build('digits_msdnet')


@pytest.fixture(scope='module')
def images(model, draw):
  return draw(model, IMAGES)


@pytest.fixture(scope='module')
def exported(model, images):
  return folder.export(model, images, tflite=True)


def _confidence(model, images):
  logits = model.compiled_steps.logits(images, 64).astype(np.float64)
  heat = np.array(model.temperatures)[:, None, None]
  return special.softmax(logits / heat, axis=-1).max(axis=-1)


def test_steps_are_calibrated_on_the_images_that_reach_them(
  model, images, exported
):
  sure = _confidence(model, images)
  thresholds = np.quantile(sure, 0.75, axis=1) + 1e-6
  found = int8.reaching(
    exported.steps(folder.FLOAT32), images, thresholds, model.temperatures
  )
  left = np.arange(IMAGES)
  for step, fed in enumerate(found):
    assert {len(value) for value in fed.values()} == {len(left)}
    left = left[sure[step, left] < thresholds[step]]
  np.testing.assert_array_equal(found[0]['images'], images)
  # The same features as those of the images alone.
  runner = runners.load_onnx(exported.steps(folder.FLOAT32))
  rows = np.flatnonzero(sure[0] < thresholds[0])
  carried, _ = runner.take({'images': images[rows]}, 0)
  for name, value in found[1].items():
    np.testing.assert_allclose(value, carried[name], rtol=1e-4, atol=1e-4)


def test_where_few_images_come_all_are_taken(model, images, exported):
  nobody_stays = [0.0] * len(model.exits)
  found = int8.reaching(
    exported.steps(folder.FLOAT32), images, nobody_stays, model.temperatures
  )
  counts = [len(next(iter(fed.values()))) for fed in found]
  assert counts == [IMAGES] * len(model.exits)


def test_onnx_weights_have_a_scale_per_channel(exported):
  graph = onnx.load_from_string(exported.steps(folder.INT8)[0]).graph
  constants = {tensor.name: tensor for tensor in graph.initializer}
  scales = {
    node.output[0]: list(constants[node.input[1]].dims)
    for node in graph.node
    if node.op_type == 'DequantizeLinear' and node.input[1] in constants
  }
  kernels = [node.input[1] for node in graph.node if node.op_type == 'Conv']
  assert len(kernels) > 10
  for kernel in kernels:
    (channels,) = scales[kernel]
    assert channels > 1


def _agreement(found, expected):
  """The correlation of logits, a list of one number per exit."""
  return [
    np.corrcoef(a.ravel(), b.ravel())[0, 1]
    for a, b in zip(found, expected, strict=True)
  ]


def test_both_runtimes_compute_nearly_the_same(model, images, exported):
  expected = model.compiled_steps.logits(images, 64)
  steps = runners.load_onnx(exported.steps(folder.INT8))
  assert min(_agreement(runners.logits(steps, images), expected)) > 0.98
  file = exported.files[folder.tflite_file(folder.INT8)]
  found = runners.logits(litert.load(file), images, batch_size=1)
  assert min(_agreement(found, expected)) > 0.98
  assert len(file) < len(exported.files[folder.tflite_file()])


def test_a_step_in_8_bits_goes_on_from_one_in_floats(model, images, exported):
  """What is carried has the same names, types and shapes."""
  for name, content in exported.files.items():
    if name.endswith('_int8.onnx'):
      in_floats = exported.files[name.replace('_int8', '')]
      assert _signature(content) == _signature(in_floats)
  tflite = [exported.files[folder.tflite_file(f)] for f in ('float32', 'int8')]
  assert litert.signatures(tflite[0]) == litert.signatures(tflite[1])


def _signature(content):
  session = runners.session(content)
  return [
    (entry.name, entry.type, entry.shape)
    for entry in (*session.get_inputs(), *session.get_outputs())
  ]
