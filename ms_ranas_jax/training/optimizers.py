"""The optimizers of params, as DARTS sets them."""

from __future__ import annotations

import jax
from jax import flatten_util
import jax.numpy as jnp
from jax.typing import ArrayLike
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


def with_warmup(schedule: optax.Schedule, steps: float) -> optax.Schedule:
  """Returns a schedule that rises in the first steps (Goyal et al., 2017).

  Step t, from 0, has (t + 1) / steps of the rate that it would have.

  Args:
    schedule: without the rise.
    steps: that it takes; 0 is none.
  """
  if not steps:
    return schedule
  return lambda step: (
    schedule(step) * jnp.minimum((step + 1) / jnp.float32(steps), 1)
  )


def one_cycle(peak: float, steps: int, rise: float = 0.0) -> optax.Schedule:
  """Up from a 25th of the peak, then down to a 10,000th of that, by cosines.

  Smith and Topin, "Super-Convergence", 2018, with the numbers of PyTorch's
  OneCycleLR. It moves with every step.

  Args:
    peak: the largest learning rate.
    steps: of the whole training.
    rise: steps to the peak; 0 is 30 % of all.

  Returns:
    step -> learning rate, float32.
  """
  rise = rise or 0.3 * steps
  rates = (peak / 25, peak, peak / 25 / 1e4)
  first, top, last = (np.float32(rate) for rate in rates)

  def schedule(step: ArrayLike) -> jax.Array:
    # optax's own computes in the widest type that JAX has.
    done = jnp.asarray(step, jnp.float32)
    rises = done < rise
    share = jnp.where(rises, done / rise, (done - rise) / (steps - rise))
    start, end = jnp.where(rises, first, top), jnp.where(rises, top, last)
    turn = (1 + jnp.cos(jnp.pi * jnp.minimum(share, 1))) / 2
    return end + (start - end) * turn

  return schedule


def sgd(
  learning_rate: optax.ScalarOrSchedule,
  momentum: float,
  weight_decay: float,
  clip: float,
  nesterov: bool = False,
) -> optax.GradientTransformation:
  """Gradient-norm clip, L2 decay, momentum, learning rate, in that order.

  It works on one vector of all params: a search network has hundreds of small
  arrays, and a few loops for each take longer to compile than to run.

  Args:
    learning_rate: a rate or a schedule.
    momentum: of the heavy ball, or Nesterov's.
    weight_decay: L2 decay, added to the gradient after the clip.
    clip: largest gradient norm; 0 is off. The state has the same form either
      way, so that one optimizer can look ahead with the state of the other.
    nesterov: whether the momentum is Nesterov's, as PyTorch has it.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> optimizer = mr.sgd(0.1, momentum=0.9, weight_decay=0.0, clip=1.0)
    >>> params = {'w': jax.numpy.zeros(2)}
    >>> gradient = {'w': jax.numpy.array([3.0, 4.0])}  # of norm 5
    >>> updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    >>> [round(float(x), 3) for x in updates['w']]
    [-0.06, -0.08]
  """
  return optax.flatten(
    optax.chain(
      optax.clip_by_global_norm(clip) if clip else optax.identity(),
      optax.add_decayed_weights(weight_decay),
      optax.sgd(learning_rate, momentum, nesterov),
    )
  )


def adamw(
  learning_rate: optax.ScalarOrSchedule, weight_decay: float, clip: float
) -> optax.GradientTransformation:
  """Gradient-norm clip, then Adam with decoupled decay of all params.

  Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019; b1 = 0.9
  and b2 = 0.999. Like `sgd` it works on one vector.

  Args:
    learning_rate: a rate or a schedule.
    weight_decay: a step takes learning rate * decay of a param away.
    clip: largest gradient norm; 0 is off.
  """
  return optax.flatten(
    optax.chain(
      optax.clip_by_global_norm(clip) if clip else optax.identity(),
      optax.adamw(learning_rate, weight_decay=weight_decay),
    )
  )


def global_norm(tree: optax.Params) -> jax.Array:
  """Returns the norm of all arrays of a tree as one vector.

  Where the optimizer is `sgd`, the vector is the one that it works on.
  """
  return jnp.linalg.norm(flatten_util.ravel_pytree(tree)[0])
