"""What a family of networks has to give, so that one program serves them all.

A family (the grid of cells, a baseline) maps sizes to a network with numbered
exits. Initialization, training, evaluation and the cost model use what stands
here and nothing else of it.

A network is computed in steps, one for each exit: a step takes the features
that the steps before it have left, and gives the logits of its exit and the
features that the steps after it will read. Whoever stops after a step has
computed nothing in vain, and goes on from there if it turns out otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
from typing import Any, ClassVar, Protocol

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax import plain_form
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.fields import Rule
from ms_ranas_jax.fields import field
from ms_ranas_jax.fields import is_number
from ms_ranas_jax.fields import is_whole
from ms_ranas_jax.fields import named
from ms_ranas_jax.fields import number
from ms_ranas_jax.fields import whole
from ms_ranas_jax.space import layer_cost

# The width of the network to train is the widest in the budget.
AUTO = 'auto'
# Where it is not known yet, costs and plans are those of this width. All that
# has to be split in halves can be.
NOMINAL_CHANNELS = 16
IMAGES = plain_form.IMAGES
# What is carried of the logits of the exit before, where exits add up.
PREVIOUS = 'previous_logits'
# Features by name, each with an axis of images, see `batch_axis`; the images
# that the first step takes may be NumPy's.
Carried = Mapping[str, jax.Array | np.ndarray]


@dataclasses.dataclass(frozen=True)
class CostRow:
  """A chain of layers that makes one tensor, or adds to it.

  Attributes:
    inputs: names of the tensors that it reads.
    output: name of the tensor that it writes, or adds to if it is there.
    elements: elements of the output, for one image.
    layers: what is computed.
    step: the first exit that needs it.
    where: the feature or exit that it belongs to.
    edge: the row of the edge in a cell's wiring, and its operation; else None.
  """

  inputs: tuple[str, ...]
  output: str
  elements: int
  layers: tuple[layer_cost.Layer, ...]
  step: int
  where: str
  edge: tuple[int, str] | None = None

  def total(self, metric: str) -> int:
    """Returns the sum of a metric over the layers."""
    return sum(getattr(layer, metric) for layer in self.layers)


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
  """What the networks of all families are asked for in a config.

  A family has a subclass with its own fields.
  """

  family: str = field(
    'grid',
    named('grid', 'msdnet', 'resnet8'),
    'of cells of a genotype, a baseline, or my_module:my_family',
  )
  channels: int | str = field(
    16,
    Rule(
      lambda v: v == AUTO or (is_whole(v) and v >= 1),
      f"a whole number of at least 1, or '{AUTO}'",
      mixed=True,
    ),
    "initial ones of the finest scale; 'auto' is the widest in train.budget",
  )

  @property
  def width(self) -> int:
    """The channels, a nominal number where they are still to be chosen."""
    if isinstance(self.channels, int):
      return self.channels
    return NOMINAL_CHANNELS


def scales_field() -> Any:
  """Returns the field of families that have scales: it is one field."""
  return field(2, whole(1), 'rows of the grid; 1 is the DARTS network')


def boosting_field() -> Any:
  """Returns the field of families whose exits may add up: it is one field."""
  return field(
    0.0,
    number(0, 1),
    'share of the logits of an exit that the next one adds its own to; 0 is '
    'off',
  )


class Sizes(Protocol):
  """The sizes that every network has."""

  # They are a dataclass.
  __dataclass_fields__: ClassVar[dict[str, Any]]

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, channels) of the input."""

  @property
  def num_classes(self) -> int:
    """Classes of the classifiers."""


class Exit(Protocol):
  """A classifier."""

  @property
  def index(self) -> int:
    """Which exit it is, from 0."""

  @property
  def layer(self) -> int:
    """The layer after which it stands."""


class Plan(Protocol):
  """A network as data, without arrays."""

  @property
  def spec(self) -> Sizes:
    """The sizes that it was made from."""

  @property
  def exits(self) -> Sequence[Exit]:
    """In the order in which they are computed."""


