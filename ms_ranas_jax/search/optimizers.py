"""The optimizer of alphas."""

from __future__ import annotations

import optax


def adam_with_l2(
  learning_rate: float, weight_decay: float, b1: float = 0.5, b2: float = 0.999
) -> optax.GradientTransformation:
  """Adam on the gradient plus L2 decay, as DARTS uses for alphas.

  The decay is added to the gradient and so scaled by Adam, unlike AdamW's.

  Args:
    learning_rate: constant.
    weight_decay: L2 decay.
    b1: decay of the first moment.
    b2: decay of the second moment.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> optimizer = mr.adam_with_l2(3e-4, weight_decay=1e-3)
    >>> alphas = {'normal': jax.numpy.ones((2, 3))}
    >>> updates, _ = optimizer.update(alphas, optimizer.init(alphas), alphas)
    >>> updates['normal'].shape
    (2, 3)
  """
  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.adam(learning_rate, b1=b1, b2=b2),
  )
