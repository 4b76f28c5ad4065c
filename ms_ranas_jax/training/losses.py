"""The loss over exits, eq. (3) of the paper, and accuracy per exit."""

from __future__ import annotations

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import optax

from ms_ranas_jax.errors import UsageError


def exit_losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Cross-entropy of each exit, the mean over the batch.

  Args:
    logits: (exits, batch, classes).
    labels: (batch,) int.

  Returns:
    (exits,), at least float32.
  """
  chex.assert_rank([logits, labels], [3, 1])
  chex.assert_equal_shape_prefix([logits[0], labels], 1)
  wide = jnp.promote_types(logits.dtype, jnp.float32)
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits.astype(wide),
    jnp.broadcast_to(labels[None], logits.shape[:2]),
  )
  return losses.mean(axis=1)


def weighted_loss(
  logits: jax.Array, labels: jax.Array, weights: Sequence[float]
) -> jax.Array:
  """Eq. (3) of the paper: the weighted sum of the exits' cross-entropies.

  Args:
    logits: (exits, batch, classes).
    labels: (batch,) int.
    weights: w_k, one per exit.

  Returns:
    A scalar.
  """
  of_exits = exit_losses(logits, labels)
  factors = jnp.asarray(weights, of_exits.dtype)
  chex.assert_shape(factors, logits.shape[:1])
  return jnp.dot(factors, of_exits)


def exit_accuracies(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """The fraction of the batch that each exit gets right.

  Args:
    logits: (exits, batch, classes).
    labels: (batch,) int.

  Returns:
    (exits,) float32.
  """
  chex.assert_rank([logits, labels], [3, 1])
  right = jnp.argmax(logits, axis=-1) == labels[None]
  return right.astype(jnp.float32).mean(axis=1)


def exit_weights(
  weights: Sequence[float], num_exits: int, field: str
) -> tuple[float, ...]:
  """Returns w_k of eq. (3): as given, or equal where none are.

  Args:
    weights: one per exit, or empty for ones.
    num_exits: the number of exits.
    field: the config field, for the error message.

  Raises:
    UsageError: there are not as many weights as exits, or they are negative.
  """
  if not len(weights):
    return (1.0,) * num_exits
  if len(weights) != num_exits:
    raise UsageError(
      f'{field} has {len(weights)} entries for {num_exits} exits; give one '
      'weight per exit, or none for equal weights.'
    )
  if min(weights) < 0 or not max(weights) > 0:
    raise UsageError(f'{field}: weights must be at least 0, and some above.')
  return tuple(float(w) for w in weights)
