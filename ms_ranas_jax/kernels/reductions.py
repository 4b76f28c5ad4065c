"""Sums over the pixels of a batch, of maps and of products of two.

Batch normalisation needs them both ways: of z and z z for the moments, of G and
G z_q for the gradient, where all products share G. A reduction straight to a
few channels keeps a CPU waiting on its few accumulators, and reads G once per
product. Here rows of thousands of values are added up in one loop over the
rows, all sums at once, and what is left is summed to channels at the end. One
loop for all terms also keeps the program small, and so its compile time.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools

import jax
from jax import lax
import jax.numpy as jnp

from ms_ranas_jax.kernels import lowering

# Values that one accumulator holds, and all of a loop together: small enough
# for the cache.
_ACCUMULATOR = 65536
_ACCUMULATORS = 524288
# Rows that one iteration spells out; they save loads and stores of the sums.
_ROWS_PER_ITERATION = 2


def sum_products(
  maps: Sequence[jax.Array], products: tuple[tuple[int, ...], ...]
) -> jax.Array:
  """Sums products of feature maps over batch, height and width, all at once.

  Args:
    maps: (n, batch, height, width, channels) each; the leading size may
      differ, and is 1 where a product is to repeat a map.
    products: which maps to multiply, one or two numbers each.

  Returns:
    (rows, channels), float32 or wider: the rows of the first product, as many
    as the larger leading size, then those of the second, and so on.
  """
  return lowering.select(
    functools.partial(_in_one_loop, products=products),
    functools.partial(_plain, products=products),
    tuple(maps),
  )


def _plain(maps, products):
  wide = jnp.promote_types(jnp.result_type(*maps), jnp.float32)
  return jnp.concatenate(
    [
      jnp.sum(
        functools.reduce(
          lambda a, b: a * b, [maps[i].astype(wide) for i in factors]
        ),
        axis=(1, 2, 3),
      )
      for factors in products
    ]
  )


@lowering.noinline
def _in_one_loop(maps, *, products):
  *pixels, channels = maps[0].shape[1:]
  count = pixels[0] * pixels[1] * pixels[2]
  wide = jnp.promote_types(jnp.result_type(*maps), jnp.float32)
  leads = [max(maps[i].shape[0] for i in factors) for factors in products]
  values = min(_ACCUMULATOR // max(leads), _ACCUMULATORS // sum(leads))
  width = lowering.largest_divisor(count, min(count, values // channels))
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
      values = [read(array, iteration, row) for array in arrays]
      sums = tuple(
        total + functools.reduce(lambda a, b: a * b, [values[i] for i in f])
        for total, f in zip(sums, products, strict=True)
      )
    return sums

  arrays = [rows(array) for array in maps]
  sums = tuple(lax.full((lead, width * channels), 0, wide) for lead in leads)
  if iterations == 1:
    sums = body(jnp.int32(0), sums)
  else:
    sums = lax.fori_loop(0, iterations, body, sums)
  return lax.reduce(
    lax.reshape(lax.concatenate(sums, 0), (sum(leads), width, channels)),
    jnp.zeros((), wide),
    lax.add,
    (1,),
  )
