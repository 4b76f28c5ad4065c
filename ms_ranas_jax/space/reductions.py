"""Sums over the pixels of a batch, of a map and of its products with others.

Batch normalisation needs them both ways: of z and z z for the moments, of G and
G z_q for the gradient, where all products share G. A reduction straight to a
few channels keeps a CPU waiting on its few accumulators, and reads G once per
product. Here rows of thousands of values are added up in one loop over the
rows, all sums at once, and what is left is summed to channels at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax import lax
import jax.numpy as jnp

from ms_ranas_jax.space import lowering

# Values of all edges that one accumulator holds: small enough for the cache.
_ACCUMULATOR = 65536
# Rows that one iteration spells out; they save loads and stores of the sums.
_ROWS_PER_ITERATION = 4


@lowering.fence()
def sum_pixels(
  x: jax.Array, others: Sequence[jax.Array]
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  """Sums x, and x times each of `others`, over batch, height and width.

  Args:
    x: (n, batch, height, width, channels).
    others: of the same shape each, or with a leading 1.

  Returns:
    The sum of x and those of the products, (n, channels) each, float32 or
    wider.
  """
  edges, *pixels, channels = x.shape
  count = pixels[0] * pixels[1] * pixels[2]
  wide = jnp.promote_types(x.dtype, jnp.float32)
  width = lowering.largest_divisor(
    count, min(count, _ACCUMULATOR // (edges * channels))
  )
  unroll = lowering.largest_divisor(count // width, _ROWS_PER_ITERATION)
  iterations = count // width // unroll

  def rows(array: jax.Array) -> jax.Array:
    shape = (array.shape[0], iterations, unroll, width * channels)
    return lax.reshape(array, shape)

  def read(array: jax.Array, iteration: jax.Array, row: int) -> jax.Array:
    zero = lax.full_like(iteration, 0)  # indices have to be of one type
    start = (zero, iteration, zero + row, zero)
    size = (array.shape[0], 1, 1, array.shape[3])
    part = lax.dynamic_slice(array, start, size, allow_negative_indices=False)
    return lax.squeeze(part, (1, 2)).astype(wide)

  def body(iteration: jax.Array, sums: tuple[jax.Array, ...]):
    for row in range(unroll):
      value = read(x, iteration, row)
      sums = (
        sums[0] + value,
        *(
          total + value * read(other, iteration, row)
          for total, other in zip(sums[1:], others, strict=True)
        ),
      )
    return sums

  x = rows(x)
  others = tuple(rows(other) for other in others)
  sums = (lax.full((edges, width * channels), 0, wide),) * (1 + len(others))
  if iterations == 1:
    sums = body(jnp.int32(0), sums)
  else:
    sums = lax.fori_loop(0, iterations, body, sums)
  totals = lax.reduce(
    lax.reshape(lax.concatenate(sums, 0), (len(sums), edges, width, channels)),
    jnp.zeros((), wide),
    lax.add,
    (2,),
  )
  total, *products = (
    lax.squeeze(lax.slice_in_dim(totals, i, i + 1), (0,))
    for i in range(len(sums))
  )
  return total, tuple(products)
