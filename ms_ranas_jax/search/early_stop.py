r"""Stopping a search before its validation loss becomes sharp in the alphas.

Zela et al. 2020 ("Understanding and robustifying differentiable architecture
search") find that searches which collapse come to a place where the validation
loss curves steeply in the alphas, so that taking the strongest operations costs
much. They follow the dominant eigenvalue of its Hessian, averaged over a window
of epochs, and stop when it has grown by a factor within a window; the genotype
is that from before (section 4.3; the factor is 1 / 0.75, or 1.3 in their code).

The Hessian is never formed: Lanczos's method asks for its products with some
vectors only, and each is the derivative of a gradient along one direction,
forward mode over reverse mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import flatten_util
from jax import lax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.errors import UsageError

PyTree = Any
# Products with the Hessian. The dominant eigenvalue stands apart from the
# others, and is found to a percent in about ten.
_LANCZOS_STEPS = 16
# Where the space that the products span ends, in shares of what they are.
_EXHAUSTED = 1e-5


def hessian_eigenvalue(
  loss: Callable[..., jax.Array],
  params: PyTree,
  alphas: PyTree,
  steps: int = _LANCZOS_STEPS,
  batches: PyTree | None = None,
) -> jax.Array:
  """The largest eigenvalue of the Hessian of a loss in the alphas.

  A softmax does not change when its row is shifted, so with softmax weights it
  is never below zero.

  Args:
    loss: (params, alphas) -> scalar; with batches, (params, alphas, batch).
    params: network params.
    alphas: architecture logits.
    steps: products with the Hessian; as many as there are alphas is exact.
    batches: arrays whose leading axis counts batches: the loss is the mean over
      them, taken one after the other. None is for a loss that takes no batch.

  Returns:
    A scalar.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> found = mr.hessian_eigenvalue(
    ...   lambda params, alphas: 3 * alphas['a'] @ alphas['a'],
    ...   {}, {'a': jax.numpy.ones(4)},
    ... )
    >>> round(float(found), 4)
    6.0
  """
  flat, unflatten = flatten_util.ravel_pytree(alphas)

  def product(direction: jax.Array) -> jax.Array:
    def of_batch(*batch: PyTree) -> jax.Array:
      # The gradient in params is asked for, and compiled away, since rules with
      # a hand-written reverse mode admit no other forward mode.
      _, (_, rate) = jax.jvp(
        lambda a: jax.grad(loss, (0, 1))(params, a, *batch),
        (alphas,),
        (unflatten(direction),),
      )
      return flatten_util.ravel_pytree(rate)[0]

    if batches is None:
      return of_batch()
    return jnp.mean(lax.map(of_batch, batches), axis=0)

  return largest_eigenvalue(product, flat.size, steps, flat.dtype)


def largest_eigenvalue(
  product: Callable[[jax.Array], jax.Array],
  size: int,
  steps: int,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
  """The largest eigenvalue of a symmetric matrix, by Lanczos's method.

  Every vector is made orthogonal to all before it, twice, so that rounding
  does no harm. It begins with the same random vector each time.

  Args:
    product: vector (size,) -> the matrix times it.
    size: rows of the matrix.
    steps: how many products; `size` of them at most are used, and exact.
    dtype: of the vectors.

  Returns:
    A scalar, the largest eigenvalue of the matrix within the space of the
    products: never above that of the whole but for rounding.
  """
  steps = min(steps, size)
  start = jax.random.normal(jax.random.key(0), (size,), dtype)

  def step(carry, index):
    basis, vector, length, alive = carry
    basis = basis.at[index].set(vector)
    image = product(vector)
    diagonal = jnp.vdot(vector, image)
    scale = jnp.linalg.norm(image)
    for _ in range(2):
      image = image - (basis @ image) @ basis
    following = jnp.linalg.norm(image)
    # Where the space is exhausted, what is left is rounding.
    goes_on = alive & (following > _EXHAUSTED * jnp.maximum(scale, length))
    vector = jnp.where(goes_on, image / following, jnp.zeros_like(image))
    following = jnp.where(goes_on, following, 0)
    return (
      (basis, vector, jnp.maximum(scale, length), goes_on),
      (diagonal, following, alive),
    )

  carry = (
    jnp.zeros((steps, size), dtype),
    start / jnp.linalg.norm(start),
    jnp.zeros((), dtype),
    jnp.bool_(True),
  )
  _, (diagonal, beside, within) = lax.scan(
    step, carry, jnp.arange(steps, dtype=jnp.int32)
  )
  # Steps after the end repeat the first entry, which is no eigenvalue but lies
  # between the smallest and the largest.
  diagonal = jnp.where(within, diagonal, diagonal[0])
  matrix = (
    jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1)
  )
  return jnp.linalg.eigvalsh(matrix)[-1]


def epoch_before_rise(
  eigenvalues: Sequence[float], window: int, factor: float
) -> int | None:
  """Returns the epoch to go back to once the eigenvalue has risen.

  Args:
    eigenvalues: after each epoch so far.
    window: epochs to average over, and to look back.
    factor: how much the average may grow within a window.

  Returns:
    The index of the epoch a window before the last one, when the average over
    the last window is more than `factor` times that over the window before;
    otherwise None. With fewer than two windows of epochs there is no telling.

  Raises:
    UsageError: there is no such window.

  Example:
    >>> import ms_ranas_jax as mr
    >>> mr.epoch_before_rise([1.0, 1.0, 1.0, 2.0], window=2, factor=1.3)
    1
    >>> mr.epoch_before_rise([1.0, 1.0, 1.0, 1.1], window=2, factor=1.3) is None
    True
  """
  if window < 1:
    raise UsageError(f'early stop window = {window}: give 1 epoch at least.')
  if len(eigenvalues) < 2 * window:
    return None
  before, now = (
    float(np.mean(eigenvalues[len(eigenvalues) - start :][:window]))
    for start in (2 * window, window)
  )
  if now <= factor * before:
    return None
  return len(eigenvalues) - 1 - window