class AnytimeNetwork(Protocol):
  """A Flax linen module with exits."""

  @property
  def plan(self) -> Plan:
    """The network as data."""

  @property
  def dtype(self) -> str:
    """Of the computation: 'float32' or 'bfloat16'."""

  @property
  def axis_name(self) -> str | None:
    """The device axis that shares the BN statistics."""

  @property
  def num_exits(self) -> int:
    """The number of exits."""

  @property
  def batch_axis(self) -> int:
    """The axis of the images in what is carried from step to step."""

  def __call__(
    self,
    images: jax.Array,
    weights: Any = None,
    *,
    train: bool,
    drop_path: jax.Array | float | None = None,
    last_exit: int | None = None,
  ) -> jax.Array:
    """Computes the exits up to `last_exit`, by default all.

    Args:
      images: (batch, height, width, channels), normalised.
      weights: of mixed cells; None where there are none.
      train: whether BNs use, and keep, the statistics of the batch.
      drop_path: probability to drop an operation, where the family has any.
      last_exit: index of the last exit to compute.

    Returns:
      Logits (exits, batch, classes), float32.
    """

  def advance(
    self,
    carried: Carried,
    weights: Any = None,
    *,
    step: int,
    train: bool,
    drop_path: jax.Array | float | None = None,
  ) -> tuple[Carried, jax.Array]:
    """Computes one step, from the features at hand.

    Args:
      carried: what the step before returned; `{IMAGES: images}` at first.
      weights: as `__call__` takes them.
      step: index of the exit to come to, that after the one before.
      train: as `__call__` takes it.
      drop_path: the same.

    Returns:
      The features that later steps read, and the logits (batch, classes),
      float32.
    """

  def modules_of_step(self, step: int) -> frozenset[str]:
    """Returns the modules, keys of `params`, that a step computes with."""

  def cost_rows(self) -> tuple[CostRow, ...]:
    """Returns what is computed, in an order that works, step after step."""

  def tensors(self) -> Mapping[str, tuple[str, ...]]:
    """Returns the tensors that a name stands for, if it is not one itself.

    A feature map that lies side by side with others, or in parts, is named
    once and held once, however many read it.
    """

  def clone(self, **fields: Any) -> AnytimeNetwork:
    """Returns the module with other attributes; linen's."""

  def apply(
    self, variables: Mapping[str, Any], *args: Any, **fields: Any
  ) -> Any:
    """Calls the module with variables; linen's."""

  def init(self, key: jax.Array, *args: Any, **fields: Any) -> Any:
    """Returns first variables; linen's."""

  def lazy_init(self, key: jax.Array, *args: Any, **fields: Any) -> Any:
    """Returns first variables, without computing the network; linen's."""


def last_exit_of(
  num_exits: int, last_exit: int | None, name: str = 'last_exit'
) -> int:
  """Returns the index of the last exit to compute.

  Args:
    num_exits: how many there are.
    last_exit: as `AnytimeNetwork.__call__` takes it.
    name: of the argument, for the message.

  Raises:
    UsageError: there is no such exit.
  """
  last = num_exits - 1 if last_exit is None else last_exit
  if not 0 <= last < num_exits:
    raise UsageError(
      f'{name} = {last}: the network has exits 0 to {num_exits - 1}.'
    )
  return last


@dataclasses.dataclass(frozen=True)
class NumberedExit:
  """An exit of which nothing else is known, see `Exit`."""

  index: int
  layer: int


@dataclasses.dataclass(frozen=True)
class FeatureExit:
  """A classifier on a feature of a plan, see `Exit`.

  Attributes:
    index: which exit it is, from 0.
    feature: what it reads; knows its `layer`.
  """

  index: int
  feature: Any

  @property
  def layer(self) -> int:
    """The layer after which the exit stands."""
    return self.feature.layer

  @property
  def name(self) -> str:
    """The name of its module, also its key in `params`."""
    return f'exit_{self.layer}'


@dataclasses.dataclass(frozen=True)
class PlainPlan:
  """A plan of sizes and exits alone, see `Plan`."""

  spec: Any
  exits: tuple[NumberedExit, ...]


