r"""A skip connection beside every mixture, which fades away (DARTS-).

A skip connection does two things in a search network: it is one operation
among others, and it carries gradients past them. The second makes its alphas
grow whatever it is worth. DARTS- (Chu et al. 2021, eq. 8) takes that over with
an auxiliary skip that is not chosen: the mixture of an edge becomes

  f(x) = beta skip(x) + sum over operations o of weight_o o(x),

where beta fades to zero, so that the last epoch is that of the network without
it. The skip is the identity, or at stride 2 a factorized reduce of its own.

It needs no change in a cell: it is one more operation on every edge, the last,
whose weight is beta instead of one that is learned. With edge normalisation the
whole mixture counts with the edge's share.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.sections import COSINE
from ms_ranas_jax.sections import DECAYS
from ms_ranas_jax.sections import LINEAR
from ms_ranas_jax.space import network
from ms_ranas_jax.space import operations as ops

NAME = 'auxiliary_skip'


def with_auxiliary_skip(primitives: ops.Primitives) -> ops.Primitives:
  """Returns the operations of a search network with an auxiliary skip.

  Args:
    primitives: name -> operation, those that can be chosen.

  Example:
    >>> import ms_ranas_jax as mr
    >>> len(mr.with_auxiliary_skip(mr.PRIMITIVES)) - len(mr.PRIMITIVES)
    1
  """
  return {**primitives, NAME: ops.Skip()}


def with_auxiliary_weights(
  weights: network.Weights, factor: jax.Array | float
) -> dict[str, jax.Array]:
  """Returns weights with the column of the auxiliary skip.

  Args:
    weights: {'normal': (edges, operations), 'reduction': ...}.
    factor: beta, a scalar.

  Returns:
    The same with one column more, beta times the sum of the row: one, or with
    edge normalisation the edge's share.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> weights = {'normal': jax.numpy.full((2, 4), 0.25)}
    >>> mr.with_auxiliary_weights(weights, 0.5)['normal'][0].tolist()
    [0.25, 0.25, 0.25, 0.25, 0.5]
  """
  return {
    kind: jnp.concatenate(
      [table, factor * jnp.sum(table, axis=1, keepdims=True)], axis=1
    )
    for kind, table in weights.items()
  }


def factor_at(
  epoch: jax.Array | int, start: float, epochs: int, decay: str = LINEAR
) -> jax.Array:
  """Returns beta, which fades from epoch to epoch.

  Args:
    epoch: from 0, at most epochs - 1.
    start: beta of the first epoch; that of the last is zero.
    epochs: of the search, two at least.
    decay: 'linear' or 'cosine'.

  Returns:
    float32, of the shape of `epoch`.

  Raises:
    UsageError: there is no such decay, or there are too few epochs.
  """
  if decay not in DECAYS:
    raise UsageError(f'auxiliary skip decay {decay!r}: give one of {DECAYS}.')
  if epochs < 2:
    raise UsageError('an auxiliary skip needs two epochs at least to fade.')
  left = 1.0 - jnp.asarray(epoch, jnp.float32) / (epochs - 1)
  if decay == COSINE:
    left = 0.5 - 0.5 * jnp.cos(math.pi * left)
  return start * left
