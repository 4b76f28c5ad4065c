"""JAX_ENABLE_X64=1: the program computes in the types that it says, not wider.

Every type is written down, so that wider defaults change nothing. The one
exception is Adam, whose bias correction optax computes in JAX's widest type.
"""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax import families
from ms_ranas_jax import settings
from ms_ranas_jax.baselines.cells import load_genotype
from ms_ranas_jax.costs import linear_cost
from ms_ranas_jax.data.datasets import load_dataset
from ms_ranas_jax.runtime import parallel
from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.search import derived_cost
from ms_ranas_jax.search import early_stop
from ms_ranas_jax.search import random_search
from ms_ranas_jax.search import stage as search_stage
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.training import augmentation
from ms_ranas_jax.training import losses
from ms_ranas_jax.training import optimizers
from ms_ranas_jax.training import stage as train_stage

_KEY_SEED = 5
_IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), np.uint8)
_TABLES = {
  metric: linear_cost.cost_tables(
    grid.NetworkSpec(8, 4, 1, 2, image_shape=(8, 8, 1)), metric=metric
  )
  for metric in ('macs', 'peak_activation_bytes')
}


def _alphas(dtype=np.float32):
  values = np.random.default_rng(1).normal(size=(2, 2, 8)).astype(dtype)
  return dict(zip(edges_lib.KINDS, map(jnp.asarray, values), strict=True))


def _augmented(**fields):
  choices = augmentation.Augmentation((0.5,) * 3, (0.25,) * 3, **fields)
  return augmentation.augment(
    _IMAGES,
    jax.random.key(_KEY_SEED),
    jnp.arange(6, dtype=jnp.int32),
    choices,
  )


def _cost(metric):
  return jax.jit(
    lambda alphas: derived_cost.expected_derived_cost(alphas, _TABLES[metric])
  )(_alphas())


def _rates(schedule):
  return [schedule(jnp.int32(step)) for step in (0, 3, 7, 9)]


# What gave a traceback or other numbers while its types were JAX's defaults.
_PIECES = {
  'a crop': lambda: _augmented(crop_padding=2),
  'a flip': lambda: _augmented(flip=True),
  'cutout': lambda: _augmented(cutout=2),
  'alphas': lambda: alphas_lib.init_alphas(
    jax.random.key(_KEY_SEED), 2, 8, edge_normalization=True
  ),
  'a random genotype': lambda: random_search.random_weights(
    jax.random.key(_KEY_SEED), 3
  ),
  'expected macs': lambda: _cost('macs'),
  'an expected peak': lambda: _cost('peak_activation_bytes'),
  'a weighted loss': lambda: losses.weighted_loss(
    jnp.float32([[[1, 2], [0, 3]]]), jnp.int32([0, 1]), (0.3,)
  ),
  'a cosine': lambda: _rates(optimizers.epoch_cosine(0.1, 0.01, 5, 2)),
  'steps of a rate': lambda: _rates(optimizers.epoch_steps(0.1, 5, 2)),
  'an eigenvalue': lambda: early_stop.largest_eigenvalue(
    lambda v: jnp.float32([3, 1, 2]) * v, 3, 3
  ),
}


@pytest.mark.parametrize('name', _PIECES)
def test_a_piece_gives_the_same_numbers_of_the_same_types(name):
  plain = _PIECES[name]()
  with jax.enable_x64(True):
    wide = _PIECES[name]()
  assert jax.tree.leaves(plain)
  jax.tree.map(np.testing.assert_array_equal, wide, plain)
  assert jax.tree.map(lambda x: x.dtype, wide) == jax.tree.map(
    lambda x: x.dtype, plain
  )


def test_an_expected_cost_is_as_wide_as_its_alphas():
  """Who wants float64 gets it."""
  with jax.enable_x64(True):
    cost = derived_cost.expected_derived_cost(
      _alphas(np.float64), _TABLES['macs']
    )
  assert cost.dtype == np.float64
  np.testing.assert_allclose(cost, _cost('macs'), rtol=1e-6)


