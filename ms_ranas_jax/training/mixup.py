"""Mixup: images and labels in pairs, a weighted mean of both.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018. As in the
public code there is one share for a batch, and the second images are the batch
in another order. Batches come shuffled, so the next image will do, and N
devices mix what one would.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Folded into the key of a step, of which small numbers are places of images.
_STREAM = 0xFFFFFFFF


def draw_share(key: jax.Array, alpha: float) -> jax.Array:
  """Returns what the first image of each pair counts, () float32.

  Args:
    key: of the step, the same on all devices.
    alpha: both parameters of a Beta distribution, above 0.
  """
  key = jax.random.fold_in(key, jnp.uint32(_STREAM))
  return jax.random.beta(key, alpha, alpha, dtype=jnp.float32)


def next_in_batch(x: jax.Array, axis_name: str | None) -> jax.Array:
  """Returns for each place of a batch what stands at the next one.

  Args:
    x: (batch, ...), this device's part.
    axis_name: the device axis that the batch is split over.

  Returns:
    (batch, ...); the last place of all has the first one's.
  """
  if axis_name is None:
    return jnp.roll(x, -1, axis=0)
  count = jax.lax.psum(1, axis_name)
  to_the_left = [(device, (device - 1) % count) for device in range(count)]
  first = jax.lax.ppermute(x[:1], axis_name, to_the_left)
  return jnp.concatenate([x[1:], first])


def mix(first: jax.Array, second: jax.Array, share: jax.Array) -> jax.Array:
  """Returns share * first + (1 - share) * second, of the first's dtype."""
  share = share.astype(first.dtype)
  return share * first + (1 - share) * second
