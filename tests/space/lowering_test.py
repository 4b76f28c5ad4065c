"""The choice of lowering, and the fences in compiled programs."""

import re

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import depthwise
from ms_ranas_jax.space import lowering
from ms_ranas_jax.space import normalization
from ms_ranas_jax.space import pooling


@pytest.fixture(name='cpu')
def _cpu():
  if jax.default_backend() != 'cpu':
    pytest.skip('fences stand on CPUs only')


def test_resolve():
  on_cpu = jax.default_backend() == 'cpu'
  assert lowering.resolve() == ('taps' if on_cpu else 'conv')
  assert lowering.resolve('auto') == lowering.resolve()
  assert lowering.resolve('taps') == 'taps'
  assert lowering.resolve('conv') == 'conv'


def test_an_unknown_lowering_is_refused():
  with pytest.raises(UsageError, match="lowering = 'fast'.*'taps'"):
    lowering.resolve('fast')


def test_auto_takes_the_convolutions_where_there_is_no_cpu(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert lowering.resolve('auto') == 'conv'
  assert lowering.resolve('taps') == 'taps'


def test_a_fenced_function_computes_what_it_says():
  @lowering.fence(static_argnums=(1,))
  def scaled(x, factor):
    """Scales."""
    return x * factor

  assert (scaled.__name__, scaled.__doc__) == ('scaled', 'Scales.')
  np.testing.assert_array_equal(scaled(jnp.arange(3.0), 2.0), [0.0, 2.0, 4.0])
  gradient = jax.grad(lambda x: jnp.sum(lax.sin(scaled(x, 3.0))))(jnp.ones(2))
  np.testing.assert_allclose(gradient, 3 * np.cos([3.0, 3.0]), rtol=1e-6)


def test_there_is_no_fence_where_there_is_no_cpu(monkeypatch):
  @lowering.fence()
  def double(x):
    return x + x

  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  jaxpr = jax.make_jaxpr(double)(jnp.ones(2)).jaxpr
  assert [e.primitive.name for e in jaxpr.eqns] == ['add']


def _fenced_calls(function, *args):
  """Names of the functions that the compiled program calls, in its order."""
  text = jax.jit(function).lower(*args).compile().as_text()
  entry = text[text.index('\nENTRY ') :]
  names = re.findall(
    r' call\(.*to_apply=%?([a-z_]+)[^,]*,.*inlineable="false"', entry
  )
  # XLA appends `_` and a number to the names of repeated calls.
  return [name.rstrip('_') for name in names]


@pytest.mark.parametrize(
  ('sizes', 'at_the_end'), [((3,), []), ((3, 5), ['_through_relu'])]
)
def test_the_compiled_gradients_of_convolutions_keep_their_fences(
  cpu, sizes, at_the_end
):
  """If a new jaxlib drops the attribute, all is right but much slower."""

  def both_ways(x, kernels):
    shapes = [depthwise.Window(size) for size in sizes]
    outputs, pull = jax.vjp(
      lambda x, kernels: depthwise.relu_depthwise(
        x, kernels, shapes, 1, lowering.TAPS
      ),
      x,
      kernels,
    )
    return outputs, pull(outputs)

  kernels = [jnp.ones((2, size, size, 4)) for size in sizes]
  calls = _fenced_calls(both_ways, jnp.ones((1, 2, 5, 6, 4)), kernels)
  count = len(sizes)
  assert sorted(calls) == [
    *['_input_gradient'] * count,
    *['_kernel_gradient'] * count,
    '_padded_inputs',
    *['_taps'] * count,
    *at_the_end,
  ]


def test_the_compiled_mixture_of_pools_keeps_its_fences(cpu):
  def both_ways(x, scale):
    def mixture(x, scale):
      terms = (
        pooling.max_pool(x, 1, lowering.TAPS),
        pooling.average_pool(x, 1, lowering.TAPS),
      )
      return normalization.normalized_sum(terms, jnp.stack([scale] * 2))[0]

    y, pull = jax.vjp(mixture, x, scale)
    return y, pull(y)

  calls = _fenced_calls(both_ways, jnp.ones((1, 2, 5, 6, 4)), jnp.ones((1, 4)))
  assert sorted(calls) == [
    '_average',
    '_average_input_gradient',
    '_gradient_in_terms',
    '_max_and_winner',
    '_max_input_gradient',
    '_weigh',
    'sum_products',
    'sum_products',
  ]
