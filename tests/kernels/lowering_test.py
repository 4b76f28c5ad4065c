"""The choice of lowering, and the calls in compiled programs."""

from concurrent import futures
import functools
import re

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.kernels import convolution
from ms_ranas_jax.kernels import depthwise
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.kernels import normalization
from ms_ranas_jax.kernels import pooling
from ms_ranas_jax.kernels import recompute
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space.genotype import Genotype


@pytest.fixture(name='cpu')
def _cpu():
  if jax.default_backend() != 'cpu':
    pytest.skip('calls stay calls on CPUs only')


def _lowered(function, *args, platform):
  traced = jax.jit(function).trace(*args)
  return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
  ('operation', 'plain'),
  [
    (
      lambda x: depthwise.relu_depthwise(
        x, [jnp.ones((1, 3, 3, 4))], [depthwise.KernelShape(3)], 1
      )[0],
      'stablehlo.convolution',
    ),
    (
      lambda x: convolution.convolution(x[0], jnp.ones((3, 3, 4, 8)), (2, 2)),
      'stablehlo.convolution',
    ),
    (lambda x: pooling.max_pool(x, 1), 'stablehlo.reduce_window'),
    (lambda x: pooling.average_pool(x, 2), 'stablehlo.reduce_window'),
  ],
  ids=['depthwise', 'dense', 'max', 'average'],
)
def test_auto_goes_by_the_platform_of_the_program_not_of_the_tracing(
  operation, plain
):
  """Forward and back, lowered here for machines that are not here."""
  x = jnp.ones((1, 2, 6, 6, 4))

  def both_ways(choice):
    def compute(x):
      with lowering.using(choice):
        y, pull = jax.vjp(operation, x)
      return y, pull(y)

    return compute

  def uses_plain(choice, platform):
    return plain in _lowered(both_ways(choice), x, platform=platform)

  assert not uses_plain('auto', 'cpu')
  assert not uses_plain('auto', 'cuda')
  assert uses_plain('auto', 'tpu')
  for platform in ('cpu', 'tpu'):
    assert not uses_plain('taps', platform)
    assert not uses_plain('fused', platform)
    assert uses_plain('conv', platform)


def test_auto_is_differentiated_by_the_rule_of_its_platform():
  def gradient(choice):
    def loss(x):
      with lowering.using(choice):
        y = pooling.max_pool(x, 1)
      return jnp.sum(y * jnp.arange(y.size, dtype=y.dtype).reshape(y.shape))

    return jax.grad(loss)(jnp.zeros((1, 1, 3, 3, 1)))

  # Of equal maxima the first one gets the gradient, as in PyTorch.
  chosen = lowering.resolve('auto')
  np.testing.assert_array_equal(gradient('auto'), gradient(chosen))


def test_an_unknown_lowering_is_refused():
  with pytest.raises(UsageError, match="lowering = 'fast'.*'taps'"):
    lowering.using('fast')


def _plain_pools(function, *args):
  return str(jax.make_jaxpr(function)(*args)).count('reduce_window')


def test_what_is_jitted_is_traced_once_for_every_choice():
  """Else the second call would run what was traced for the first."""
  x = jnp.ones((1, 4, 4, 1))
  traced = []

  @jax.jit
  def pool(x):
    traced.append(True)
    return pooling.max_pool(x, 1)

  for _ in range(2):
    for choice, plain in ('taps', 0), ('conv', 1), ('fused', 0):
      with lowering.using(choice):
        pool(x)
        assert _plain_pools(pool, x) == plain
  assert len(traced) == 3


def test_a_noinline_function_is_a_call_under_one_choice_only():
  double = lowering.noinline(lambda x: x + x)

  def calls(choice):
    with lowering.using(choice):
      return str(jax.make_jaxpr(double)(jnp.ones(2))).count('jit[')

  assert [calls(c) for c in ('taps', 'conv', 'fused', 'taps')] == [1, 0, 0, 1]


