"""A trained network as plain layers, for runtimes that know no others.

Batch normalisation is folded into the convolution before it, so that what is
left are convolutions with a bias, dense layers, pools, sums and concatenations,
step by step. It is data: the exports are written from it, and `run_step` says
what it means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.kernels import normalization

Shape = tuple[int, int, int]
# The name of the normalised images among what the first step reads.
IMAGES = 'images'


@dataclasses.dataclass(frozen=True, eq=False)
class Convolution:
  """A convolution with bias, padded on all sides by half of its window.

  Attributes:
    kernel: float32 (rows, columns, channels / groups, features).
    bias: float32 (features,).
    stride: of rows and columns.
    dilation: between the taps.
    groups: 1, or the channels.
  """

  kernel: np.ndarray
  bias: np.ndarray
  stride: tuple[int, int] = (1, 1)
  dilation: int = 1
  groups: int = 1

  @property
  def padding(self) -> tuple[int, int]:
    """Zeros above and below, and left and right."""
    rows, columns = self.kernel.shape[:2]
    return rows // 2 * self.dilation, columns // 2 * self.dilation


@dataclasses.dataclass(frozen=True)
class Relu:
  """max(x, 0)."""


@dataclasses.dataclass(frozen=True)
class Pool:
  """A 3x3 pool with padding 1.

  Attributes:
    kind: 'max', or 'average' (padding not counted).
    stride: of rows and columns.
  """

  kind: str
  stride: int


@dataclasses.dataclass(frozen=True)
class Shift:
  """Drops the first row and column; an odd size gets zeros at the end.

  What follows is a 1x1 convolution of stride 2, which so reads the pixels at
  odd positions.
  """


@dataclasses.dataclass(frozen=True)
class Sum:
  """The sum of some maps."""


@dataclasses.dataclass(frozen=True)
class Concatenate:
  """Maps side by side, along their channels."""


@dataclasses.dataclass(frozen=True)
class Slice:
  """Some channels of a map.

  Attributes:
    start: the first of them.
    stop: that after the last.
  """

  start: int
  stop: int


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
  """The mean over all pixels, and a dense layer.

  Attributes:
    kernel: float32 (channels, classes).
    bias: float32 (classes,).
  """

  kernel: np.ndarray
  bias: np.ndarray


@dataclasses.dataclass(frozen=True)
class LogitsMap:
  """Logits as a map of one pixel, for a later step.

  Attributes:
    factor: that they are multiplied by.
  """

  factor: float


@dataclasses.dataclass(frozen=True)
class AddLogits:
  """Logits, and those in a map of one pixel."""


Layer = (
  Convolution
  | Relu
  | Pool
  | Shift
  | Sum
  | Concatenate
  | Slice
  | Classifier
  | LogitsMap
  | AddLogits
)


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
  """A layer, and the names of the tensors that it reads and writes."""

  layer: Layer
  inputs: tuple[str, ...]
  output: str


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
  """What is computed for an exit.

  Attributes:
    inputs: tensors of earlier steps that it reads, by name; `IMAGES` at first,
      normalised.
    nodes: in an order in which they can be run.
    logits: the tensor with the answer.
    carried: tensors that later steps read, of this step and of earlier ones.
  """

  inputs: tuple[str, ...]
  nodes: tuple[Node, ...]
  logits: str
  carried: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class PlainForm:
  """A network of plain layers.

  Attributes:
    steps: one for each exit.
    image_shape: (height, width, channels).
    num_classes: classes of the classifiers.
  """

  steps: tuple[Step, ...]
  image_shape: Shape
  num_classes: int


class Builder:
  """Collects the nodes of a network, step by step.

  Names are those of the network's features where a feature is meant, and
  numbered otherwise.
  """

  def __init__(self) -> None:
    self._nodes: list[Node] = []
    self._count = 0
    self._rectified: dict[str, str] = {}
    self._shifted: dict[str, str] = {}

  def add(
    self, layer: Layer, inputs: Sequence[str], output: str | None = None
  ) -> str:
    """Adds a layer and returns the name of its output."""
    if output is None:
      output = f't{self._count}'
      self._count += 1
    self._nodes.append(Node(layer, tuple(inputs), output))
    return output

  def convolution(
    self,
    x: str,
    kernel: Any,
    norm: tuple[np.ndarray, np.ndarray] | None = None,
    output: str | None = None,
    **fields: Any,
  ) -> str:
    """Adds a convolution with the BN after it; returns its output.

    Args:
      x: what it reads.
      kernel: (rows, columns, channels / groups, features).
      norm: (factor, shift), (features,) each; None where there is none.
      output: the name of its output, None for a number.
      **fields: of `Convolution`.
    """
    kernel = np.asarray(kernel, np.float32)
    bias = np.zeros(kernel.shape[-1], np.float32)
    if norm is not None:
      factor, bias = (np.asarray(part, np.float32) for part in norm)
      kernel = kernel * factor
    return self.add(Convolution(kernel, bias, **fields), [x], output)

  def classifier(self, x: str, dense: Mapping[str, Any], output: str) -> str:
    """Adds a classifier; returns its output.

    Args:
      x: what it reads.
      dense: 'kernel' (channels, classes) and 'bias' (classes,).
      output: the name of its output.
    """
    kernel, bias = (
      np.asarray(dense[n], np.float32) for n in ('kernel', 'bias')
    )
    return self.add(Classifier(kernel, bias), [x], output)

  def relu(self, x: str) -> str:
    """Adds a ReLU, once for all that read it in a step."""
    if x not in self._rectified:
      self._rectified[x] = self.add(Relu(), [x])
    return self._rectified[x]

  def shift(self, x: str) -> str:
    """Adds a `Shift`, once for all that read it in a step."""
    if x not in self._shifted:
      self._shifted[x] = self.add(Shift(), [x])
    return self._shifted[x]

  def join(
    self, layer: Sum | Concatenate, parts: Sequence[str], output: str | None
  ) -> str:
    """Adds a sum or concatenation; of one part it is the part itself."""
    if len(parts) == 1 and output is None:
      return parts[0]
    return self.add(layer, parts, output)

  def end_step(self, logits: str, carried: Sequence[str]) -> Step:
    """Returns what was added since the last step ended, as one step."""
    nodes = _needed(self._nodes, {logits, *carried})
    self._nodes, self._rectified, self._shifted = [], {}, {}
    made = {node.output for node in nodes}
    read = dict.fromkeys(n for node in nodes for n in node.inputs)
    inputs = tuple(name for name in read if name not in made)
    return Step(inputs, nodes, logits, tuple(carried))


def _needed(nodes: Sequence[Node], wanted: set[str]) -> tuple[Node, ...]:
  kept = []
  for node in reversed(nodes):
    if node.output in wanted:
      kept.append(node)
      wanted = wanted | set(node.inputs)
  return tuple(reversed(kept))


def fold(
  stats: Mapping[str, Any], params: Mapping[str, Any] | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns a BN with its running averages as an affine map.

  Args:
    stats: 'mean' and 'var', of any one shape.
    params: 'scale' and 'bias' of the same shape; None where there are none.

  Returns:
    (factor, shift), float32 of that shape.
  """
  mean, variance = (np.asarray(stats[n], np.float64) for n in ('mean', 'var'))
  factor = 1 / np.sqrt(variance + normalization.EPSILON)
  shift = np.zeros_like(mean)
  if params:
    factor = factor * np.asarray(params['scale'], np.float64)
    shift = np.asarray(params['bias'], np.float64)
  return factor.astype(np.float32), (shift - mean * factor).astype(np.float32)


