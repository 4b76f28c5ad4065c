"""The loss over exits, eq. (3) of the paper, and accuracy per exit."""

from __future__ import annotations

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
import optax

from ms_ranas_jax.errors import UsageError


def exit_losses(
  logits: jax.Array,
  labels: jax.Array,
  class_weights: ArrayLike | None = None,
  label_smoothing: float = 0.0,
) -> jax.Array:
  """Cross-entropy of each exit, the mean over the batch.

  With weights the loss of image i counts w[y_i] times, and the sum is divided
  by the number N of images:

      1 / N * sum over i of w[y_i] * cross-entropy(logits_i, y_i)

  PyTorch divides by the sum of the weights instead. Divided by N, the mean over
  equal parts of a batch is that of the batch, however it is split over devices,
  and weights of one change nothing.

  With label smoothing e the cross-entropy is that with 1 - e of the label and
  e / classes of every class.

  Args:
    logits: (exits, batch, classes).
    labels: (batch,) int.
    class_weights: (classes,) w, such as `balanced_weights`; None is ones.
    label_smoothing: e, of at least 0 and below 1.

  Returns:
    (exits,), at least float32.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> logits = jax.numpy.zeros((3, 2, 10))
    >>> losses = mr.exit_losses(logits, jax.numpy.array([1, 7]))
    >>> [round(float(loss), 4) for loss in losses]
    [2.3026, 2.3026, 2.3026]
  """
  chex.assert_rank([logits, labels], [3, 1])
  chex.assert_equal_shape_prefix([logits[0], labels], 1)
  wide = jnp.promote_types(logits.dtype, jnp.float32)
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits.astype(wide),
    jnp.broadcast_to(labels[None], logits.shape[:2]),
  )
  if label_smoothing:
    of_all = -jax.nn.log_softmax(logits.astype(wide), axis=-1).mean(axis=-1)
    losses = (1 - label_smoothing) * losses + label_smoothing * of_all
  if class_weights is not None:
    factors = jnp.asarray(class_weights, wide)
    chex.assert_shape(factors, logits.shape[2:])
    losses = losses * factors[labels][None]
  return losses.mean(axis=1)


def weighted_loss(
  logits: jax.Array,
  labels: jax.Array,
  weights: Sequence[float],
  class_weights: ArrayLike | None = None,
) -> jax.Array:
  """Eq. (3) of the paper: the weighted sum of the exits' cross-entropies.

  Args:
    logits: (exits, batch, classes).
    labels: (batch,) int.
    weights: w_k, one per exit.
    class_weights: see `exit_losses`.

  Returns:
    A scalar.
  """
  of_exits = exit_losses(logits, labels, class_weights)
  factors = jnp.asarray(weights, of_exits.dtype)
  chex.assert_shape(factors, logits.shape[:1])
  return jnp.dot(factors, of_exits)


def balanced_weights(
  labels: np.ndarray, class_names: Sequence[str], field: str
) -> np.ndarray:
  """Returns weights under which all classes count the same in a loss.

      w[c] = images / (classes * images of c)

  as `class_weight='balanced'` of scikit-learn, which takes it from King and
  Zeng, "Logistic Regression in Rare Events Data", 2001. Their mean over the
  images is 1.

  >>> balanced_weights(np.array([0, 0, 0, 1]), ('cat', 'dog'), '').round(2)
  array([0.67, 2.  ], dtype=float32)

  Args:
    labels: (images,) int, of the images that are trained on.
    class_names: one per class.
    field: the config field, for the error message.

  Returns:
    (classes,) float32.

  Raises:
    UsageError: a class has no image.
  """
  classes = len(class_names)
  counts = np.bincount(labels, minlength=classes)
  empty = [repr(name) for name, count in zip(class_names, counts) if not count]
  if empty:
    raise UsageError(
      f"{field} = 'balanced', but {len(empty)} of {classes} classes have no "
      f"image to train on, such as {empty[0]}; set '' for equal weights, or "
      'give each class an image beside those that are held out.'
    )
  return (len(labels) / (classes * counts)).astype(np.float32)


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
