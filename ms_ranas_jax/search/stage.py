"""The search stage: from images to a genotype."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
import os
from typing import Any

import jax
import numpy as np

from ms_ranas_jax import settings
from ms_ranas_jax.data.datasets import Dataset
from ms_ranas_jax.data.datasets import split_indices
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.runtime import batches as batches_lib
from ms_ranas_jax.runtime import loop
from ms_ranas_jax.runtime import metrics
from ms_ranas_jax.runtime import parallel
from ms_ranas_jax.runtime.interruption import Interruption
from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.search import bilevel
from ms_ranas_jax.search import candidates
from ms_ranas_jax.search import history
from ms_ranas_jax.search import options
from ms_ranas_jax.search import random_search
from ms_ranas_jax.search import seeds as seeds_lib
from ms_ranas_jax.search import selection
from ms_ranas_jax.search.cost_term import CostTerm
from ms_ranas_jax.search.cost_term import build_cost_term
from ms_ranas_jax.search.optimizers import adam_with_l2
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space.genotype import Genotype
from ms_ranas_jax.training import augmentation
from ms_ranas_jax.training import initialization
from ms_ranas_jax.training import losses
from ms_ranas_jax.training import optimizers

Config = Any


def exit_loss(
  network: network_lib.Network,
  weights: tuple[float, ...],
  weigh: Callable[
    [alphas_lib.Alphas], network_lib.Weights
  ] = alphas_lib.softmax_weights,
) -> bilevel.Loss:
  """Returns eq. (3) for a search network, as the bilevel step takes it.

  Every forward normalises with the statistics of its batch; the updated
  running averages are returned, and which of them are kept is the step's
  decision.

  Args:
    network: a search network.
    weights: w_k, one per exit.
    weigh: alphas -> the weights that the network takes.
  """

  def loss(params, alphas, batch_stats, batch):
    images, labels = batch
    logits, updates = network.apply(
      {'params': params, 'batch_stats': batch_stats},
      images,
      weigh(alphas),
      train=True,
      mutable=['batch_stats'],
    )
    value = losses.weighted_loss(logits, labels, weights)
    metrics = {'accuracy': losses.exit_accuracies(logits, labels)}
    return value, (updates['batch_stats'], metrics)

  return loss


def plan_epochs(
  config: Config, dataset: Dataset, seed: int | None = None
) -> tuple[tuple[np.ndarray, ...], int]:
  """Splits the training images for the search.

  Args:
    config: the whole config.
    dataset: all its training images are used.
    seed: of the split; None is the config's.

  Returns:
    The indices of the images that train params and of those that train
    alphas, and the steps of an epoch.

  Raises:
    UsageError: a half has not one whole batch.
  """
  search = config.search
  halves = split_indices(
    len(dataset.train_images),
    (search.train_fraction, None),
    config.seed if seed is None else seed,
  )
  steps = batches_lib.steps_per_epoch(
    min(map(len, halves)), search.batch_size, 'search.batch_size'
  )
  return halves, steps


@dataclasses.dataclass(frozen=True)
class Program:
  """What a search computes, apart from when and where it is kept.

  Attributes:
    network: the search network.
    devices: how many devices the step is for.
    halves: indices of the images that train params, and of those that train
      alphas.
    steps: steps of an epoch.
    new_state: makes the state before the first step, of the config's seed or
      of another one.
    step: (state, data, indices (2, batch)) -> (state, metrics), see
      `parallel.compile_chunk`; data holds all training `images` and `labels`.
    metrics: name -> shape of what the step returns.
    cost_term: the cost of what is searched for.
    eigenvalue: (state, epoch) -> what early stop follows.
  """

  network: network_lib.Network
  devices: int
  halves: tuple[np.ndarray, ...]
  steps: int
  new_state: Callable[..., bilevel.SearchState]
  step: parallel.Step
  metrics: Mapping[str, tuple[int, ...]]
  cost_term: CostTerm
  eigenvalue: Callable[[bilevel.SearchState, int], jax.Array]


def build_program(
  config: Config, dataset: Dataset, primitives: ops.Primitives = ops.PRIMITIVES
) -> Program:
  """Returns the program of a search.

  Args:
    config: the whole config.
    dataset: its training images are split in two halves.
    primitives: name -> operation, the choices on every edge.

  Raises:
    UsageError: the config does not fit the data or the machine.
  """
  search = config.search
  options.check(search, primitives)
  devices = parallel.choose_devices(
    config.num_devices, search.batch_size, 'search.batch_size'
  )
  axis = parallel.axis_name(devices)
  network = options.search_network(
    search,
    settings.network_spec(
      search.network, dataset.image_shape, dataset.num_classes
    ),
    primitives,
    dtype=config.dtype,
    remat=search.remat,
    lowering=lowering.resolve(config.lowering),
    axis_name=axis,
  )
  cost_term = build_cost_term(
    config,
    settings.network_spec(
      config.train.network, dataset.image_shape, dataset.num_classes
    ),
    primitives,
  )
  halves, num_steps = plan_epochs(config, dataset)
  schedule = optimizers.epoch_cosine(
    search.learning_rate, search.final_learning_rate, search.epochs, num_steps
  )
  params_optimizer, lookahead_optimizer = (
    optimizers.sgd(schedule, search.momentum, search.weight_decay, clip)
    for clip in (search.clip, 0.0)
  )
  alphas_optimizer = adam_with_l2(
    search.alphas_learning_rate, search.alphas_weight_decay
  )
  weights = losses.exit_weights(
    search.exit_weights, network.num_exits, 'search.exit_weights'
  )
  augment = functools.partial(
    augmentation.augment,
    settings=augmentation.Augmentation(
      dataset.mean,
      dataset.std,
      config.dataset.crop_padding,
      config.dataset.flip,
      search.cutout,
    ),
  )

  def loss_in(epoch, axis_name=axis):
    return exit_loss(
      network.clone(axis_name=axis_name),
      weights,
      options.weights_in(search, epoch),
    )

  if search.order == 0:
    update = functools.partial(
      random_search.random_search_step,
      params_optimizer=params_optimizer,
      nodes=search.network.nodes,
      primitives=primitives,
      axis_name=axis,
    )
  else:
    update = functools.partial(
      bilevel.search_step,
      params_optimizer=params_optimizer,
      alphas_optimizer=alphas_optimizer,
      lookahead_optimizer=lookahead_optimizer,
      order=search.order,
      penalty=cost_term.penalty,
      mixed_derivative=search.mixed_derivative,
      axis_name=axis,
    )

  def loss_of(state):
    if search.order == 0:
      return exit_loss(network, weights, lambda drawn: drawn)
    return loss_in(state.step // num_steps)

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
    return update(state, *batches, loss=loss_of(state))

  def new_state(seed=config.seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    alphas = alphas_lib.init_alphas(
      keys[0],
      search.network.nodes,
      len(primitives),
      options.edge_normalization(search),
    )
    variables = initialization.init_variables(
      network, keys[1], options.weights_in(search, 0)(alphas)
    )
    return bilevel.init_state(
      variables['params'],
      alphas,
      variables['batch_stats'],
      params_optimizer,
      alphas_optimizer,
      keys[2],
    )

  exits = (network.num_exits,)
  shapes = {
    'train_loss': (),
    'train_accuracy': exits,
    'train_gradient_norm': (),
    'valid_loss': (),
    'valid_accuracy': exits,
  }
  if search.order:  # of alphas, which a random search has none of
    shapes |= {'valid_gradient_norm': (), 'expected_cost': ()}
  eigenvalue = options.eigenvalue_function(
    search, dataset, halves[1], lambda epoch: loss_in(epoch, None)
  )
  return Program(
    network,
    devices,
    halves,
    num_steps,
    new_state,
    step,
    shapes,
    cost_term,
    eigenvalue,
  )


def run_search(
  config: Config,
  dataset: Dataset,
  workdir: str,
  primitives: ops.Primitives = ops.PRIMITIVES,
  interruption: Interruption | None = None,
) -> Genotype:
  """Searches, or goes on where an earlier call was interrupted.

  Writes `search/metrics.jsonl` and checkpoints, see `loop.run`, the alphas,
  see `history`, and what `selection.select` does.

  Args:
    config: the whole config.
    dataset: its training images are split in two halves.
    workdir: the work directory.
    primitives: name -> operation, the choices on every edge.
    interruption: may ask to stop.

  Returns:
    The genotype.

  Raises:
    UsageError: the config does not fit the data or the machine.
    Interrupted: see `loop.run`.
  """
  search = config.search
  candidates.check_selection(config, dataset)
  program = build_program(config, dataset, primitives)
  numbers = seeds_lib.numbers(config)
  seeds = seeds_lib.side_by_side(config)
  halves = {n: plan_epochs(config, dataset, n)[0] for n in numbers}
  directory = os.path.join(workdir, 'search')
  eigenvalues: list[float] = []
  moments: list[history.Moment] = []
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

  def begin(state: bilevel.SearchState, epoch: int) -> None:
    if not search.order:
      return
    if np.any(state.step):
      moments.extend(history.read(directory, epoch, seeds is not None))
      if search.guards.early_stop and epoch:
        path = os.path.join(directory, 'metrics.jsonl')
        eigenvalues.extend(options.read_eigenvalues(path, epoch))
    else:
      moments.append(history.to_host(state.alphas))
      history.write(directory, moments, seeds is not None)

  def end_epoch(state: bilevel.SearchState, epoch: int) -> dict[str, Any]:
    if not search.order:
      return {}
    moments.append(history.to_host(state.alphas))
    history.write(directory, moments, seeds is not None)
    record = _derived_metrics(program, moments[-1], seeds, primitives)
    if search.guards.early_stop:
      eigenvalues.append(float(program.eigenvalue(state, epoch)))
      record[options.EIGENVALUE] = eigenvalues[-1]
    return record

  def end_line(done: int) -> dict[str, Any]:
    return options.line_metrics(search, (done - 1) // program.steps)

  def kept_epoch() -> int | None:
    return options.epoch_before_rise(search, eigenvalues)

  state = loop.run(
    loop.build_work(config, 'search', dataset, program, batches, seeds),
    loop.Hooks(
      begin, end_line, end_epoch, _shown, lambda: kept_epoch() is not None
    ),
    workdir,
    interruption or Interruption(),
  )
  kept = kept_epoch()
  return selection.select(
    config,
    dataset,
    program.network,
    program.cost_term,
    state,
    # The first entry is that before the first epoch.
    moments if kept is None else moments[: kept + 2],
    {number: valid for number, (_, valid) in halves.items()},
    workdir,
    primitives,
  )


def _derived_metrics(
  program: Program,
  moment: history.Moment,
  seeds: parallel.Seeds | None,
  primitives: ops.Primitives,
) -> dict[str, Any]:
  """Returns what the genotypes cost, and how many skips they have."""

  def of(alphas: history.Moment) -> dict[str, float]:
    weights = alphas_lib.softmax_weights(alphas)
    return {
      'derived_cost': program.cost_term.exact(weights),
      **options.skip_metrics(weights, primitives),
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
