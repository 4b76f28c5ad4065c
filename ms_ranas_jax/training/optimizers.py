"""The optimizers of params, as DARTS sets them."""

from __future__ import annotations

import jax
from jax import flatten_util
import jax.numpy as jnp
import numpy as np
import optax

_DECAY = 0.1


def epoch_cosine(
  start: float, end: float, epochs: int, steps_per_epoch: int
) -> optax.Schedule:
  """A cosine schedule from `start` to `end` that moves once an epoch.

  Args:
    start: learning rate of the first epoch.
    end: what the rate would reach after the last epoch.
    epochs: number of epochs.
    steps_per_epoch: steps of an epoch.

  Returns:
    step -> learning rate, float32.
  """
  decay = optax.cosine_decay_schedule(start - end, epochs)
  # A whole number would be divided in the widest type that JAX has.
  return lambda step: (
    end + decay(jnp.floor_divide(step, steps_per_epoch).astype(jnp.float32))
  )


def epoch_steps(
  start: float, epochs: int, steps_per_epoch: int
) -> optax.Schedule:
  """MSDNet's schedule: times 0.1 at a half and at three quarters.

  Args:
    start: learning rate of the first epoch.
    epochs: number of epochs.
    steps_per_epoch: steps of an epoch.

  Returns:
    step -> learning rate, float32.
  """
  rates = [np.float32(_DECAY**n * start) for n in range(3)]
  return optax.join_schedules(
    [optax.constant_schedule(rate) for rate in rates],
    # Rounded up to whole epochs.
    [-(-quarters * epochs // 4) * steps_per_epoch for quarters in (2, 3)],
  )


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
