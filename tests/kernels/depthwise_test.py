"""The taps and their gradients against the plain convolution and numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.kernels import depthwise
from ms_ranas_jax.kernels import lowering

# So few are computed on rows at stride 1, and more on pixels.
NARROW = 3
WIDE = 9
EDGES = 2
ALL = (
  depthwise.KernelShape(3),
  depthwise.KernelShape(5),
  depthwise.KernelShape(7),
  depthwise.KernelShape(3, 2),
  depthwise.KernelShape(5, 2),
)
PER_EDGE = (depthwise.KernelShape(3), depthwise.KernelShape(5, 2))


def _inputs(shapes, shared, batch, size, channels=WIDE):
  rng = np.random.default_rng(len(shapes))
  lead = 1 if shared else EDGES
  x = rng.normal(size=(lead, batch, *size, channels))
  kernels = [
    rng.normal(size=(EDGES, s.kernel, s.kernel, channels)) for s in shapes
  ]
  # A fixed cotangent of another size for every output.
  seeds = [rng.normal() for _ in shapes]
  return x, kernels, seeds


def _value_and_gradients(shapes, stride, choice, x, kernels, seeds):
  with lowering.using(choice):
    outputs, pull = jax.vjp(
      lambda x, kernels: depthwise.relu_depthwise(x, kernels, shapes, stride),
      x,
      kernels,
    )
  return outputs, pull(tuple(jnp.cos(y + s) for y, s in zip(outputs, seeds)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _both_cases(stride, choice, shared, separate):
  return [
    _value_and_gradients(windows, stride, choice, *case)
    for windows, case in ((ALL, shared), (PER_EDGE, separate))
  ]


def _assert_close(actual, expected, relative):
  """Every leaf agrees, relative to the leaf's largest entry."""
  for a, b in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    assert a.dtype == b.dtype and a.shape == b.shape
    scale = np.abs(b).max()
    assert scale > 0
    np.testing.assert_allclose(a, b, rtol=0, atol=relative * scale)


@pytest.mark.parametrize(
  ('stride', 'batch', 'size', 'channels'),
  # The loop over pixels takes one row at a time, or two.
  [
    (1, 2, (5, 6), WIDE),
    (1, 1, (8, 7), WIDE),
    (1, 2, (6, 5), NARROW),
    (2, 2, (5, 6), NARROW),
    (2, 1, (8, 7), NARROW),
  ],
  ids=str,
)
def test_taps_equal_the_plain_convolution(
  stride, batch, size, channels, reference
):
  """Values and gradients, shared and per-edge inputs, both precisions."""
  shared = _inputs(ALL, True, batch, size, channels)
  separate = _inputs(PER_EDGE, False, batch, size, channels)

  def compute(shared, separate):
    found = []
    for choice in lowering.CONV, lowering.TAPS, lowering.FUSED:
      # The others are not what CPUs compute with.
      quick = choice != lowering.TAPS
      jax.config.update('jax_disable_most_optimizations', quick)
      found.append(_both_cases(stride, choice, shared, separate))
    return list(zip(*found))

  with jax.enable_x64(True):
    results = compute(shared, separate)
  for conv, *others in results:
    assert jax.tree.leaves(conv)[0].dtype == np.float64
    for other in others:
      _assert_close(other, conv, 1e-9)

  x, kernels, _ = shared
  for window, kernel, output in zip(
    ALL, kernels, results[0][0][0], strict=True
  ):
    for edge in range(EDGES):
      expected = reference.depthwise(
        reference.relu(x[0]), kernel[edge], stride, window.dilation
      )
      np.testing.assert_allclose(output[edge], expected, atol=1e-10)

  if batch == 2:
    single = jax.tree.map(np.float32, (shared, separate))
    for conv, *others in compute(*single):
      assert jax.tree.leaves(conv)[0].dtype == np.float32
      for other in others:
        _assert_close(other, conv, 1e-4)