@pytest.fixture(scope='module')
def dataset():
  return load_dataset('digits')


def _config(**changes):
  config = default_config.get_config()
  config.num_devices = 1
  config.dataset.flip = True
  # Fewer operations are traced sooner.
  config.search.primitives = ('none', 'max_pool_3x3', 'sep_conv_3x3')
  for section in (config.search, config.train):
    section.network.update(channels=4, layers=2, nodes=1, scales=1)
    section.cutout = 2
  config.update_from_flattened_dict(changes)
  return settings.parse(config)


def _train_program(dataset, **changes):
  config = _config(**{'train.genotype': 'DARTS_V2', **changes})
  takes = families.named(config.train.network.family).takes_genotype
  network = families.train_network(
    config.train,
    (dataset.image_shape, dataset.num_classes),
    load_genotype('DARTS_V2') if takes else None,
    dtype=config.dtype,
  )
  return train_stage.build_program(config, dataset, network)


_GUARDED = {
  'search.cost.weight': 0.1,
  'search.guards.partial_channels': 2,
  'search.guards.auxiliary_skip': 1.0,
}
# name: (fields, whether it is a search). Nothing is compiled, only traced.
_PROGRAMS = {
  'a guarded search': (_GUARDED | {'search.order': 2}, True),
  'a search for a target': (
    {
      'search.order': 2,
      'search.mixed_derivative': 'difference',
      'search.cost.target': 1e5,
      'search.cost.tolerance': 0.9,
      'dtype': 'bfloat16',
    },
    True,
  ),
  'random search': ({'search.method': 'random'}, True),
  'a search with a hypernetwork': ({'search.method': 'ghn'}, True),
  'a training': ({'train.network.nodes': 4, 'train.drop_path': 0.2}, False),
  'a training with options': (
    {
      'train.network.nodes': 4,
      'train.network.exits': (0, 1),
      'train.network.boosting': 0.5,
      'train.epochs': 2,
      'train.gradient_equilibrium': True,
      'train.nesterov': True,
      'train.schedule': 'one_cycle',
      'train.warmup_epochs': 0.5,
      'train.label_smoothing': 0.1,
      'train.mixup': 0.3,
      'train.distillation': 0.2,
      'train.distillation_temperature': 3.0,
      'train.trunk_epochs': 0.5,
      'train.ema_decay': 0.9,
    },
    False,
  ),
  'MSDNet': (
    {
      'train.genotype': '',
      'train.network.family': 'msdnet',
      'train.network.blocks': 2,
      # What it has not, at its default.
      'train.network.layers': 5,
      'train.network.nodes': 2,
      'train.schedule': 'step',
    },
    False,
  ),
  'ResNet8': (
    {
      'train.genotype': '',
      'train.network.family': 'resnet8',
      # What it has not, at its default.
      'train.network.layers': 5,
      'train.network.nodes': 2,
      'train.network.scales': 2,
    },
    False,
  ),
}


def _wide(jaxpr):
  """Yields the equations with results of eight bytes for a number."""
  for equation in jaxpr.eqns:
    for value in equation.params.values():
      for part in value if isinstance(value, (tuple, list)) else [value]:
        if hasattr(part, 'eqns') or hasattr(part, 'jaxpr'):
          yield from _wide(getattr(part, 'jaxpr', part))
    dtypes = [str(getattr(v.aval, 'dtype', '')) for v in equation.outvars]
    if {'float64', 'uint64'} & set(dtypes):
      yield equation