class SteppedNetwork(nn.Module):
  """What follows from a network's `advance`; a base for families.

  A subclass has the attributes `plan`, `dtype`, `lowering` and `axis_name`, and
  adds `advance`, `modules_of_step` and `cost_rows`, see `AnytimeNetwork`. Its
  features have their images on the first axis.

  Where `plan.spec.boosting` is set, its `advance` returns `boosted`, and its
  cost rows have `boosted_rows`: an exit's own logits correct those of the exit
  before, which are not trained by it,

      logits[k] = own[k] + boosting * stop_gradient(logits[k - 1])

  (Yu et al., "Boosted Dynamic Neural Networks", 2023; 0.5 there).
  """

  @property
  def num_exits(self) -> int:
    """The number of exits."""
    return len(self.plan.exits)

  @property
  def batch_axis(self) -> int:
    """The axis of the images in what is carried from step to step."""
    return 0

  def tensors(self) -> Mapping[str, tuple[str, ...]]:
    """Returns nothing: every name is a tensor."""
    return {}

  def boosted(
    self, carried: Carried, kept: Carried, own: jax.Array, step: int
  ) -> tuple[Carried, jax.Array]:
    """Returns what `advance` does, of an exit's own logits.

    Args:
      carried: what the step before left.
      kept: the features that later steps read.
      own: (batch, classes).
      step: index of the exit.
    """
    share = self.plan.spec.boosting
    if not share:
      return kept, own
    # A map of one pixel, its images where other features have them.
    axis = self.batch_axis
    if PREVIOUS in carried:
      before = jnp.asarray(carried[PREVIOUS])
      own = own + jnp.moveaxis(before, axis, 0).reshape(own.shape)
    if step + 1 < self.num_exits:
      pixel = share * lax.stop_gradient(own)[:, None, None]
      left = jnp.moveaxis(pixel, 0, axis) if axis else pixel
      kept = {**kept, PREVIOUS: left}
    return kept, own

  def __call__(
    self,
    images: jax.Array,
    weights: Any = None,
    *,
    train: bool,
    drop_path: jax.Array | float | None = None,
    last_exit: int | None = None,
  ) -> jax.Array:
    """Computes one step after the other, see `AnytimeNetwork`."""
    carried: Carried = {IMAGES: images}
    logits = []
    for step in range(last_exit_of(self.num_exits, last_exit) + 1):
      carried, answer = self.advance(
        carried, weights, step=step, train=train, drop_path=drop_path
      )
      logits.append(answer)
    return jnp.stack(logits)


def check_sizes(
  spec: Any, names: Sequence[str], field: str, least: int = 1
) -> None:
  """Refuses sizes that are no whole numbers, or too small.

  Args:
    spec: the sizes.
    names: of those that have to be whole numbers.
    field: what messages call the sizes.
    least: the smallest that they may be.

  Raises:
    UsageError: names the first of them.
  """
  for name in names:
    value = getattr(spec, name)
    if not is_whole(value) or value < least:
      raise UsageError(
        f'{field}.{name} = {value!r}: give a whole number of at least {least}.'
      )


def check_boosting(boosting: float, num_exits: int, field: str) -> None:
  """Refuses an impossible share, and exits that add up where there is one.

  Args:
    boosting: of the sizes.
    num_exits: of the network.
    field: what messages call the sizes.

  Raises:
    UsageError: it is none, or would do nothing.
  """
  if not is_number(boosting) or not 0 <= boosting <= 1:
    raise UsageError(
      f'{field}.boosting = {boosting!r}: give a number from 0 to 1.'
    )
  if boosting and num_exits == 1:
    raise UsageError(
      f'{field}.boosting = {boosting:g}, but there is one exit; leave it at 0.'
    )


def boosted_rows(plan: Any) -> tuple[CostRow, ...]:
  """Returns what exits take that add up: the logits of the exit before.

  Args:
    plan: of `spec` with `boosting`, and exits with a `name`.
  """
  if not plan.spec.boosting:
    return ()
  return tuple(
    CostRow(
      (before.name,),
      exit_.name,
      plan.spec.num_classes,
      (),
      exit_.index,
      exit_.name,
    )
    for before, exit_ in itertools.pairwise(plan.exits)
  )


def end_plain_step(
  builder: plain_form.Builder,
  plan: Any,
  step: int,
  own: str,
  carried: Sequence[str],
) -> plain_form.Step:
  """Returns a step of a plain form, whose exit may add to the one before.

  Args:
    builder: has the layers of the step.
    plan: of `spec` with `boosting`.
    step: index of the exit.
    own: the tensor with its own logits.
    carried: features that later steps read.
  """
  share = plan.spec.boosting
  if not share:
    return builder.end_step(own, carried)
  # Each step has a name of its own for what it leaves.
  name = f'{PREVIOUS}_{step}'
  logits, left = own, list(carried)
  if step:
    before = f'{PREVIOUS}_{step - 1}'
    logits = builder.add(plain_form.AddLogits(), [own, before])
  if step + 1 < len(plan.exits):
    left.append(builder.add(plain_form.LogitsMap(share), [logits], name))
  return builder.end_step(logits, left)


def check_images(plan: Plan, images: jax.Array) -> None:
  """Refuses images of another shape than those planned for.

  Raises:
    UsageError: they are.
  """
  if images.shape[1:] != plan.spec.image_shape:
    raise UsageError(
      f'the network is planned for images of shape {plan.spec.image_shape}, '
      f'not {images.shape[1:]}.'
    )
