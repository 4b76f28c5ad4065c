"""What a training minimises, of the logits of all exits and the labels.

Without options it is eq. (3) of the paper: the weighted sum of the exits'
cross-entropies.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.training import losses


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
  """The terms of the loss, each off by default.

  Attributes:
    weights: w_k of eq. (3), one per exit.
    class_weights: (classes,) of the images in the loss, see
      `losses.exit_losses`; None is ones.
    label_smoothing: share e of the label that all classes have, e / classes
      each (Szegedy et al., "Rethinking the Inception Architecture for Computer
      Vision", 2016).
    distillation: share g of the loss of every exit but the last that is taken
      from the last exit's answer instead of the label, see
      `distillation_losses`.
    temperature: T of the distillation.
    trunk_steps: in the first so many steps the last exit alone is trained, and
      then all of them: the mixed regime of Kubaty et al., "How to Train Your
      Multi-Exit Model?", 2025.
  """

  weights: tuple[float, ...]
  class_weights: np.ndarray | None = None
  label_smoothing: float = 0.0
  distillation: float = 0.0
  temperature: float = 1.0
  trunk_steps: int = 0

  @property
  def is_plain(self) -> bool:
    """Whether it is eq. (3) and nothing else."""
    return self.class_weights is None and not (
      self.label_smoothing or self.distillation or self.trunk_steps
    )


@dataclasses.dataclass(frozen=True)
class Mixed:
  """The labels of images that are mixed in pairs.

  Attributes:
    labels: (batch,) int, of the first image of each pair.
    others: (batch,) int, of the second.
    share: () float, what the first one counts; the second counts the rest.
  """

  labels: jax.Array
  others: jax.Array
  share: jax.Array


Labels = jax.Array | Mixed


def part_of(labels: Labels, start: jax.Array | int, size: int) -> Labels:
  """Returns the labels of a part of a batch.

  Args:
    labels: (batch,) int, or those of mixed images.
    start: of the part.
    size: images of it.
  """

  def part(x: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size)

  if isinstance(labels, Mixed):
    return Mixed(part(labels.labels), part(labels.others), labels.share)
  return part(labels)


def loss(
  objective: Objective,
  logits: jax.Array,
  labels: Labels,
  step: jax.Array | int,
) -> jax.Array:
  """Returns what is minimised, a scalar.

  Args:
    objective: its terms.
    logits: (exits, batch, classes).
    labels: (batch,) int, or those of mixed images.
    step: steps done.
  """
  chex.assert_rank(logits, 3)
  of_exits = mixed(
    lambda y: losses.exit_losses(
      logits, y, objective.class_weights, objective.label_smoothing
    ),
    labels,
  )
  if objective.distillation:
    share = jnp.full(len(of_exits), objective.distillation, of_exits.dtype)
    share = share.at[-1].set(0)
    taught = distillation_losses(logits, objective.temperature)
    of_exits = (1 - share) * of_exits + share * taught
  weights = jnp.asarray(objective.weights, of_exits.dtype)
  chex.assert_equal_shape([weights, of_exits])
  if objective.trunk_steps:
    last = jnp.zeros_like(weights).at[-1].set(weights[-1])
    weights = jnp.where(step < objective.trunk_steps, last, weights)
  return jnp.dot(weights, of_exits)


def plain_loss(
  weights: Sequence[float], logits: jax.Array, labels: Labels
) -> jax.Array:
  """Returns eq. (3), whatever is minimised.

  Args:
    weights: w_k, one per exit.
    logits: (exits, batch, classes).
    labels: (batch,) int, or those of mixed images.
  """
  return mixed(lambda y: losses.weighted_loss(logits, y, weights), labels)


def accuracies(logits: jax.Array, labels: Labels) -> jax.Array:
  """Returns the share of the batch that each exit gets right, (exits,).

  Args:
    logits: (exits, batch, classes).
    labels: (batch,) int, or those of mixed images, each of which counts its
      share.
  """
  return mixed(lambda y: losses.exit_accuracies(logits, y), labels)


def mixed(of_labels, labels: Labels) -> jax.Array:
  """Returns a figure of labels, of mixed images the mean that they stand for.

  Args:
    of_labels: (batch,) int -> the figure, linear in one-hot labels.
    labels: (batch,) int, or those of mixed images.
  """
  if not isinstance(labels, Mixed):
    return of_labels(labels)
  first, second = of_labels(labels.labels), of_labels(labels.others)
  share = labels.share.astype(first.dtype)
  return share * first + (1 - share) * second


def distillation_losses(logits: jax.Array, temperature: float) -> jax.Array:
  """Returns how far each exit is from the last one's answer.

      T**2 * KL(softmax(last / T) || softmax(exit / T))

  the mean over the batch (Hinton et al., "Distilling the Knowledge in a Neural
  Network", 2015; from the last exit of the same network, Phuong and Lampert,
  "Distillation-Based Training for Multi-Exit Architectures", 2019). No gradient
  goes to the last exit.

  Args:
    logits: (exits, batch, classes).
    temperature: T, above 0.

  Returns:
    (exits,), at least float32.
  """
  wide = jnp.promote_types(logits.dtype, jnp.float32)
  logs = jax.nn.log_softmax(logits.astype(wide) / temperature, axis=-1)
  teacher = jax.lax.stop_gradient(logs[-1:])
  divergence = jnp.sum(jnp.exp(teacher) * (teacher - logs), axis=-1)
  return temperature**2 * divergence.mean(axis=1)
