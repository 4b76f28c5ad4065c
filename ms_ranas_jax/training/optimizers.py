"""The optimizers of params, as DARTS sets them."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax import flatten_util
import jax.numpy as jnp
import optax

_DECAY = 0.1


def epoch_cosine(
  start: float, end: float, epochs: int, steps_per_epoch: int
) -> Callable[[jax.Array], jax.Array]:
  """A cosine schedule from `start` to `end` that moves once an epoch.

  Args:
    start: learning rate of the first epoch.
    end: what the rate would reach after the last epoch.
    epochs: number of epochs.
    steps_per_epoch: steps of an epoch.

  Returns:
    step -> learning rate, float32.
  """

  def schedule(step: jax.Array) -> jax.Array:
    epoch = jnp.minimum(step // steps_per_epoch, epochs)
    cosine = jnp.cos(jnp.pi * epoch / epochs)
    return end + 0.5 * (start - end) * (1.0 + cosine)

  return schedule


def epoch_steps(
  start: float, epochs: int, steps_per_epoch: int
) -> Callable[[jax.Array], jax.Array]:
  """MSDNet's schedule: times 0.1 at a half and at three quarters.

  Args:
    start: learning rate of the first epoch.
    epochs: number of epochs.
    steps_per_epoch: steps of an epoch.

  Returns:
    step -> learning rate, float32.
  """

  def schedule(step: jax.Array) -> jax.Array:
    epoch = step // steps_per_epoch
    rates = jnp.asarray([start, _DECAY * start, _DECAY**2 * start])
    # In whole numbers, so that no rounding moves a step.
    return rates[
      (2 * epoch >= epochs).astype(int) + (4 * epoch >= 3 * epochs).astype(int)
    ]

  return schedule


def sgd(
  learning_rate: optax.ScalarOrSchedule,
  momentum: float,
  weight_decay: float,
  clip: float,
) -> optax.GradientTransformation:
  """Gradient-norm clip, L2 decay, momentum, learning rate, in that order.

  It works on one vector of all params: a search network has hundreds of small
  arrays, and a few loops for each take longer to compile than to run.

  Args:
    learning_rate: a rate or a schedule.
    momentum: of the heavy ball, not Nesterov's.
    weight_decay: L2 decay, added to the gradient after the clip.
    clip: largest gradient norm; 0 is off. The state has the same form either
      way, so that one optimizer can look ahead with the state of the other.
  """
  return optax.flatten(
    optax.chain(
      optax.clip_by_global_norm(clip) if clip else optax.identity(),
      optax.add_decayed_weights(weight_decay),
      optax.sgd(learning_rate, momentum),
    )
  )


def global_norm(tree: optax.Params) -> jax.Array:
  """Returns the norm of all arrays of a tree as one vector.

  Where the optimizer is `sgd`, the vector is the one that it works on.
  """
  return jnp.linalg.norm(flatten_util.ravel_pytree(tree)[0])
