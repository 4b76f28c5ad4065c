"""Dense convolutions: both lowerings and their gradients, and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.kernels import convolution
from ms_ranas_jax.kernels import lowering


@pytest.mark.parametrize(
  ('kernel', 'strides', 'batch', 'size'),
  [
    ((3, 3), (1, 1), 2, (5, 6)),
    ((3, 3), (2, 2), 2, (5, 6)),
    ((3, 3), (2, 2), 1, (6, 5)),
    ((3, 3), (2, 2), 1, (1, 1)),
    ((1, 1), (2, 2), 1, (5, 4)),
    ((1, 7), (1, 2), 1, (4, 5)),
    ((7, 1), (2, 1), 1, (5, 4)),
  ],
  ids=str,
)
def test_lowerings_agree(kernel, strides, batch, size, reference):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(batch, *size, 3))
  w = rng.normal(size=(*kernel, 3, 4))

  @jax.jit
  def compute(x, w):
    results = []
    for choice in (lowering.CONV, lowering.TAPS, lowering.FUSED):
      with lowering.using(choice):
        y, pull = jax.vjp(
          lambda x, w: convolution.convolution(x, w, strides), x, w
        )
      results.append((y, pull(jnp.cos(y))))
    return results

  with jax.enable_x64(True):
    conv, *others = compute(x, w)
  np.testing.assert_allclose(
    conv[0], reference.convolution(x, w, strides), atol=1e-10
  )
  for other in others:
    for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(conv), strict=True):
      assert a.dtype == b.dtype == np.float64
      np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
  if batch == 2:
    conv, *others = compute(np.float32(x), np.float32(w))
    for other in others:
      for a, b in zip(
        jax.tree.leaves(other), jax.tree.leaves(conv), strict=True
      ):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize('lead', [1, 3])
def test_pointwise(lead):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(lead, 2, 3, 4, 5)).astype(np.float32)
  kernels = rng.normal(size=(3, 5, 6)).astype(np.float32)
  y = convolution.pointwise(x, kernels)
  assert y.shape == (3, 2, 3, 4, 6)
  for edge in range(3):
    np.testing.assert_allclose(
      y[edge], x[edge if lead > 1 else 0] @ kernels[edge], rtol=1e-4, atol=1e-5
    )


def test_kernels_take_the_type_of_the_input():
  x = jnp.ones((1, 3, 3, 2), jnp.bfloat16)
  for choice in (lowering.TAPS, lowering.FUSED, lowering.CONV):
    with lowering.using(choice):
      y = convolution.convolution(x, jnp.ones((3, 3, 2, 2)))
    assert y.dtype == jnp.bfloat16
  assert convolution.pointwise(x[None], jnp.ones((1, 2, 2))).dtype == x.dtype
