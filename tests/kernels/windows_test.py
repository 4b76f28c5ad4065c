"""Slices and phases against plain indexing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.kernels import windows


def _image(height, width):
  rng = np.random.default_rng(0)
  return rng.normal(size=(2, height, width, 3)).astype(np.float32)


def test_relu_and_select():
  x = jnp.array([-1.0, 0.0, 2.0])
  np.testing.assert_array_equal(windows.relu(x), [0, 0, 2])
  gradient = jax.grad(lambda x: jnp.sum(3 * windows.relu(x)))(x)
  np.testing.assert_array_equal(gradient, [0, 0, 3])
  np.testing.assert_array_equal(windows.select(x < 1, x), [-1, 0, 0])


def test_pad_and_cut():
  x = _image(4, 5)
  padded = windows.pad(x, 1, 2, -1.0)
  expected = np.pad(x, [(0, 0), (1, 2), (1, 2), (0, 0)], constant_values=-1)
  np.testing.assert_array_equal(padded, expected)
  np.testing.assert_array_equal(windows.pad(padded, -1, -2), x)


def test_window():
  x = _image(7, 9)
  np.testing.assert_array_equal(windows.window(x, 1, 2, (3, 4)), x[:, 1:4, 2:6])
  np.testing.assert_array_equal(
    windows.window(x, 1, 0, (3, 5), 2), x[:, 1:7:2, 0:9:2]
  )


@pytest.mark.parametrize('size', [(4, 6), (5, 7), (1, 2)])
def test_subsample(size):
  x = _image(*size)
  np.testing.assert_array_equal(windows.subsample(x), x[:, ::2, ::2])
  odd = np.asarray(windows.subsample(x, 1))
  height, width = size[0] // 2, size[1] // 2
  np.testing.assert_array_equal(odd[:, :height, :width], x[:, 1::2, 1::2])
  assert odd.shape[1:3] == (-(-size[0] // 2), -(-size[1] // 2))
  assert not odd[:, height:].any() and not odd[:, :, width:].any()


@pytest.mark.parametrize('size', [(4, 6), (5, 7), (1, 2)])
def test_interleave_puts_the_phases_back(size):
  x = _image(*size)
  even = np.pad(x, [(0, 0), (0, size[0] % 2), (0, size[1] % 2), (0, 0)])
  phases = tuple(
    tuple(jnp.asarray(even[:, a::2, b::2]) for b in (0, 1)) for a in (0, 1)
  )
  np.testing.assert_array_equal(windows.interleave(phases, size), x)


@pytest.mark.parametrize('kernel', [1, 3, 5, 7])
def test_phases_use_every_tap_once_and_stay_within_the_padding(kernel):
  used = []

  def term(i, j, row, column):
    used.append((i, j))
    # Input pixel h = 2 q + a reads output o = q + shift with h = 2 o + i - p.
    shift = windows.shift_padding(kernel)
    assert abs(row) <= shift and abs(column) <= shift
    return np.zeros(1)

  if kernel == 1:  # three of the phases are empty
    assert windows.phases_of_strided(term, kernel)[1][1] is None
  else:
    windows.phases_of_strided(term, kernel)
  assert sorted(used) == [(i, j) for i in range(kernel) for j in range(kernel)]
