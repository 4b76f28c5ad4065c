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
  """
  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.adam(learning_rate, b1=b1, b2=b2),
  )