@pytest.mark.parametrize('name', _PROGRAMS)
def test_a_step_has_no_wider_numbers(name, dataset):
  changes, is_search = _PROGRAMS[name]
  data = {'images': dataset.train_images, 'labels': dataset.train_labels}
  batch = (2, 64) if is_search else (64,)
  with jax.enable_x64(True):
    if is_search:
      program = search_stage.build_program(_config(**changes), dataset)
    else:
      program = _train_program(dataset, **changes)
    state = jax.eval_shape(program.new_state)
    jaxpr, (after, metrics) = jax.make_jaxpr(program.step, return_shape=True)(
      state, data, jax.ShapeDtypeStruct(batch, jnp.int32)
    )
  # A loop over steps carries the state, and adds the metrics up in float32.
  types = [jax.tree.map(lambda x: str(x.dtype), s) for s in (state, after)]
  assert types[0] == types[1]
  assert {m.dtype.name for m in metrics.values()} == {'float32'}
  assert not {'float64', 'int64', 'uint64'} & set(jax.tree.leaves(types))
  # `1 - decay**count` of Adam's two averages, scalars.
  found = [equation.primitive.name for equation in _wide(jaxpr.jaxpr)]
  adam = 2 * ['convert_element_type', 'pow', 'sub']
  has_adam = is_search and name != 'random search'
  assert sorted(found) == sorted(adam * has_adam)


def test_early_stop_has_no_wider_numbers(dataset):
  config = _config(
    **_GUARDED,
    **{
      'search.guards.early_stop': True,
      'search.guards.early_stop_window': 1,
    },
  )
  with jax.enable_x64(True):
    program = search_stage.build_program(config, dataset)
    jaxpr = jax.make_jaxpr(lambda state: program.eigenvalue(state, 1))(
      jax.eval_shape(program.new_state)
    )
  assert list(_wide(jaxpr.jaxpr)) == []
  assert jaxpr.out_avals[0].dtype == np.float32


def test_a_step_of_ones_own_may_have_wider_metrics():
  def step(state, data, indices):
    del data, indices
    return state + 1, {'metric': jnp.full((), 0.5)}

  with jax.enable_x64(True):
    chunk = parallel.compile_chunk(step, 1, 3)
    outcome = chunk(
      jnp.int32(0), parallel.zero_sums({'metric': ()}), {}, np.zeros((2, 4))
    )
    assert step(0, None, None)[1]['metric'].dtype == np.float64
  assert outcome.done == outcome.state == 2
  assert outcome.sums['metric'].dtype == np.float32
  assert outcome.sums['metric'] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
  'more',
  [
    (
      'search.cost.weight=0.1',
      'search.guards.partial_channels=2',
      'search.guards.auxiliary_skip=1.0',
      'search.guards.early_stop=True',
      'search.guards.early_stop_window=1',
      'search.select=area',
      'train.drop_path=0.2',
    ),
    (
      'search.method=random',
      'search.alphas_learning_rate=3e-4',
      "stages=('search','report')",
    ),
  ],
  ids=['guarded', 'random'],
)
def test_a_whole_run(more, repo_root, tmp_path):
  """All stages, as a user runs them, with and without."""
  fields = (
    'search.epochs=2',
    'train.epochs=1',
    'search.candidates.random=2',
    'search.primitives=("none","skip_connect","sep_conv_3x3")',
    *(
      f'{section}.{size}'
      for section in ('search.network', 'train.network')
      for size in ('channels=4', 'layers=2', 'nodes=1', 'scales=1')
    ),
    *more,
  )
  found = []
  for x64 in '0', '1':
    workdir = tmp_path / x64
    end = subprocess.run(
      [
        *(sys.executable, '-m', 'ms_ranas_jax.main'),
        *('--config=configs/digits.py', f'--workdir={workdir}'),
        *(f'--config.{field}' for field in fields),
      ],
      capture_output=True,
      check=False,
      cwd=repo_root,
      env=os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_ENABLE_X64': x64},
      text=True,
      timeout=300,
    )
    assert end.returncode == 0, end.stderr[-2000:]
    assert (workdir / 'report.html').exists()
    lines = (workdir / 'search/metrics.jsonl').read_text().splitlines()
    found.append([json.loads(line) for line in lines])
  # Adam rounds in another way, and each step starts from what that made.
  for plain, wide in zip(*found, strict=True):
    np.testing.assert_allclose(
      wide['train_loss'], plain['train_loss'], rtol=2e-3
    )
    assert wide.keys() == plain.keys()
