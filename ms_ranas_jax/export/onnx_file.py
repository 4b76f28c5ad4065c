"""ONNX files of a plain form: of each step, of all, and one that stops early.

The steps take any number of images. The file that stops takes one: after each
exit stands an `If` whose one branch is the answer and whose other is the rest
of the network, so that a runtime computes nothing beyond the exit that is sure
enough. The image goes in as it is, uint8; what brings it to the network's range
is in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from onnx import helper
from onnx import numpy_helper

from ms_ranas_jax import plain_form
from ms_ranas_jax.export.preprocessing import Preprocessing
from ms_ranas_jax.version import __version__

# What runtimes of today and of some years back read.
_OPSET = 17
_IR_VERSION = 8
IMAGES, IMAGE = 'images', 'image'
LOGITS, THRESHOLDS = 'logits', 'thresholds'
EXIT, CONFIDENCE = 'exit', 'confidence'
_BATCH = 'batch'
NORMALIZED = 'normalized'


def step_model(
  form: plain_form.PlainForm, index: int, preprocessing: Preprocessing
) -> onnx.ModelProto:
  """Returns the file of one step.

  Its inputs are `images`, uint8 (batch, height, width, channels), or for later
  steps what earlier ones have left, float32 (batch, channels, height, width) by
  name. Its outputs are `logits`, float32 (batch, classes), and what it leaves
  for later steps.

  Args:
    form: the network.
    index: of the step.
    preprocessing: of the images.
  """
  shapes = _shapes(form)
  step = form.steps[index]
  graph = _Graph(shapes)
  inputs = []
  for name in step.inputs:
    if name == plain_form.IMAGES:
      inputs.append(_image_input(form, IMAGES, _BATCH))
      graph.preprocess(IMAGES, preprocessing)
    else:
      inputs.append(_map_info(name, shapes[name], _BATCH))
  graph.run(step.nodes)
  graph.add('Identity', [step.logits], LOGITS)
  outputs = [_info(LOGITS, TensorProto.FLOAT, (_BATCH, form.num_classes))]
  made = {node.output for node in step.nodes}
  outputs += [
    _map_info(name, shapes[name], _BATCH)
    for name in step.carried
    if name in made
  ]
  return _model(graph, f'step_{index}', inputs, outputs)


def all_exits_model(
  form: plain_form.PlainForm, preprocessing: Preprocessing
) -> onnx.ModelProto:
  """Returns the file that goes through to the last exit, in one piece.

  Its input is `images`, uint8 (batch, height, width, channels), its output
  `logits`, float32 (exits, batch, classes).

  Args:
    form: the network.
    preprocessing: of the images.
  """
  graph = _Graph(_shapes(form))
  graph.preprocess(IMAGES, preprocessing)
  for step in form.steps:
    graph.run(step.nodes)
  first = graph.constant('first_axis', np.array([0], np.int64))
  rows = [
    graph.add('Unsqueeze', [step.logits, first], f'row_{index}')
    for index, step in enumerate(form.steps)
  ]
  graph.add('Concat', rows, LOGITS, axis=0)
  shape = (len(form.steps), _BATCH, form.num_classes)
  return _model(
    graph,
    'all_exits',
    [_image_input(form, IMAGES, _BATCH)],
    [_info(LOGITS, TensorProto.FLOAT, shape)],
  )


def anytime_model(
  form: plain_form.PlainForm,
  preprocessing: Preprocessing,
  temperatures: Sequence[float],
) -> onnx.ModelProto:
  """Returns the file that stops at the first exit that is sure enough.

  Its inputs are `image`, uint8 (1, height, width, channels), and `thresholds`,
  float64 (exits,), of which the last is not looked at. Its outputs are those of
  the exit that answers: `logits`, float32 (1, classes); `exit`, int64 (); and
  `confidence`, float64 (), the largest probability at the exit's temperature.

  Args:
    form: the network.
    preprocessing: of the image.
    temperatures: one per exit, that logits are divided by.
  """
  shapes = _shapes(form)
  graph = _Graph(shapes)
  graph.preprocess(IMAGE, preprocessing)
  outputs = _steps_from(graph, form, 0, temperatures)
  for name, found in zip((LOGITS, EXIT, CONFIDENCE), outputs, strict=True):
    graph.add('Identity', [found], name)
  exits = len(form.steps)
  return _model(
    graph,
    'anytime',
    [
      _image_input(form, IMAGE, 1),
      _info(THRESHOLDS, TensorProto.DOUBLE, (exits,)),
    ],
    _answers(form, (LOGITS, EXIT, CONFIDENCE)),
  )


def signature(model: bytes) -> dict[str, list[dict[str, object]]]:
  """Returns what a file takes and gives, ready for JSON.

  Args:
    model: what stands in the file.

  Returns:
    `inputs` and `outputs`, each a list of `name`, `dtype` (NumPy's) and
    `shape`, a text where it is free.
  """
  graph = onnx.load_from_string(model).graph

  def entries(infos: Iterable[onnx.ValueInfoProto]) -> list[dict[str, object]]:
    return [
      {
        'name': info.name,
        'dtype': str(
          helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        ),
        'shape': [
          entry.dim_param or entry.dim_value
          for entry in info.type.tensor_type.shape.dim
        ],
      }
      for info in infos
    ]

  return {'inputs': entries(graph.input), 'outputs': entries(graph.output)}


def weight_bytes(model: bytes) -> int:
  """Returns the bytes of all constants, those of a quantization included.

  Args:
    model: what stands in the file.
  """
  graph = onnx.load_from_string(model).graph
  return sum(numpy_helper.to_array(t).nbytes for t in graph.initializer)


def _answers(
  form: plain_form.PlainForm, names: Sequence[str]
) -> list[onnx.ValueInfoProto]:
  logits, exit_, confidence = names
  return [
    _info(logits, TensorProto.FLOAT, (1, form.num_classes)),
    _info(exit_, TensorProto.INT64, ()),
    _info(confidence, TensorProto.DOUBLE, ()),
  ]


def _steps_from(
  graph: _Graph,
  form: plain_form.PlainForm,
  index: int,
  temperatures: Sequence[float],
) -> tuple[str, str, str]:
  """Adds the steps from one on; returns logits, exit and confidence."""
  step = form.steps[index]
  graph.run(step.nodes)
  exit_ = graph.constant(f'index_{index}', np.array(index, np.int64))
  confidence = _confidence(graph, step.logits, temperatures[index], index)
  if index == len(form.steps) - 1:
    return step.logits, exit_, confidence
  at = graph.constant(f'at_{index}', np.array(index, np.int64))
  threshold = graph.add(
    'Gather', [THRESHOLDS, at], f'threshold_{index}', axis=0
  )
  sure = graph.add('GreaterOrEqual', [confidence, threshold], f'sure_{index}')
  branches: dict[str, Any] = {}
  for branch in ('then', 'else'):
    inner = graph.inside()
    found = (
      (step.logits, exit_, confidence)
      if branch == 'then'
      else _steps_from(inner, form, index + 1, temperatures)
    )
    # A branch gives out what is its own.
    names = _named(f'{branch}_{index}')
    for name, source in zip(names, found, strict=True):
      inner.add('Identity', [source], name)
    branches[f'{branch}_branch'] = helper.make_graph(
      inner.nodes,
      f'{branch}_{index}',
      [],
      _answers(form, names),
      inner.initializers,
    )
  outputs = _named(f'answer_{index}')
  graph.nodes.append(
    helper.make_node('If', [sure], list(outputs), f'if_{index}', **branches)
  )
  return outputs


def _named(prefix: str) -> tuple[str, str, str]:
  return f'{prefix}_{LOGITS}', f'{prefix}_{EXIT}', f'{prefix}_{CONFIDENCE}'


def _confidence(
  graph: _Graph, logits: str, temperature: float, index: int
) -> str:
  # In float32 whatever is sure is exactly 1, see `anytime.calibration`.
  exact = graph.add('Cast', [logits], f'exact_{index}', to=TensorProto.DOUBLE)
  divisor = graph.constant(
    f'temperature_{index}', np.array(temperature, np.float64)
  )
  scaled = graph.add('Div', [exact, divisor], f'scaled_{index}')
  shares = graph.add('Softmax', [scaled], f'shares_{index}', axis=-1)
  return graph.add('ReduceMax', [shares], f'confidence_{index}', keepdims=0)


class _Graph:
  """The nodes and constants of a graph that is being written.

  Attributes:
    nodes: in their order.
    initializers: the constants.
  """

  def __init__(self, shapes: Mapping[str, plain_form.Shape]) -> None:
    self._shapes = shapes
    self.nodes: list[onnx.NodeProto] = []
    self.initializers: list[onnx.TensorProto] = []

  def inside(self) -> _Graph:
    """Returns an empty graph that stands within this one."""
    return _Graph(self._shapes)

  def add(
    self, kind: str, inputs: Sequence[str], output: str, **attributes: Any
  ) -> str:
    """Adds a node and returns its output."""
    self.nodes.append(
      helper.make_node(kind, list(inputs), [output], output, **attributes)
    )
    return output

  def constant(self, name: str, value: np.ndarray | np.generic) -> str:
    """Adds a constant and returns its name."""
    self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
    return name

  def preprocess(self, images: str, preprocessing: Preprocessing) -> None:
    """Adds what makes the normalised images of a uint8 input."""
    # Bytes are the cheapest to move, and rows of a channel to compute with.
    maps = self.add('Transpose', [images], 'maps', perm=[0, 3, 1, 2])
    as_floats = self.add('Cast', [maps], 'floats', to=TensorProto.FLOAT)
    center, scale = (
      self.constant(name, value.reshape(1, -1, 1, 1))
      for name, value in (
        ('center', preprocessing.center),
        ('scale', preprocessing.factor),
      )
    )
    centred = self.add('Sub', [as_floats, center], 'centred')
    self.add('Mul', [centred, scale], NORMALIZED)

  def run(self, nodes: Iterable[plain_form.Node]) -> None:
    """Adds the layers of a step."""
    for node in nodes:
      inputs = [
        NORMALIZED if n == plain_form.IMAGES else n for n in node.inputs
      ]
      self._layer(node, inputs)

  def _layer(self, node: plain_form.Node, inputs: list[str]) -> None:
    layer, output = node.layer, node.output
    match layer:
      case plain_form.Convolution():
        down, right = layer.padding
        kernel = self.constant(
          f'{output}/kernel',
          np.ascontiguousarray(layer.kernel.transpose(3, 2, 0, 1)),
        )
        if layer.bias.any():
          inputs = [
            *inputs,
            kernel,
            self.constant(f'{output}/bias', layer.bias),
          ]
        else:
          inputs = [*inputs, kernel]
        self.add(
          'Conv',
          inputs,
          output,
          kernel_shape=list(layer.kernel.shape[:2]),
          strides=list(layer.stride),
          dilations=[layer.dilation] * 2,
          group=layer.groups,
          pads=[down, right, down, right],
        )
      case plain_form.Relu():
        self.add('Relu', inputs, output)
      case plain_form.Pool():
        window = {
          'kernel_shape': [3, 3],
          'strides': [layer.stride] * 2,
          'pads': [1, 1, 1, 1],
        }
        kind = 'MaxPool' if layer.kind == 'max' else 'AveragePool'
        self.add(kind, inputs, output, **window)
      case plain_form.Shift():
        self._shift(inputs, output, self._shapes[node.inputs[0]])
      case plain_form.Sum():
        self.add('Add' if len(inputs) == 2 else 'Sum', inputs, output)
      case plain_form.Concatenate():
        self.add('Concat', inputs, output, axis=1)
      case plain_form.Slice():
        self._slice(inputs[0], output, (1,), (layer.start,), (layer.stop,))
      case plain_form.Classifier():
        pooled = self.add('GlobalAveragePool', inputs, f'{output}/pooled')
        flat = self.add('Flatten', [pooled], f'{output}/flat', axis=1)
        kernel = self.constant(f'{output}/kernel', layer.kernel)
        bias = self.constant(f'{output}/bias', layer.bias)
        self.add('Gemm', [flat, kernel, bias], output)
      case plain_form.LogitsMap():
        factor = self.constant(f'{output}/factor', np.float32(layer.factor))
        scaled = self.add('Mul', [*inputs, factor], f'{output}/scaled')
        axes = self.constant(f'{output}/axes', np.array([2, 3], np.int64))
        self.add('Unsqueeze', [scaled, axes], output)
      case plain_form.AddLogits():
        own, before = inputs
        flat = self.add('Flatten', [before], f'{output}/before', axis=1)
        self.add('Add', [own, flat], output)

  def _shift(
    self, inputs: list[str], output: str, shape: plain_form.Shape
  ) -> None:
    height, width, _ = shape
    odd = height % 2, width % 2
    inner = f'{output}/inner' if any(odd) else output
    self._slice(inputs[0], inner, (2, 3), (1, 1), (height, width))
    if any(odd):
      pads = np.array([0, 0, 0, 0, 0, 0, *odd], np.int64)
      self.add('Pad', [inner, self.constant(f'{output}/pads', pads)], output)

  def _slice(
    self,
    x: str,
    output: str,
    axes: Sequence[int],
    starts: Sequence[int],
    stops: Sequence[int],
  ) -> None:
    parts = [
      self.constant(f'{output}/{name}', np.array(values, np.int64))
      for name, values in (('from', starts), ('to', stops), ('axes', axes))
    ]
    self.add('Slice', [x, *parts], output)


def _shapes(form: plain_form.PlainForm) -> dict[str, plain_form.Shape]:
  found = {plain_form.IMAGES: form.image_shape}
  for node, _, shape in plain_form.shapes(form):
    found[node.output] = shape
  return found


def _info(
  name: str, kind: int, shape: Sequence[int | str]
) -> onnx.ValueInfoProto:
  return helper.make_tensor_value_info(name, kind, list(shape))


def _map_info(
  name: str, shape: plain_form.Shape, batch: int | str
) -> onnx.ValueInfoProto:
  height, width, channels = shape
  return _info(name, TensorProto.FLOAT, (batch, channels, height, width))


def _image_input(
  form: plain_form.PlainForm, name: str, batch: int | str
) -> onnx.ValueInfoProto:
  return _info(name, TensorProto.UINT8, (batch, *form.image_shape))


def _model(
  graph: _Graph,
  name: str,
  inputs: Sequence[onnx.ValueInfoProto],
  outputs: Sequence[onnx.ValueInfoProto],
) -> onnx.ModelProto:
  model = helper.make_model(
    helper.make_graph(
      graph.nodes, name, list(inputs), list(outputs), graph.initializers
    ),
    opset_imports=[helper.make_opsetid('', _OPSET)],
    producer_name='ms_ranas_jax',
    producer_version=__version__,
  )
  model.ir_version = _IR_VERSION
  onnx.checker.check_model(model, full_check=True)
  return model