class ModuleVariables:
  """The variables of a module, and of the modules in it by their names.

  Attributes:
    params: name -> array, or those of a module in it.
    stats: the same of its `batch_stats`.
  """

  def __init__(
    self, params: Mapping[str, Any], stats: Mapping[str, Any]
  ) -> None:
    self.params, self.stats = params, stats

  def __getitem__(self, name: str) -> ModuleVariables:
    return ModuleVariables(self.params.get(name, {}), self.stats.get(name, {}))

  def norm(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns a BN as (factor, shift), of the shape that it has."""
    return fold(self.stats[name], self.params.get(name))

  def norm_of_one(self, name: str = 'norm') -> tuple[np.ndarray, np.ndarray]:
    """Returns that of a sum of one part, (channels,) each.

    Its arrays are (1, channels), see `layers.NormalizedSum`.
    """
    factor, shift = self.norm(name)
    return factor[0], shift[0]


def module_variables(
  variables: Mapping[str, Any], name: str
) -> ModuleVariables:
  """Returns what a module of a network has.

  Args:
    variables: 'params' and 'batch_stats' of the network.
    name: of the module.
  """
  return ModuleVariables(variables['params'], variables.get('batch_stats', {}))[
    name
  ]


def run_step(
  step: Step, carried: Mapping[str, jax.Array]
) -> tuple[dict[str, jax.Array], jax.Array]:
  """Computes a step with XLA's own convolutions and pools.

  Args:
    step: of a plain form.
    carried: (batch, height, width, channels) each, what the step before left;
      `{'images': images}` at first, float32, normalised.

  Returns:
    What later steps read, and the logits (batch, classes).
  """
  found = {name: jnp.asarray(carried[name]) for name in step.inputs}
  for node in step.nodes:
    inputs = [found[name] for name in node.inputs]
    found[node.output] = _compute(node.layer, inputs)
  there = {**carried, **found}
  kept = {name: jnp.asarray(there[name]) for name in step.carried}
  return kept, found[step.logits]


def _compute(layer: Layer, inputs: Sequence[jax.Array]) -> jax.Array:
  x = inputs[0]
  match layer:
    case Convolution():
      y = lax.conv_general_dilated(
        x,
        jnp.asarray(layer.kernel),
        layer.stride,
        [(p, p) for p in layer.padding],
        rhs_dilation=(layer.dilation,) * 2,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=layer.groups,
      )
      return y + layer.bias.reshape(1, 1, 1, -1)
    case Relu():
      return jnp.maximum(x, 0)
    case Pool('max'):
      return nn.max_pool(x, **_window(layer))
    case Pool(stride=1):
      return nn.avg_pool(x, **_window(layer), count_include_pad=False)
    case Pool():
      # A padding that is no "SAME" is known to runtimes with zeros alone.
      pads = ((0, 0), (1, 1), (1, 1), (0, 0))
      strides = (layer.stride, layer.stride)
      means = nn.avg_pool(jnp.pad(x, pads), (3, 3), strides, 'VALID')
      rows, columns = (_counted(size, layer.stride) for size in x.shape[1:3])
      return means * (9 / np.outer(rows, columns)[None, :, :, None])
    case Shift():
      return _shifted(x)
    case Sum():
      return sum(inputs[1:], start=x)
    case Concatenate():
      return jnp.concatenate(inputs, axis=-1)
    case Slice():
      return x[..., layer.start : layer.stop]
    case Classifier():
      pooled = jnp.mean(x, axis=(1, 2))
      return pooled @ layer.kernel + layer.bias.reshape(1, -1)
    case LogitsMap():
      return layer.factor * x[:, None, None]
    case AddLogits():
      return x + inputs[1][:, 0, 0]


def _window(layer: Pool) -> dict[str, Any]:
  return {
    'window_shape': (3, 3),
    'strides': (layer.stride, layer.stride),
    'padding': ((1, 1), (1, 1)),
  }


def _counted(size: int, stride: int) -> np.ndarray:
  """Returns how many pixels each window of a pool has along an axis."""
  starts = np.arange(-1, size - 1, stride)
  counts = np.minimum(starts + 3, size) - np.maximum(starts, 0)
  return counts.astype(np.float32)


def _shifted(x: jax.Array) -> jax.Array:
  height, width = x.shape[1:3]
  return lax.pad(
    x,
    jnp.zeros((), x.dtype),
    [(0, 0, 0), (-1, height % 2, 0), (-1, width % 2, 0), (0, 0, 0)],
  )


def shapes(form: PlainForm) -> Iterator[tuple[Node, tuple[Shape, ...], Shape]]:
  """Yields every node with the shapes of its inputs and its output.

  Shapes are (height, width, channels); logits are (1, 1, classes).
  """
  known: dict[str, Shape] = {IMAGES: form.image_shape}
  for step in form.steps:
    for node in step.nodes:
      inputs = tuple(known[name] for name in node.inputs)
      known[node.output] = _shape(node.layer, inputs)
      yield node, inputs, known[node.output]


def _shape(layer: Layer, inputs: Sequence[Shape]) -> Shape:
  height, width, channels = inputs[0]
  match layer:
    case Convolution():
      down, right = layer.stride
      features = layer.kernel.shape[-1]
      return -(-height // down), -(-width // right), features
    case Pool():
      return -(-height // layer.stride), -(-width // layer.stride), channels
    case Shift():
      return height - 1 + height % 2, width - 1 + width % 2, channels
    case Concatenate():
      return height, width, sum(shape[2] for shape in inputs)
    case Slice():
      return height, width, layer.stop - layer.start
    case Classifier():
      return 1, 1, layer.kernel.shape[1]
    case _:
      return inputs[0]


def macs(form: PlainForm) -> tuple[int, ...]:
  """Returns the multiply-adds up to each exit, of one image.

  Of convolutions and dense layers, as the cost model counts them.
  """
  counts = []
  total = 0
  found = shapes(form)
  for step in form.steps:
    for _ in step.nodes:
      node, _, (height, width, _) = next(found)
      if isinstance(node.layer, Convolution | Classifier):
        total += math.prod(node.layer.kernel.shape) * height * width
    counts.append(total)
  return tuple(counts)
