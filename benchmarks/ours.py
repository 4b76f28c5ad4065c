"""The process that runs this package's side of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import protocol

from ms_ranas_jax import default_config
from ms_ranas_jax import families
from ms_ranas_jax import settings
from ms_ranas_jax.baselines import cells as published_cells
from ms_ranas_jax.data.datasets import Dataset
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.runtime import parallel
from ms_ranas_jax.search import seeds as seeds_lib
from ms_ranas_jax.search import stage as search_stage
from ms_ranas_jax.space.protocol import AnytimeNetwork
from ms_ranas_jax.training import initialization
from ms_ranas_jax.training import stage as train_stage

Case = Mapping[str, Any]
Served = tuple[Callable[[int], float], dict[str, Any]]
# Steps that a call may run at most; the number is a loop bound, not a shape.
_CHUNK = 64


def _dataset(size: int, batch: int) -> Dataset:
  """Random images: the time of a step does not depend on what they show."""
  rng = np.random.default_rng(0)
  count = 4 * batch
  images = rng.integers(0, 256, (count, size, size, 3), np.uint8)
  labels = rng.integers(0, 10, count).astype(np.int32)
  return Dataset(
    'random', images, labels, images, labels, 10, (0.5,) * 3, (0.25,) * 3
  )


def _config(case: Case, section: str):
  config = default_config.get_config()
  config.lowering = case['lowering']
  config.dtype = case.get('dtype', 'float32')
  config.num_devices = case['devices']
  config.dataset.holdout = 1
  config.dataset.crop_padding = 4
  config.dataset.flip = True
  part = config[section]
  part.batch_size = case['batch']
  part.remat = case['remat']
  part.cutout = case.get('cutout', 0)
  # The case holds fields of the network, and others.
  part.network.update({n: case[n] for n in part.network if n in case})
  if case.get('family') == families.MSDNET:
    part.update(learning_rate=0.1, schedule='step', clip=0.0, weight_decay=1e-4)
  return config


def _steps(
  program,
  dataset: Dataset,
  indices: tuple[int, ...],
  seeds: parallel.Seeds | None = None,
) -> Served:
  """Compiles a program and takes its first step."""
  began = time.monotonic()
  data = parallel.replicate(
    {'images': dataset.train_images, 'labels': dataset.train_labels},
    program.devices,
  )
  if seeds is None:
    state = program.new_state()
  else:
    state = seeds_lib.new_states(program.new_state, range(seeds.count))
    indices = (seeds.count, *indices)
  state = parallel.replicate(state, program.devices)
  chunk = parallel.compile_chunk(
    program.step, program.devices, _CHUNK, seeds=seeds
  )
  sums = parallel.zero_sums(program.metrics, seeds=seeds)
  rng = np.random.default_rng(1)

  def run(steps: int) -> float:
    nonlocal state, sums
    rows = rng.integers(0, len(dataset.train_images), (steps, *indices))
    start = time.monotonic()
    for first in range(0, steps, _CHUNK):
      outcome = chunk(state, sums, data, rows[first : first + _CHUNK])
      state, sums = outcome.state, outcome.sums
    jax.block_until_ready((state, sums))
    return (time.monotonic() - start) / steps

  run(1)
  first = time.monotonic() - began
  # The first call compiles and takes a step; a second one says how long that
  # takes.
  return run, {'compile_s': round(first - run(1), 2), 'version': _version()}


def _version() -> str:
  device = jax.devices()[0]
  return f'jax {jax.__version__}, {device.device_kind}'


def search_step(case: Case) -> Served:
  """One step of the search: alphas, then params."""
  config = _config(case, 'search')
  config.search.order = case['order']
  config.search.mixed_derivative = case['mixed_derivative']
  config.search.guards.partial_channels = case.get('partial_channels', 1)
  config.search.num_seeds = case.get('seeds', 1)
  config.search.seeds_at_once = case.get('seeds_at_once', 1)
  dataset = _dataset(case['image'], case['batch'])
  typed = settings.parse(config)
  program = search_stage.build_program(typed, dataset)
  seeds = seeds_lib.side_by_side(typed.search)
  return _steps(program, dataset, (2, case['batch']), seeds)


def _network(case: Case, config) -> AnytimeNetwork:
  cells = None
  if 'genotype' in case:
    cells = published_cells.load_genotype(case['genotype'])
    config.train.network.nodes = cells.nodes
  size = case['image']
  return families.train_network(
    settings.parse(config).train,
    ((size, size, 3), 10),
    cells,
    dtype=config.dtype,
    lowering=lowering.resolve(case['lowering']),
  )


def train_step(case: Case) -> Served:
  """One step of the training."""
  config = _config(case, 'train')
  config.train.drop_path = case['drop_path']
  dataset = _dataset(case['image'], case['batch'])
  network = _network(case, config)
  program = train_stage.build_program(settings.parse(config), dataset, network)
  return _steps(program, dataset, (case['batch'],))


def inference(case: Case) -> Served:
  """The logits of the exits up to one of them."""
  config = _config(case, 'train')
  network = _network(case, config)
  variables = initialization.init_variables(network, jax.random.key(0))
  size = case['image']
  images = jax.random.normal(
    jax.random.key(1), (case['batch'], size, size, 3), jnp.float32
  )
  last = case['exit'] % network.num_exits
  apply = jax.jit(lambda v, x: network.apply(v, x, train=False, last_exit=last))
  began = time.monotonic()
  jax.block_until_ready(apply(variables, images))
  seconds = time.monotonic() - began

  def run(steps: int) -> float:
    start = time.monotonic()
    for _ in range(steps):
      jax.block_until_ready(apply(variables, images))
    return (time.monotonic() - start) / steps

  facts = {
    'compile_s': round(seconds - run(1), 2),
    'version': _version(),
    'exits': network.num_exits,
  }
  return run, facts


_TASKS: Mapping[str, Callable[[Case], Served]] = {
  'search_step': search_step,
  'train_step': train_step,
  'inference': inference,
}


def _device_peak() -> int | None:
  """The most memory that arrays and programs of the device took so far."""
  return jax.devices()[0].memory_stats().get('peak_bytes_in_use')


def main() -> None:
  """Serves a task: TASK CASE, the latter as JSON."""
  task, text = sys.argv[1:]
  case = json.loads(text)
  if case['cache_dir']:
    jax.config.update('jax_compilation_cache_dir', case['cache_dir'])
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  else:
    jax.config.update('jax_enable_compilation_cache', False)
  if jax.default_backend() == 'cpu' and case['devices'] > len(jax.devices()):
    raise SystemExit(
      f'--devices={case["devices"]}: set JAX_NUM_CPU_DEVICES to as many.'
    )
  on_cpu = jax.default_backend() == 'cpu'
  # That of a device cannot be made to forget.
  own = () if on_cpu else (_device_peak, lambda: None)
  protocol.serve(lambda: _TASKS[task](case), *own)


if __name__ == '__main__':
  main()