def test_the_innermost_choice_counts_and_ends_with_its_block():
  def pools():
    return _plain_pools(
      lambda x: pooling.max_pool(x, 1), jnp.ones((1, 2, 2, 1))
    )

  with lowering.using('taps'):
    with pytest.raises(ZeroDivisionError), lowering.using('conv'):
      assert pools() == 1
      raise ZeroDivisionError
    assert pools() == 0
    # Each thread has its own.
    with futures.ThreadPoolExecutor() as pool:
      assert pool.submit(pools).result() > 0


@pytest.mark.parametrize('outside', ['taps', 'conv'])
def test_the_way_back_is_that_of_the_call(outside):
  """Under `jax.jit` the way back is traced when the forward pass is over."""
  x, kernel = jnp.ones((1, 2, 6, 6, 4)), jnp.ones((1, 3, 3, 4))
  inside = {'taps': 'conv', 'conv': 'taps'}[outside]

  def total(x, kernel):
    shapes = [depthwise.KernelShape(3)]
    with lowering.using(inside):
      (y,) = depthwise.relu_depthwise(
        pooling.max_pool(x, 1), [kernel], shapes, 1
      )
      y, _ = normalization.normalized_sum((y,), jnp.ones((1, 1, 4)))
    return jnp.sum(jnp.cos(y))

  with lowering.using(outside):
    text = _lowered(jax.grad(total, (0, 1)), x, kernel, platform='cpu')
  plain = inside == 'conv'
  assert ('stablehlo.convolution' in text) == plain
  assert ('stablehlo.select_and_scatter' in text) == plain
  assert ('inlineable = "false"' in text) != plain


@pytest.mark.parametrize('outside', ['taps', 'conv'])
def test_what_is_computed_again_is_computed_as_the_first_time(outside):
  inside = {'taps': 'conv', 'conv': 'taps'}[outside]

  def total(x):
    with lowering.using(inside), recompute.using(True):
      y = recompute.where_asked(lambda x: pooling.max_pool(x, 1))(x)
    return jnp.sum(jnp.cos(y))

  with lowering.using(outside):
    text = _lowered(jax.grad(total), jnp.ones((1, 4, 4, 1)), platform='cpu')
  assert ('stablehlo.reduce_window' in text) == (inside == 'conv')
  assert ('inlineable = "false"' in text) == (inside == 'taps')


def test_a_noinline_function_computes_what_it_says():
  @lowering.noinline
  def scaled(x, *, factor):
    """Scales."""
    return x * factor

  assert (scaled.__name__, scaled.__doc__) == ('scaled', 'Scales.')
  np.testing.assert_array_equal(
    scaled(jnp.arange(3.0), factor=2.0), [0.0, 2.0, 4.0]
  )
  gradient = jax.grad(lambda x: jnp.sum(lax.sin(scaled(x, factor=3.0))))(
    jnp.ones(2)
  )
  np.testing.assert_allclose(gradient, 3 * np.cos([3.0, 3.0]), rtol=1e-6)


def test_auto_keeps_calls_in_programs_for_cpus_only():
  @lowering.noinline
  def double(x):
    return x + x

  x = jnp.ones(2)

  def not_inlined(choice, platform):
    with lowering.using(choice):
      text = _lowered(double, x, platform=platform)
    return 'inlineable = "false"' in text

  assert not_inlined('auto', 'cpu')
  assert not not_inlined('auto', 'cuda')
  assert not not_inlined('auto', 'tpu')
  assert not_inlined('taps', 'cpu')
  assert not not_inlined('fused', 'cpu')
  assert not not_inlined('conv', 'cpu')


def test_programs_for_gpus_have_no_loops():
  """Each iteration would be a few calls of the device, one after the other."""

  def both_ways(choice):
    def compute(x, kernel):
      def total(x, kernel):
        with lowering.using(choice):
          (y,) = depthwise.relu_depthwise(
            x, [kernel], [depthwise.KernelShape(3)], 1
          )
          y, _ = normalization.normalized_sum((y,), jnp.ones((1, 1, 4)))
        return jnp.sum(jnp.cos(y))

      return jax.grad(total, (0, 1))(x, kernel)

    return compute

  # So large that sums are loops on CPUs.
  args = jnp.ones((1, 128, 32, 32, 4)), jnp.ones((1, 3, 3, 4))

  def loops(choice, platform):
    text = _lowered(both_ways(choice), *args, platform=platform)
    return text.count('stablehlo.while')

  assert loops('auto', 'cpu') >= 2
  assert loops('auto', 'cuda') == 0
  assert loops('fused', 'cpu') == 0


