"""The search stage: from images to a genotype."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
import os
from typing import Any

import jax
import numpy as np

from ms_ranas_jax.data.datasets import Dataset
from ms_ranas_jax.data.datasets import split_indices
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.runtime import batches as batches_lib
from ms_ranas_jax.runtime import loop
from ms_ranas_jax.runtime import metrics
from ms_ranas_jax.runtime import parallel
from ms_ranas_jax.runtime.interruption import Interruption
from ms_ranas_jax.search import candidates
from ms_ranas_jax.search import history
from ms_ranas_jax.search import methods
from ms_ranas_jax.search import options
from ms_ranas_jax.search import seeds as seeds_lib
from ms_ranas_jax.search import selection
from ms_ranas_jax.search import short_training
from ms_ranas_jax.search.cost_term import CostTerm
from ms_ranas_jax.search.cost_term import build_cost_term
from ms_ranas_jax.sections import Config
from ms_ranas_jax.sections import SearchConfig
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space import protocol
from ms_ranas_jax.space.genotype import Genotype
from ms_ranas_jax.training import augmentation
from ms_ranas_jax.training import losses


def plan_epochs(
  search: SearchConfig, num_images: int, seed: int
) -> tuple[tuple[np.ndarray, ...], int]:
  """Splits the training images for the search.

  Args:
    search: `config.search`.
    num_images: how many training images there are.
    seed: of the split.

  Returns:
    The indices of the images that train params and of those that train
    alphas, and the steps of an epoch.

  Raises:
    UsageError: a half has not one whole batch.
  """
  halves = split_indices(num_images, (search.train_fraction, None), seed)
  steps = batches_lib.steps_per_epoch(
    min(map(len, halves)), search.batch_size, 'search.batch_size'
  )
  return halves, steps


@dataclasses.dataclass(frozen=True)
class Program:
  """What a search computes, apart from when and where it is kept.

  Attributes:
    method: how it searches, and in what.
    devices: how many devices the step is for.
    halves: indices of the images that train params, and of those that train
      alphas.
    steps: steps of an epoch.
    new_state: makes the state before the first step, of the config's seed or
      of another one.
    step: (state, data, indices (2, batch)) -> (state, metrics), see
      `parallel.compile_chunk`; data holds all training `images` and `labels`.
    metrics: name -> shape of what the step returns.
    derived: sizes of the network to be derived.
    eigenvalue: (state, epoch) -> what early stop follows; of methods with
      alphas.
  """

  method: methods.Method
  devices: int
  halves: tuple[np.ndarray, ...]
  steps: int
  new_state: Callable[..., methods.State]
  step: parallel.Step
  metrics: Mapping[str, tuple[int, ...]]
  derived: grid.NetworkSpec
  eigenvalue: Callable[[Any, int], jax.Array] | None = None

  @property
  def network(self) -> network_lib.Network:
    """The search network."""
    return self.method.problem.network

  @property
  def cost_term(self) -> CostTerm:
    """The cost of what is searched for."""
    return self.method.problem.cost_term


def build_network(
  config: Config, image_shape: tuple[int, int, int], num_classes: int
) -> network_lib.Network:
  """Returns the network of a search, with its guards, on one device.

  Args:
    config: the whole config.
    image_shape: (height, width, channels) of the images.
    num_classes: how many classes there are.

  Raises:
    UsageError: there is no such network, or no such operation.
  """
  search = config.search
  return options.search_network(
    search,
    grid.network_spec(search.network, image_shape, num_classes),
    ops.named(search.primitives, 'config.search.primitives'),
    dtype=config.dtype,
    remat=search.remat,
    lowering=lowering.resolve(config.lowering),
  )


def build_problem(
  config: Config, network: network_lib.Network
) -> methods.Problem:
  """Returns what is searched in, before the images and devices are known.

  Args:
    config: the whole config; the network to be derived is one of cells.
    network: see `build_network`.

  Raises:
    UsageError: names the field that fits no search.
  """
  search, derived = config.search, grid.derived_config(config.train.network)
  primitives = ops.named(search.primitives, 'config.search.primitives')
  options.check(search, primitives, methods.named(search.method).has_alphas)
  spec = network.plan.spec
  return methods.Problem(
    search,
    network,
    primitives,
    losses.exit_weights(
      search.exit_weights, network.num_exits, 'search.exit_weights'
    ),
    build_cost_term(
      search,
      grid.network_spec(derived, spec.image_shape, spec.num_classes),
      primitives,
      derived.channels != protocol.AUTO,
    ),
  )


def build_program(
  config: Config, dataset: Dataset, problem: methods.Problem | None = None
) -> Program:
  """Returns the program of a search.

  Args:
    config: the whole config.
    dataset: its training images are split in two halves.
    problem: of the same config, see `build_problem`; None makes it.

  Raises:
    UsageError: the config does not fit the data or the machine.
  """
  search = config.search
  devices = parallel.choose_devices(
    config.num_devices, search.batch_size, 'search.batch_size'
  )
  axis = parallel.axis_name(devices)
  halves, num_steps = plan_epochs(
    search, len(dataset.train_images), config.seed
  )
  if problem is None:
    problem = build_problem(
      config,
      build_network(config, dataset.image_shape, dataset.num_classes),
    )
  method = methods.named(search.method)(
    dataclasses.replace(
      problem,
      network=problem.network.clone(axis_name=axis),
      steps=num_steps,
    )
  )
  augment = functools.partial(
    augmentation.augment,
    settings=augmentation.of_config(
      config.dataset, search.cutout, dataset.mean, dataset.std
    ),
  )

  def step(state, data, indices):
    key = jax.random.fold_in(state.rng, state.step)
    positions = parallel.global_positions(indices.shape[-1], axis)
    batches = [
      (
        augment(data['images'][rows], jax.random.fold_in(key, half), positions),
        data['labels'][rows],
      )
      for half, rows in enumerate(indices)
    ]
    return method.step(state, *batches)

  eigenvalue = None
  if methods.has_alphas(method):
    eigenvalue = options.eigenvalue_function(
      search,
      dataset,
      halves[1],
      functools.partial(method.loss_in, alone=True),
    )

  def new_state(seed=config.seed):
    return method.init(jax.random.key(seed))

  return Program(
    method,
    devices,
    halves,
    num_steps,
    new_state,
    step,
    method.metrics(),
    grid.network_spec(
      grid.derived_config(config.train.network),
      dataset.image_shape,
      dataset.num_classes,
    ),
    eigenvalue,
  )


def run_search(
  config: Config,
  dataset: Dataset,
  workdir: str,
  interruption: Interruption | None = None,
  problem: methods.Problem | None = None,
) -> Genotype:
  """Searches, or goes on where an earlier call was interrupted.

  Writes `search/metrics.jsonl` and checkpoints, see `loop.run`, the alphas,
  see `history`, and what `selection.select` does.

  Args:
    config: the whole config.
    dataset: its training images are split in two halves.
    workdir: the work directory.
    interruption: may ask to stop.
    problem: of the same config, see `build_problem`; None makes it.

  Returns:
    The genotype.

  Raises:
    UsageError: the config does not fit the data or the machine.
    Interrupted: see `loop.run`.
  """
  search = config.search
  interruption = interruption or Interruption()
  candidates.check_selection(search, len(dataset.train_images))
  program = build_program(config, dataset, problem)
  numbers = seeds_lib.numbers(config.seed, search.num_seeds)
  seeds = seeds_lib.side_by_side(search)
  halves = {
    number: plan_epochs(search, len(dataset.train_images), number)[0]
    for number in numbers
  }
  if seeds is not None:
    program = dataclasses.replace(
      program,
      new_state=functools.partial(
        seeds_lib.new_states, program.new_state, numbers
      ),
    )

  def batches(epoch: int) -> np.ndarray:
    of_each = [
      np.stack(
        [
          batches_lib.epoch_batches(
            half, search.batch_size, program.steps, (number, epoch, index)
          )
          for index, half in enumerate(halves[number])
        ],
        axis=1,
      )
      for number in numbers
    ]
    return of_each[0] if seeds is None else np.stack(of_each, axis=1)

  following = None
  hooks = loop.LoopHooks(lambda *_: None, lambda _: {}, lambda *_: {}, _shown)
  if program.method.has_alphas:
    following = _Following(program, os.path.join(workdir, 'search'), seeds)
    hooks = loop.LoopHooks(
      following.begin,
      following.end_line,
      following.end_epoch,
      _shown,
      lambda: following.kept_epoch() is not None,
    )
  state = loop.run(
    loop.LoopSpec(
      label='search',
      epochs=search.epochs,
      steps=program.steps,
      line_steps=search.chunk_steps,
      devices=program.devices,
      new_state=program.new_state,
      step=program.step,
      metrics=program.metrics,
      data={'images': dataset.train_images, 'labels': dataset.train_labels},
      batches=batches,
      resident_bytes=dataset.resident_bytes,
      on_nonfinite=search.on_nonfinite,
      clip=search.clip,
      checkpoint_seconds=config.checkpoint_seconds,
      seeds=seeds,
    ),
    hooks,
    workdir,
    interruption,
  )
  return selection.select(
    program.method,
    program.derived,
    dataset,
    state,
    following.kept() if following else (),
    {number: valid for number, (_, valid) in halves.items()},
    workdir,
    short_training.build(
      config,
      dataset,
      program.method.problem,
      halves[config.seed],
      workdir,
      interruption,
    ),
  )


class _Following:
  """What is kept and measured of alphas while they are searched."""

  def __init__(
    self,
    program: Program,
    directory: str,
    seeds: parallel.Seeds | None,
  ) -> None:
    self._program = program
    self._search = program.method.problem.search
    self._directory = directory
    self._seeds = seeds
    self._moments: list[history.Moment] = []
    self._eigenvalues: list[float] = []

  def begin(self, state: Any, epoch: int) -> None:
    """Reads what an earlier call has kept, or keeps the first alphas."""
    if not np.any(state.step):
      self._keep(state)
      return
    self._moments += history.read(
      self._directory, epoch, self._seeds is not None
    )
    if self._search.guards.early_stop and epoch:
      path = os.path.join(self._directory, 'metrics.jsonl')
      self._eigenvalues += options.read_eigenvalues(path, epoch)

  def end_line(self, done: int) -> dict[str, Any]:
    """Returns what a line of metrics has of the guards."""
    return options.line_metrics(self._search, (done - 1) // self._program.steps)

  def end_epoch(self, state: Any, epoch: int) -> dict[str, Any]:
    """Keeps the alphas, and returns what would be derived from them."""
    self._keep(state)
    record = _derived_metrics(
      self._program.method.problem, self._moments[-1], self._seeds
    )
    eigenvalue = self._program.eigenvalue
    if self._search.guards.early_stop and eigenvalue is not None:
      self._eigenvalues.append(float(eigenvalue(state, epoch)))
      record[options.EIGENVALUE] = self._eigenvalues[-1]
    return record

  def kept_epoch(self) -> int | None:
    """Returns the epoch whose genotype counts, None while it is the last."""
    return options.epoch_before_rise(self._search, self._eigenvalues)

  def kept(self) -> list[history.Moment]:
    """Returns the alphas at the start and after each epoch that counts."""
    kept = self.kept_epoch()
    # The first entry is that before the first epoch.
    return self._moments if kept is None else self._moments[: kept + 2]

  def _keep(self, state: Any) -> None:
    self._moments.append(history.to_host(state.alphas))
    history.write(self._directory, self._moments, self._seeds is not None)


def _derived_metrics(
  problem: methods.Problem,
  moment: history.Moment,
  seeds: parallel.Seeds | None,
) -> dict[str, Any]:
  """Returns what the genotypes cost, and how many skips they have."""

  def of(alphas: history.Moment) -> dict[str, float]:
    weights = edges_lib.softmax_weights(alphas)
    return {
      'derived_cost': problem.cost_term.exact(weights),
      **options.skip_metrics(weights, problem.primitives),
    }

  if seeds is None:
    return of(moment)
  each = [
    of(history.of_seed([moment], index)[0]) for index in range(seeds.count)
  ]
  record: dict[str, Any] = {}
  for name in each[0]:
    values = [one[name] for one in each]
    record[name] = float(np.mean(values))
    record[name + metrics.BY_SEED] = values
  return record


def _shown(record: Mapping[str, Any]) -> dict[str, float]:
  return {
    'train loss': record['train_loss'],
    'valid loss': record['valid_loss'],
    'valid accuracy': record['valid_accuracy'][-1],
  }