@pytest.mark.parametrize(
  ('shapes', 'stride', 'channels'),
  [
    ((depthwise.KernelShape(3),), 1, WIDE),
    ((depthwise.KernelShape(3),), 1, NARROW),
    (PER_EDGE, 1, NARROW),
    (PER_EDGE, 2, NARROW),
  ],
  ids=str,
)
def test_an_affine_map_before_the_relu(shapes, stride, channels):
  """Its gradients too; one window at stride 1 has a shorter way back."""
  x, kernels, seeds = _inputs(shapes, False, 2, (5, 6), channels)
  rng = np.random.default_rng(1)
  affine = tuple(rng.normal(size=(2, EDGES, channels)))

  @jax.jit
  def compute(*args):
    def way(choice, before):
      def convolve(x, affine, kernels):
        if before:
          factor, shift = (a[:, None, None, None, :] for a in affine)
          x, affine = x * factor + shift, None
        with lowering.using(choice):
          return depthwise.relu_depthwise(x, kernels, shapes, stride, affine)

      outputs, pull = jax.vjp(convolve, *args)
      cotangents = (jnp.cos(y + s) for y, s in zip(outputs, seeds))
      return outputs, pull(tuple(cotangents))

    return (
      way(lowering.CONV, before=True),
      way(lowering.CONV, before=False),
      way(lowering.TAPS, before=False),
      way(lowering.FUSED, before=False),
    )

  with jax.enable_x64(True):
    plain, *others = compute(x, affine, kernels)
  for other in others:
    _assert_close(other, plain, 1e-9)
  plain, _, *others = compute(*jax.tree.map(np.float32, (x, affine, kernels)))
  for other in others:
    _assert_close(other, plain, 1e-4)


@pytest.mark.parametrize(
  ('windows', 'stride', 'size'),
  [
    # Who else reads the input decides on its padding, and on how the gradient
    # comes back: these read even pixels only.
    ((depthwise.KernelShape(3, 2),), 2, (5, 4)),
    ((depthwise.KernelShape(5, 2), depthwise.KernelShape(3, 2)), 2, (4, 5)),
    # Rows that are longer than an iteration of the loop over pixels.
    ((depthwise.KernelShape(3),), 1, (2, 18)),
    # Rows of one pixel.
    ((depthwise.KernelShape(3, 2),), 1, (3, 1)),
    # Images that are smaller than the window.
    ((depthwise.KernelShape(7), depthwise.KernelShape(5, 2)), 1, (1, 3)),
    ((depthwise.KernelShape(7), depthwise.KernelShape(5, 2)), 2, (2, 1)),
    ((depthwise.KernelShape(3, 2),), 2, (1, 1)),
  ],
  ids=str,
)
def test_special_shapes(windows, stride, size):
  channels = NARROW if size[1] == 1 else WIDE
  case = _inputs(windows, True, 1, size, channels)

  @jax.jit
  def compute(x, kernels, seeds):
    return [
      _value_and_gradients(windows, stride, choice, x, kernels, seeds)
      for choice in (lowering.CONV, lowering.TAPS, lowering.FUSED)
    ]

  with jax.enable_x64(True):
    conv, *others = compute(*case)
  for other in others:
    for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(conv), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)


def test_kernels_take_the_type_of_the_input():
  x, kernels, _ = _inputs(ALL[:1], True, 1, (3, 3))
  for choice in (lowering.TAPS, lowering.FUSED, lowering.CONV):
    with lowering.using(choice):
      (y,) = depthwise.relu_depthwise(
        jnp.asarray(x, jnp.bfloat16), [jnp.asarray(kernels[0])], ALL[:1], 1
      )
    assert y.dtype == jnp.bfloat16


# On pixels, and on rows.
@pytest.mark.parametrize('channels', [1, 2])
def test_weight_gradient_in_bfloat16_is_summed_in_more_digits(channels):
  """Summed in bfloat16, small terms are lost once the sum is 256 times them."""
  x = jnp.ones((1, 1, 32, 32, channels), jnp.bfloat16)
  kernel = jnp.ones((1, 3, 3, channels))

  def total(kernel, choice):
    with lowering.using(choice):
      (y,) = depthwise.relu_depthwise(x, [kernel], ALL[:1], 1)
    return jnp.sum(y, dtype=jnp.float32)

  inside = np.array([31, 32, 31])
  expected = np.outer(inside, inside)[..., None]  # pixels that a tap reads
  for choice in (lowering.TAPS, lowering.FUSED):
    gradient = jax.jit(jax.grad(total), static_argnums=1)(kernel, choice)
    np.testing.assert_allclose(
      gradient[0], np.broadcast_to(expected, (3, 3, channels)), rtol=0.02
    )