@pytest.mark.parametrize(
  ('backend', 'expected'), [('cpu', 'taps'), ('gpu', 'fused'), ('tpu', 'conv')]
)
def test_resolve(backend, expected, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  assert lowering.resolve() == expected
  for choice in ('taps', 'fused', 'conv'):
    assert lowering.resolve(choice) == choice
  with pytest.raises(UsageError, match="lowering = 'fast'"):
    lowering.resolve('fast')


def _noinline_calls(function, *args):
  """Names of the functions that the compiled program calls, in its order."""
  text = jax.jit(function).lower(*args).compile().as_text()
  entry = text[text.index('\nENTRY ') :]
  names = re.findall(
    r' call\(.*to_apply=%?([a-z_]+)[^,]*,.*inlineable="false"', entry
  )
  # XLA appends `_` and a number to the names of repeated calls.
  return [name.rstrip('_') for name in names]


@pytest.mark.parametrize(
  ('sizes', 'channels', 'of_kernels', 'at_the_end'),
  [
    ((3,), 4, '_kernel_gradient_of_rows', []),
    ((3, 5), 12, '_kernel_gradient', ['_through_relu']),
  ],
)
def test_the_compiled_gradients_of_convolutions_keep_their_calls(
  cpu, sizes, channels, of_kernels, at_the_end
):
  """If a new jaxlib drops the attribute, all is right but much slower."""

  def both_ways(x, kernels):
    shapes = [depthwise.KernelShape(size) for size in sizes]
    with lowering.using(lowering.TAPS):
      outputs, pull = jax.vjp(
        lambda x, kernels: depthwise.relu_depthwise(x, kernels, shapes, 1),
        x,
        kernels,
      )
    return outputs, pull(outputs)

  kernels = [jnp.ones((2, size, size, channels)) for size in sizes]
  calls = _noinline_calls(both_ways, jnp.ones((1, 2, 5, 6, channels)), kernels)
  count = len(sizes)
  assert sorted(calls) == [
    *['_input_gradient'] * count,
    *[of_kernels] * count,
    '_padded_inputs',
    *['_taps'] * count,
    *at_the_end,
  ]


def test_the_compiled_mixture_of_pools_keeps_its_calls(cpu):
  def both_ways(x, scale):
    def mixture(x, scale):
      with lowering.using(lowering.TAPS):
        terms = pooling.max_pool(x, 1), pooling.average_pool(x, 1)
      return normalization.normalized_sum(terms, jnp.stack([scale] * 2))[0]

    y, pull = jax.vjp(mixture, x, scale)
    return y, pull(y)

  calls = _noinline_calls(
    both_ways, jnp.ones((1, 2, 5, 6, 4)), jnp.ones((1, 4))
  )
  assert sorted(calls) == [
    '_average',
    '_average_input_gradient',
    '_gradient_in_terms',
    '_in_one_loop',
    '_in_one_loop',
    '_max_and_winner',
    '_max_input_gradient',
    '_weigh',
  ]


@pytest.mark.slow
def test_a_network_of_which_nothing_is_said_is_computed_as_here():
  genotype = Genotype(
    (('sep_conv_3x3', 0), ('max_pool_3x3', 1)),
    (2,),
    (('sep_conv_3x3', 0), ('skip_connect', 1)),
    (2,),
  )
  spec = grid.NetworkSpec(
    image_shape=(8, 8, 1), channels=4, layers=2, nodes=1, scales=1
  )
  images = jnp.ones((2, 8, 8, 1))
  found = {}
  for choice in 'auto', lowering.resolve():
    network = network_lib.derived_network(spec, genotype, lowering=choice)
    # One program is compiled sooner than every operation by itself.
    compute = functools.partial(network.init_with_output, train=True)
    found[choice], _ = jax.jit(compute)(jax.random.key(0), images)
  np.testing.assert_array_equal(*found.values())
