"""Networks: their params, exits, steps, and a whole forward in numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax.baselines import cells as published_cells
from ms_ranas_jax.costs import cost
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.kernels import recompute
from ms_ranas_jax.space import genotype
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations

# Two scales, three exits, both reductions, halved inputs and odd sizes.
SPEC = grid.NetworkSpec(
  channels=4, layers=4, nodes=1, scales=2, image_shape=(9, 10, 2), num_classes=3
)
FEW = {
  name: operations.PRIMITIVES[name]
  for name in ('none', 'max_pool_3x3', 'skip_connect', 'dil_conv_3x3')
}
CELLS = genotype.Genotype(
  normal=(('skip_connect', 0), ('dil_conv_3x3', 1)),
  normal_concat=(2,),
  reduction=(('max_pool_3x3', 1), ('skip_connect', 0)),
  reduction_concat=(2,),
)


@dataclasses.dataclass(frozen=True)
class _Compiled:
  """A network with variables, and its compiled forward in both modes."""

  network: network_lib.Network
  variables: dict
  images: np.ndarray
  weights: dict | None
  forward: object  # variables -> (train logits, eval logits)


def _images(spec, batch=2):
  rng = np.random.default_rng(7)
  return rng.normal(size=(batch, *spec.image_shape)).astype(np.float32)


def _compile(network, fill, weights=None):
  images = _images(network.plan.spec)
  return _Compiled(
    network,
    fill(network, images, weights, train=True),
    images,
    weights,
    jax.jit(_forward(network, images, weights)),
  )


def _forward(network, images, weights):
  return lambda variables: tuple(
    network.apply(variables, images, weights, train=train)
    for train in (True, False)
  )


@pytest.fixture(scope='module')
def derived(fill):
  network = network_lib.derived_network(SPEC, CELLS)
  return _compile(network, fill)


@pytest.fixture(scope='module')
def for_imagenet(fill):
  """Its first cell has one input of the second stem, twice as large."""
  spec = dataclasses.replace(
    SPEC, layers=3, stem='imagenet', image_shape=(33, 36, 2)
  )
  return _compile(network_lib.derived_network(spec, CELLS), fill)


@pytest.fixture(scope='module')
def searched(fill, mixing):
  weights = {
    'normal': jnp.asarray(mixing(2, len(FEW), seed=1)),
    'reduction': jnp.asarray(mixing(2, len(FEW), seed=2)),
  }
  network = network_lib.search_network(SPEC, FEW)
  return _compile(network, fill, weights)


def _steps_of_params(plan):
  """Name of a module -> the step that first needs it, and its kind."""
  steps = {stem.output.name: stem.step for stem in plan.stems}
  for cell in plan.cells:
    for name in ('', '_input_0', '_input_1'):
      steps[cell.output.name + name] = cell.step
  return steps | {exit_.name: exit_.index for exit_ in plan.exits}


def _subtree(variables, name):
  return {
    collection: tree[name]
    for collection, tree in variables.items()
    if name in tree
  }


def _reference_forward(reference, compiled, train):
  """The definition of the network, feature by feature, in float64."""
  network, variables = compiled.network, compiled.variables
  spec = network.plan.spec
  reductions = (spec.layers // 3, 2 * spec.layers // 3)

  def norm(x, *path):
    return reference.norm(x, variables, path, train=train)

  def conv(x, stride, *path):
    kernel = variables['params']
    for key in path:
      kernel = kernel[key]
    z = reference.convolution(x, kernel['kernel'], (stride, stride))
    return norm(z, *path, 'norm')

  def reduce(x, *path):
    kernel = variables['params']
    for key in path:
      kernel = kernel[key]
    z = reference.factorized_reduce(x, kernel['kernel'][:, 0])
    return norm(z, *path, 'norm')

  features = {}
  x = compiled.images.astype(np.float64)
  first = -1
  if spec.stem == 'imagenet':
    first = -2
    x = conv(x, 2, 'stem_0_first')
    features[-2, 0] = x = conv(reference.relu(x), 2, 'stem_0_early')
    features[-1, 0] = conv(reference.relu(x), 2, 'stem_0')
  else:
    features[-1, 0] = conv(x, 2 if spec.stem == 'stride2' else 1, 'stem_0')
  for scale in range(1, spec.scales):
    for layer in range(first, 0):
      name = f'stem_{scale}' + '_early' * (layer == -2)
      features[layer, scale] = conv(features[layer, scale - 1], 2, name)

  wanted = {(c.output.layer, c.output.scale) for c in network.plan.cells}
  for layer, scale in sorted(wanted):
    name = f'cell_{layer}_{scale}'
    states = []
    for position, source in enumerate((layer - 2, layer - 1)):
      source = max(source, -1 if layer else first)
      path = f'{name}_input_{position}'
      halve = position == 0 and (layer - 1 in reductions or source == -2)
      level = features[source, scale]
      if halve:
        horizontal = reduce(level, path, 'horizontal')
      else:
        horizontal = conv(reference.relu(level), 1, path, 'horizontal')
      if scale == 0:
        states.append(horizontal)
        continue
      finer = reference.relu(features[source, scale - 1])
      diagonal = conv(finer, 2, path, 'diagonal')
      if halve:
        diagonal = reduce(diagonal, path, 'diagonal_reduce')
      states.append(np.concatenate([diagonal, horizontal], axis=-1))
    kind = 'reduction' if layer in reductions else 'normal'
    wiring = getattr(network, kind)
    features[layer, scale] = reference.cell(
      _subtree(variables, name),
      [(e.state, e.node, e.operations) for e in wiring.edges],
      wiring.concat,
      states,
      kind == 'reduction',
      train=train,
      search=network.search,
      weights=(
        None if compiled.weights is None else np.asarray(compiled.weights[kind])
      ),
    )
  logits = []
  for layer in range(1, spec.layers):
    dense = variables['params'][f'exit_{layer}']
    pooled = features[layer, spec.scales - 1].mean((1, 2))
    logits.append(pooled @ dense['kernel'] + dense['bias'])
  return np.stack(logits)


@pytest.mark.parametrize('which', ['derived', 'searched', 'for_imagenet'])
def test_a_whole_network_equals_the_reference(which, request, reference):
  compiled = request.getfixturevalue(which)
  wide = dataclasses.replace(
    compiled,
    network=compiled.network.clone(dtype='float64'),
    variables=jax.tree.map(np.float64, compiled.variables),
  )
  with jax.enable_x64(True):
    forward = _forward(wide.network, wide.images, wide.weights)
    outputs = jax.jit(forward)(wide.variables)
  in_float32 = compiled.forward(compiled.variables)
  for train, logits, rounded in zip((True, False), outputs, in_float32):
    expected = _reference_forward(reference, wide, train)
    exits = compiled.network.num_exits
    assert logits.shape == expected.shape == (exits, 2, 3)
    np.testing.assert_allclose(logits, expected, rtol=1e-9, atol=1e-9)
    assert rounded.dtype == np.float32
    # A change of the variables by one rounding moves the last logits by 1e-4:
    # a norm over a few equal values divides by little.
    np.testing.assert_allclose(rounded, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('which', ['derived', 'searched'])
@pytest.mark.parametrize('exit_index', [0, 1])
def test_an_exit_does_not_depend_on_what_only_later_exits_use(
  which, exit_index, request
):
  compiled = request.getfixturevalue(which)
  steps = _steps_of_params(compiled.network.plan)
  rng = np.random.default_rng(0)

  def replaced(condition):
    return {
      collection: {
        name: jax.tree.map(
          lambda leaf: leaf + rng.uniform(0.5, 1, leaf.shape), subtree
        )
        if condition(steps[name])
        else subtree
        for name, subtree in tree.items()
      }
      for collection, tree in compiled.variables.items()
    }

  before = compiled.forward(compiled.variables)
  after = compiled.forward(replaced(lambda step: step > exit_index))
  for a, b in zip(before, after):
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_array_equal(a[: exit_index + 1], b[: exit_index + 1])
    for later in range(exit_index + 1, 3):
      assert np.abs(a[later] - b[later]).max() > 1e-3

  own = compiled.forward(replaced(lambda step: step == exit_index))
  assert np.abs(before[1][exit_index] - own[1][exit_index]).max() > 1e-3
  np.testing.assert_array_equal(before[1][:exit_index], own[1][:exit_index])


def test_last_exit_computes_the_first_steps_from_their_params_alone(derived):
  steps = _steps_of_params(derived.network.plan)
  needed = {
    collection: {n: v for n, v in tree.items() if steps[n] <= 1}
    for collection, tree in derived.variables.items()
  }
  assert len(needed['params']) < len(derived.variables['params'])
  logits = jax.jit(
    lambda variables: derived.network.apply(
      variables, derived.images, train=False, last_exit=1
    )
  )(needed)
  assert logits.shape == (2, 2, 3)
  np.testing.assert_allclose(
    logits, derived.forward(derived.variables)[1][:2], rtol=1e-5, atol=1e-6
  )


def test_params_are_named_after_the_plan(derived, searched):
  for compiled in (derived, searched):
    names = set(_steps_of_params(compiled.network.plan))
    params = set(compiled.variables['params'])
    stats = set(compiled.variables['batch_stats'])
    # A cell of operations without variables has no entry.
    assert params | stats <= names
    assert {n for n in names if 'input' in n or 'exit' in n} <= params


def test_train_uses_the_batch_and_evaluation_the_running_averages(derived):
  stats = jax.tree.map(lambda s: 2 * s, derived.variables['batch_stats'])
  changed = {'params': derived.variables['params'], 'batch_stats': stats}
  before = derived.forward(derived.variables)
  after = derived.forward(changed)
  np.testing.assert_array_equal(before[0], after[0])
  assert np.abs(np.asarray(before[1]) - after[1]).max() > 1e-3


def test_batch_stats_are_written_when_mutable_and_training(derived):
  network, variables = derived.network, derived.variables
  plan = network.plan
  stem = plan.stems[0].output.name

  @jax.jit
  def update(variables):
    return [
      network.apply(
        variables,
        derived.images,
        train=train,
        last_exit=0,
        mutable=['batch_stats'],
      )[1]['batch_stats']
      for train in (True, False)
    ]

  trained, still = update(variables)
  for name, tree in still.items():
    for a, b in zip(
      jax.tree.leaves(tree), jax.tree.leaves(variables['batch_stats'][name])
    ):
      np.testing.assert_array_equal(a, b)
  # The mean of a convolution of the images moves by a tenth.
  old = variables['batch_stats'][stem]['norm']['mean']
  new = trained[stem]['norm']['mean']
  assert np.all(np.abs(new - old) > 0)
  steps = _steps_of_params(plan)
  for name, tree in trained.items():
    changed = any(
      np.any(a != b)
      for a, b in zip(
        jax.tree.leaves(tree), jax.tree.leaves(variables['batch_stats'][name])
      )
    )
    assert changed == (steps[name] == 0), name


def test_drop_path_reaches_the_cells(derived):
  def logits(rate, seed):
    return derived.network.apply(
      derived.variables,
      derived.images,
      train=True,
      drop_path=rate,
      last_exit=0,
      rngs={'drop_path': jax.random.key(seed)},
    )

  run = jax.jit(logits)
  first, again, other = run(0.5, 0), run(0.5, 0), run(0.5, 3)
  np.testing.assert_array_equal(first, again)
  assert np.abs(np.asarray(first) - other).max() > 1e-3
  expected = derived.forward(derived.variables)[0][:1]
  np.testing.assert_allclose(run(0.0, 0), expected, rtol=1e-5, atol=1e-5)


def test_darts_search_network_has_the_published_number_of_params(params_of):
  network = network_lib.search_network(grid.NetworkSpec(16, 8, 4, exits='last'))
  leaves = jax.tree.leaves(params_of(network))
  assert sum(leaf.size for leaf in leaves) == 1_930_618


def test_darts_v2_has_the_published_number_of_params(params_of):
  network = network_lib.derived_network(
    grid.NetworkSpec(36, 20, 4, exits='last'), published_cells.DARTS_V2
  )
  leaves = jax.tree.leaves(params_of(network))
  assert sum(leaf.size for leaf in leaves) == 3_349_342


TWO_NODES = genotype.Genotype(
  normal=(
    ('sep_conv_3x3', 0),
    ('sep_conv_3x3', 1),
    ('skip_connect', 0),
    ('dil_conv_5x5', 2),
  ),
  normal_concat=(2, 3),
  reduction=(
    ('skip_connect', 0),
    ('max_pool_3x3', 1),
    ('skip_connect', 0),
    ('avg_pool_3x3', 2),
  ),
  reduction_concat=(2, 3),
)
DEAD = genotype.Genotype(
  # Nothing reads state 0, and node 0 (state 2) goes nowhere.
  normal=(
    ('dil_conv_3x3', 1),
    ('max_pool_3x3', 1),
    ('skip_connect', 1),
    ('sep_conv_3x3', 1),
  ),
  normal_concat=(3,),
  reduction=(
    ('dil_conv_3x3', 1),
    ('max_pool_3x3', 1),
    ('skip_connect', 1),
    ('sep_conv_3x3', 1),
  ),
  reduction_concat=(3,),
)
NETWORKS = {
  'search, one scale': (grid.NetworkSpec(4, 4, 3), None),
  'search, three scales': (grid.NetworkSpec(8, 5, 1, scales=3), None),
  'odd channels, one scale': (grid.NetworkSpec(3, 4, 3), None),
  'odd channels, two scales': (grid.NetworkSpec(5, 4, 2, scales=2), None),
  'search, one layer': (grid.NetworkSpec(2, 1, 1), None),
  'the paper': (grid.NetworkSpec(16, 7, 2, scales=3), TWO_NODES),
  'odd images, growth 3': (
    grid.NetworkSpec(
      4,
      5,
      2,
      scales=3,
      scale_growth=3,
      exits=(0, 3),
      image_shape=(45, 31, 1),
      num_classes=7,
    ),
    TWO_NODES,
  ),
  'four scales, last exit': (
    grid.NetworkSpec(4, 4, 2, scales=4, exits='last'),
    TWO_NODES,
  ),
  'NASNet': (grid.NetworkSpec(8, 4, 5), published_cells.NASNET),
  'AmoebaNet, two scales': (
    grid.NetworkSpec(4, 6, 5, scales=2, exits=(2,)),
    published_cells.AMOEBANET,
  ),
  'DARTS_V1': (
    grid.NetworkSpec(6, 3, 4, stem_multiplier=1),
    published_cells.DARTS_V1,
  ),
  'dead ends': (grid.NetworkSpec(4, 4, 2, scales=2), DEAD),
}


def _network(name):
  spec, cells = NETWORKS[name]
  if cells is None:
    return network_lib.search_network(spec)
  return network_lib.derived_network(spec, cells)


@pytest.mark.parametrize('name', NETWORKS)
def test_params_are_as_many_as_the_cost_model_says_at_every_exit(
  name, params_of
):
  network = _network(name)
  steps = _steps_of_params(network.plan)
  sizes = {
    key: sum(leaf.size for leaf in jax.tree.leaves(tree))
    for key, tree in params_of(network).items()
  }
  found = cost.network_cost(network)
  assert found.params == sum(sizes.values())
  for exit_ in found.exits:
    assert exit_.total_params == found.params
    assert exit_.params == sum(
      size for key, size in sizes.items() if steps[key] <= exit_.exit
    )


@pytest.mark.parametrize(
  'name', ['odd images, growth 3', 'four scales, last exit', 'NASNet']
)
def test_features_have_the_sizes_of_the_plan(name):
  network = _network(name)
  images = jnp.zeros((1, *network.plan.spec.image_shape))

  def forward(images):
    return network.init_with_output(
      jax.random.key(0),
      images,
      train=True,
      capture_intermediates=True,
      mutable=['intermediates', 'params', 'batch_stats'],
    )

  logits, variables = jax.eval_shape(forward, images)
  assert logits.shape == (
    network.num_exits,
    1,
    network.plan.spec.num_classes,
  )
  assert network.num_exits == len(network.plan.exits)
  for piece in (*network.plan.stems, *network.plan.cells):
    out = piece.output
    (seen,) = variables['intermediates'][out.name]['__call__']
    assert seen.shape == (1, out.height, out.width, out.channels)


def test_bfloat16_computes_in_it_and_keeps_the_rest_in_float32(fill):
  network = network_lib.derived_network(SPEC, CELLS, dtype='bfloat16')
  images = _images(SPEC)

  def step(variables):
    def loss(params):
      logits, updates = network.apply(
        {**variables, 'params': params},
        images,
        train=True,
        capture_intermediates=True,
        mutable=['batch_stats', 'intermediates'],
      )
      return jnp.sum(logits), (logits, updates)

    return jax.grad(loss, has_aux=True)(variables['params'])

  variables = fill(network, images, train=True)
  gradient, (logits, updates) = jax.eval_shape(step, variables)
  assert logits.dtype == jnp.float32
  for leaf in jax.tree.leaves((gradient, updates['batch_stats'])):
    assert leaf.dtype == jnp.float32
  inside = updates['intermediates']
  for name in ('stem_1', 'cell_2_1'):
    assert inside[name]['__call__'][0].dtype == jnp.bfloat16


def test_the_attributes_say_how_all_in_it_is_computed(derived):
  def convolutions(outside='taps', **fields):
    network = derived.network.clone(**fields)

    def total(params):
      variables = {**derived.variables, 'params': params}
      logits = network.apply(variables, derived.images, train=False)
      return jnp.sum(logits)

    # What holds where the network is called, or differentiated, does not count.
    with lowering.using(outside), recompute.using(True):
      program = jax.make_jaxpr(jax.grad(total))(derived.variables['params'])
    return str(program).count('conv_general_dilated')

  assert convolutions('conv', lowering='taps') == 0
  plain = convolutions(lowering='conv')
  assert plain > 0
  assert convolutions(lowering='conv', remat=True) > plain
  with pytest.raises(UsageError, match="lowering = 'fast': give one of"):
    convolutions(lowering='fast')


def test_networks_that_do_not_fit_are_refused():
  with pytest.raises(UsageError, match=r'spec\.channels = 0'):
    network_lib.search_network(grid.NetworkSpec(0, 4, 2))
  with pytest.raises(UsageError, match=r'mine\.layers = 0'):
    network_lib.search_network(grid.NetworkSpec(4, 0, 2), field='mine')
  with pytest.raises(UsageError, match=r'spec\.nodes = 2, .* 4 nodes'):
    network_lib.derived_network(
      grid.NetworkSpec(4, 4, 2), published_cells.DARTS_V2
    )
  with pytest.raises(UsageError, match='"sep_conv_7x7"'):
    network_lib.derived_network(
      grid.NetworkSpec(4, 4, 5), published_cells.NASNET, operations.PRIMITIVES
    )
  none = dataclasses.replace(CELLS, normal=(('none', 0), ('none', 1)))
  with pytest.raises(UsageError, match='"none"'):
    network_lib.derived_network(SPEC, none)


def test_bad_calls_are_refused(derived, searched):
  def call(compiled, images, weights=None, **fields):
    return jax.eval_shape(
      lambda variables: compiled.network.apply(
        variables, images, weights, train=False, **fields
      ),
      compiled.variables,
    )

  with pytest.raises(UsageError, match=r'\(9, 10, 2\), not \(9, 10, 3\)'):
    call(derived, np.zeros((1, 9, 10, 3), np.float32))
  with pytest.raises(UsageError, match='takes weights'):
    call(searched, searched.images)
  for bad in (-1, 3):
    with pytest.raises(UsageError, match=f'last_exit.*{bad}'):
      call(derived, derived.images, last_exit=bad)
