"""The training stage: from a network to its params."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import os
from typing import Any

from flax import serialization
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ms_ranas_jax.data.datasets import Dataset
from ms_ranas_jax.data.datasets import split_indices
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import batches as batches_lib
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import loop
from ms_ranas_jax.runtime import metrics as metrics_lib
from ms_ranas_jax.runtime import parallel
from ms_ranas_jax.runtime import processes
from ms_ranas_jax.runtime.interruption import Interruption
from ms_ranas_jax.sections import ADAMW
from ms_ranas_jax.sections import BALANCED
from ms_ranas_jax.sections import EQUAL
from ms_ranas_jax.sections import ONE_CYCLE
from ms_ranas_jax.sections import STEP
from ms_ranas_jax.sections import Config
from ms_ranas_jax.sections import TrainConfig
from ms_ranas_jax.space.protocol import AnytimeNetwork
from ms_ranas_jax.training import augmentation
from ms_ranas_jax.training import averaging
from ms_ranas_jax.training import initialization
from ms_ranas_jax.training import losses
from ms_ranas_jax.training import mixup
from ms_ranas_jax.training import objective as objective_lib
from ms_ranas_jax.training import optimizers
from ms_ranas_jax.training import prediction

PyTree = Any
# Gives name -> value of the variables that a training starts from.
Start = Callable[[], Mapping[str, np.ndarray]]
LABEL = 'train'
_OBJECTIVE, _HOLDOUT_ACCURACY = 'train_objective', 'holdout_accuracy'
# In the folder of the stage: the variables after the best epoch.
_BEST = 'best.msgpack'
_OF_SEVERAL_EXITS = ('distillation', 'gradient_equilibrium', 'trunk_epochs')


class TrainState(flax.struct.PyTreeNode):
  """All that a training carries from step to step.

  Attributes:
    step: int32 scalar, steps done.
    params: the network's.
    batch_stats: running BN averages.
    opt_state: of the optimizer.
    rng: the key that all of the training's randomness is folded from.
    average: of params and batch_stats over the steps, see `averaging`; None
      where there is none.
  """

  step: jax.Array
  params: PyTree
  batch_stats: PyTree
  opt_state: optax.OptState
  rng: jax.Array
  average: dict[str, PyTree] | None = None

  @property
  def variables(self) -> dict[str, PyTree]:
    """What is judged and shipped: the average, where there is one."""
    if self.average is not None:
      return self.average
    return {'params': self.params, 'batch_stats': self.batch_stats}


def new_state(
  network: AnytimeNetwork,
  optimizer: optax.GradientTransformation,
  seed: int,
  averaged: bool = False,
) -> TrainState:
  """Returns the state before the first step.

  Args:
    network: of any family.
    optimizer: of its params.
    seed: of all randomness.
    averaged: whether it keeps an average of the variables.
  """
  # Another stream than the search's, which has the same seed.
  key = jax.random.fold_in(jax.random.key(seed), 1)
  init_key, rng = jax.random.split(key)
  variables = initialization.init_variables(network, init_key)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables['params'],
    batch_stats=variables['batch_stats'],
    # As one program, not one for each shape of a param.
    opt_state=jax.jit(optimizer.init)(variables['params']),
    rng=rng,
    average=jax.tree.map(jnp.copy, variables) if averaged else None,
  )


def begin_from(
  state: TrainState, arrays: Mapping[str, np.ndarray]
) -> TrainState:
  """Returns the state before the first step, with other variables.

  Args:
    state: of `new_state`; no optimizer keeps anything of the params there.
    arrays: name -> value of the variables that are not those that were drawn,
      see `initialization.with_arrays`.
  """
  drawn = {'params': state.params, 'batch_stats': state.batch_stats}
  variables = initialization.with_arrays(drawn, arrays)
  average = state.average
  if average is not None:
    average = jax.tree.map(jnp.copy, variables)
  return state.replace(**variables, average=average)


def train_step(
  state: TrainState,
  images: jax.Array,
  labels: objective_lib.Labels,
  *,
  network: AnytimeNetwork,
  optimizer: optax.GradientTransformation,
  objective: objective_lib.Objective,
  ema_decay: float = 0.0,
  drop_path: jax.Array | float | None = None,
  frozen: tuple[str, ...] = (),
  accumulate: int = 1,
  axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update of all params on the loss of all exits, eq. (3).

  Args:
    state: before the step.
    images: (batch, height, width, channels), normalised.
    labels: (batch,) int, or those of mixed images.
    network: of any family.
    optimizer: updates params.
    objective: what is minimised.
    ema_decay: of the average of the variables, where the state keeps one.
    drop_path: probability to drop an operation; None is never.
    frozen: what the names of modules begin with whose params stay.
    accumulate: parts of the batch that are computed one after another; BNs see
      a part, and the gradient is the mean of theirs.
    axis_name: the device axis to average over.

  Returns:
    The state after the step, and the metrics `train_loss`, `train_accuracy`
    (one per exit) and `train_gradient_norm`. `train_loss` is eq. (3) in any
    case, as all other losses are; where something else is minimised, that is
    `train_objective` beside it.
  """
  key = jax.random.fold_in(state.rng, state.step)
  if axis_name is not None:
    key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))

  minimised = 'train_loss' if objective.is_plain else _OBJECTIVE

  def loss(params, batch_stats, images, labels, key):
    logits, updates = network.apply(
      {'params': params, 'batch_stats': batch_stats},
      images,
      train=True,
      drop_path=drop_path,
      mutable=['batch_stats'],
      rngs={'drop_path': key},
    )
    value = objective_lib.loss(objective, logits, labels, state.step)
    metrics = {'train_accuracy': objective_lib.accuracies(logits, labels)}
    if not objective.is_plain:
      metrics['train_loss'] = objective_lib.plain_loss(
        objective.weights, logits, labels
      )
    return value, (updates['batch_stats'], {**metrics, minimised: value})

  differentiate = jax.grad(loss, has_aux=True)

  def part(batch_stats, index):
    size = images.shape[0] // accumulate
    start = index * size
    gradient, (batch_stats, metrics) = differentiate(
      state.params,
      batch_stats,
      jax.lax.dynamic_slice_in_dim(images, start, size),
      objective_lib.part_of(labels, start, size),
      jax.random.fold_in(key, index),
    )
    return batch_stats, (gradient, metrics)

  if accumulate == 1:
    gradient, (batch_stats, metrics) = differentiate(
      state.params, state.batch_stats, images, labels, key
    )
  else:
    gradient, batch_stats, metrics = _accumulated(
      part, state.batch_stats, accumulate
    )
  gradient, batch_stats, metrics = parallel.mean_over_devices(
    (gradient, batch_stats, metrics), axis_name
  )
  gradient = _without(gradient, frozen)
  metrics['train_gradient_norm'] = optimizers.global_norm(gradient)
  updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
  # Once more, as decay is added to the gradient.
  updates = _without(updates, frozen)
  after = state.replace(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    batch_stats=batch_stats,
    opt_state=opt_state,
  )
  if state.average is not None:
    variables = {'params': after.params, 'batch_stats': after.batch_stats}
    average = averaging.update(state.average, variables, after.step, ema_decay)
    after = after.replace(average=average)
  return after, metrics


def _accumulated(
  part: Callable[[PyTree, jax.Array], tuple[PyTree, tuple[PyTree, PyTree]]],
  batch_stats: PyTree,
  count: int,
) -> tuple[PyTree, PyTree, PyTree]:
  """Returns means over the parts of a batch, which take turns.

  Args:
    part: (batch_stats, index) -> batch_stats, (gradient, metrics).
    batch_stats: before the first part.
    count: of parts.

  Returns:
    The gradient, batch_stats after the last part, and the metrics.
  """

  def add(carried, index):
    batch_stats, found = part(carried[0], index)
    return (batch_stats, jax.tree.map(jnp.add, carried[1], found)), None

  _, shapes = jax.eval_shape(part, batch_stats, jnp.int32(0))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  (batch_stats, total), _ = jax.lax.scan(
    add, (batch_stats, zeros), jnp.arange(count)
  )
  gradient, metrics = jax.tree.map(lambda x: x / count, total)
  return gradient, batch_stats, metrics


def _without(tree: PyTree, frozen: tuple[str, ...]) -> PyTree:
  """Returns zeros in the place of some modules."""
  return {
    name: jax.tree.map(jnp.zeros_like, part)
    if frozen and name.startswith(frozen)
    else part
    for name, part in tree.items()
  }


def split_training_images(
  config: Config, dataset: Dataset, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the indices of the images to train on, and of those held out.

  Args:
    config: `dataset.holdout` images are held out, chosen by `seed`.
    dataset: the dataset.
    rows: indices of the training images there are for it; None is all.

  Raises:
    UsageError: nothing would be left to train on.
  """
  count = len(dataset.train_images) if rows is None else len(rows)
  if config.train.patience and not config.dataset.holdout:
    raise UsageError(
      f'config.train.patience = {config.train.patience} follows the accuracy '
      'on held-out images, and config.dataset.holdout = 0; hold out some.'
    )
  if config.dataset.holdout >= count:
    raise UsageError(
      f'dataset.holdout = {config.dataset.holdout}, but there are {count} '
      'training images; hold out fewer.'
    )
  fitted, held_out = split_indices(
    count, (None, config.dataset.holdout), config.seed
  )
  if rows is None:
    return fitted, held_out
  return rows[fitted], rows[held_out]


def plan_epochs(
  config: Config, dataset: Dataset, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, int]:
  """Splits the training images for the training.

  Args:
    config: the whole config.
    dataset: the dataset.
    rows: see `split_training_images`.

  Returns:
    The indices of the images to train on and of those held out, and the steps
    of an epoch.

  Raises:
    UsageError: nothing would be left to train on, or no whole batch.
  """
  fitted, held_out = split_training_images(config, dataset, rows)
  steps = batches_lib.steps_per_epoch(
    len(fitted), config.train.batch_size, 'train.batch_size'
  )
  return fitted, held_out, steps


def choose_devices(config: Config) -> int:
  """Returns how many devices train, those of all processes together.

  Args:
    config: the whole config.

  Raises:
    UsageError: there are fewer, or the batch cannot be split evenly.
  """
  train = config.train
  devices = parallel.choose_devices(
    config.num_devices, train.batch_size, 'train.batch_size'
  )
  if train.batch_size // devices % train.accumulate:
    raise UsageError(
      f'config.train.accumulate = {train.accumulate}, but the '
      f'{train.batch_size // devices} images that a device has of a batch '
      'cannot be split evenly in so many parts; give a divisor.'
    )
  return devices


def class_weights(config: Config, dataset: Dataset) -> np.ndarray | None:
  """Returns the weights of the classes in the training loss.

  Args:
    config: the whole config; `train.class_weights` says which.
    dataset: the dataset; the images that are held out do not count.

  Returns:
    (classes,) float32, None where all images count the same.

  Raises:
    UsageError: a class has no image to train on.
  """
  if config.train.class_weights == EQUAL:
    return None
  if config.train.sampling == BALANCED:
    raise UsageError(
      "config.train.class_weights and config.train.sampling are 'balanced': "
      'each makes the classes count the same, and both together the rare ones '
      'more; set one of them.'
    )
  fitted, _ = split_training_images(config, dataset)
  return losses.balanced_weights(
    dataset.train_labels[fitted], dataset.class_names, 'train.class_weights'
  )


def build_optimizer(
  train: TrainConfig, steps: int
) -> optax.GradientTransformation:
  """Returns the optimizer of a training.

  Args:
    train: `config.train`.
    steps: steps of an epoch.
  """
  schedule = _schedule(train, steps)
  if train.optimizer == ADAMW:
    return optimizers.adamw(schedule, train.weight_decay, train.clip)
  return optimizers.sgd(
    schedule, train.momentum, train.weight_decay, train.clip, train.nesterov
  )


def _schedule(train: TrainConfig, steps: int) -> optax.Schedule:
  start, epochs = train.learning_rate, train.epochs
  warmup = train.warmup_epochs * steps
  if train.schedule == ONE_CYCLE:
    return optimizers.one_cycle(start, epochs * steps, warmup)
  if train.schedule == STEP:
    schedule = optimizers.epoch_steps(start, epochs, steps)
  else:
    schedule = optimizers.epoch_cosine(
      start, train.final_learning_rate, epochs, steps
    )
  return optimizers.with_warmup(schedule, warmup)


def build_objective(
  config: Config, dataset: Dataset, num_exits: int, steps: int
) -> objective_lib.Objective:
  """Returns what a training minimises.

  Args:
    config: the whole config.
    dataset: its classes may have weights.
    num_exits: of the network.
    steps: of an epoch.

  Raises:
    UsageError: the exits have other weights, a class has no image, there is one
      exit and something is asked for that takes several, or the trunk is to be
      trained first by an exit without weight.
  """
  train = config.train
  for name in _OF_SEVERAL_EXITS:
    value = getattr(train, name)
    if value and num_exits == 1:
      raise UsageError(
        f'config.train.{name} = {value!r}, but the network has one exit; leave '
        'it at its default, or set train.network.exits.'
      )
  weights = losses.exit_weights(
    train.exit_weights, num_exits, 'train.exit_weights'
  )
  if train.trunk_epochs and not weights[-1]:
    raise UsageError(
      f'config.train.trunk_epochs = {train.trunk_epochs:g}, but the last exit '
      'has no weight in config.train.exit_weights; give it one.'
    )
  return objective_lib.Objective(
    weights,
    class_weights(config, dataset),
    train.label_smoothing,
    train.distillation,
    train.distillation_temperature,
    round(train.trunk_epochs * steps),
  )


@dataclasses.dataclass(frozen=True)
class Program:
  """What a training computes, apart from when and where it is kept.

  Attributes:
    network: the network, on one device.
    devices: how many devices the step is for.
    fitted: indices of the images that are trained on.
    held_out: indices of the others.
    steps: steps of an epoch.
    objective: what is minimised.
    new_state: makes the state before the first step.
    step: (state, data, indices (batch,)) -> (state, metrics), see
      `parallel.compile_chunk`; data holds all training `images` and `labels`.
    metrics: name -> shape of what the step returns.
  """

  network: AnytimeNetwork
  devices: int
  fitted: np.ndarray
  held_out: np.ndarray
  steps: int
  objective: objective_lib.Objective
  new_state: Callable[[], TrainState]
  step: parallel.Step
  metrics: Mapping[str, tuple[int, ...]]


def build_program(
  config: Config,
  dataset: Dataset,
  network: AnytimeNetwork,
  rows: np.ndarray | None = None,
) -> Program:
  """Returns the program of a training.

  Args:
    config: the whole config.
    dataset: trained on but for the held-out images.
    network: of any family; its `axis_name` is set here.
    rows: see `split_training_images`.

  Raises:
    UsageError: the config does not fit the data or the machine.
  """
  train = config.train
  devices = choose_devices(config)
  axis = parallel.axis_name(devices)
  network = network.clone(axis_name=axis)
  fitted, held_out, num_steps = plan_epochs(config, dataset, rows)
  optimizer = build_optimizer(train, num_steps)
  objective = build_objective(config, dataset, network.num_exits, num_steps)
  settings = augmentation.of_config(
    config.dataset, train.cutout, dataset.mean, dataset.std
  )

  def step(state, data, indices):
    key = jax.random.fold_in(state.rng, state.step)
    positions = parallel.global_positions(indices.shape[-1], axis)
    images = augmentation.augment(
      data['images'][indices], key, positions, settings
    )
    labels = data['labels'][indices]
    if train.mixup:
      share = mixup.draw_share(key, train.mixup)
      others = mixup.next_in_batch(images, axis)
      images = mixup.mix(images, others, share)
      labels = objective_lib.Mixed(
        labels, mixup.next_in_batch(labels, axis), share
      )
    drop_path = None
    if train.drop_path:
      epoch = (state.step // num_steps).astype(jnp.float32)
      drop_path = train.drop_path * epoch / train.epochs
    return train_step(
      state,
      images,
      labels,
      network=network,
      optimizer=optimizer,
      objective=objective,
      ema_decay=train.ema_decay,
      drop_path=drop_path,
      frozen=tuple(train.freeze),
      accumulate=train.accumulate,
      axis_name=axis,
    )

  return Program(
    network=network.clone(axis_name=None),
    devices=devices,
    fitted=fitted,
    held_out=held_out,
    steps=num_steps,
    objective=objective,
    new_state=functools.partial(
      new_state, network, optimizer, config.seed, bool(train.ema_decay)
    ),
    step=step,
    metrics=_metrics(network, objective.is_plain),
  )


def _metrics(
  network: AnytimeNetwork, plain: bool
) -> dict[str, tuple[int, ...]]:
  return {
    'train_loss': (),
    'train_accuracy': (network.num_exits,),
    'train_gradient_norm': (),
    **({} if plain else {_OBJECTIVE: ()}),
  }


def run_training(
  config: Config,
  dataset: Dataset,
  network: AnytimeNetwork,
  workdir: str,
  interruption: Interruption | None = None,
  start: Start = dict,
  rows: np.ndarray | None = None,
) -> TrainState:
  """Trains, or goes on where an earlier call was interrupted.

  Writes `train/metrics.jsonl` and checkpoints, see `loop.run`.

  Args:
    config: the whole config.
    dataset: trained on but for the held-out images.
    network: of any family; its `axis_name` is set here.
    workdir: the work directory.
    interruption: may ask to stop.
    start: gives the variables that are not drawn; asked where there is no
      checkpoint.
    rows: see `split_training_images`.

  Returns:
    The state after the last epoch.

  Raises:
    UsageError: the config does not fit the data or the machine.
    Interrupted: see `loop.run`.
  """
  train = config.train
  program = build_program(config, dataset, network, rows)
  # One object for all epochs, so that prediction compiles once.
  apply = functools.partial(program.network.apply, train=False)
  folder = os.path.join(workdir, LABEL)
  scores: list[float] = []

  def batches(epoch: int) -> np.ndarray:
    seed = (config.seed, epoch, 2)
    sizes = train.batch_size, program.steps, seed
    if train.sampling == BALANCED:
      labels = dataset.train_labels[program.fitted]
      return batches_lib.balanced_batches(program.fitted, labels, *sizes)
    return batches_lib.epoch_batches(program.fitted, *sizes)

  def end_line(done: int) -> dict[str, Any]:
    rate = _schedule(train, program.steps)(jnp.int32(done - 1))
    return {'learning_rate': float(jnp.asarray(rate))}

  def begin(state: TrainState, epochs: int) -> None:
    del state
    scores[:] = _read_scores(folder)[:epochs]

  def end_epoch(state: TrainState, epoch: int) -> dict[str, Any]:
    del epoch
    if not len(program.held_out):
      return {}
    found = _holdout_metrics(
      config.evaluate.batch_size, dataset, apply, state, program
    )
    if train.patience:
      scores.append(_score(found))
      if scores[-1] > max(scores[:-1], default=-1.0) and processes.is_first():
        best = serialization.to_bytes(jax.device_get(state.variables))
        files.write_bytes(os.path.join(folder, _BEST), best)
    return found

  def finished() -> bool:
    return bool(train.patience) and (
      len(scores) - _best_epoch(scores) >= train.patience
    )

  return loop.run(
    loop.LoopSpec(
      label=LABEL,
      epochs=train.epochs,
      steps=program.steps,
      line_steps=train.chunk_steps,
      devices=program.devices,
      new_state=program.new_state,
      step=program.step,
      metrics=program.metrics,
      data={'images': dataset.train_images, 'labels': dataset.train_labels},
      batches=batches,
      resident_bytes=dataset.resident_bytes,
      on_nonfinite=train.on_nonfinite,
      clip=train.clip,
      checkpoint_seconds=config.checkpoint_seconds,
      begin_from=lambda state: begin_from(state, start()),
    ),
    loop.LoopHooks(begin, end_line, end_epoch, _shown, finished),
    workdir,
    interruption or Interruption(),
  )


def shipped_variables(
  config: Config, workdir: str, state: TrainState
) -> dict[str, PyTree]:
  """Returns what is judged and shipped of a finished training.

  Args:
    config: the whole config.
    workdir: the work directory.
    state: after the last epoch.

  Raises:
    UsageError: the variables of the best epoch are not there any more.
  """
  if not config.train.patience:
    return state.variables
  path = os.path.join(workdir, LABEL, _BEST)
  if not files.is_file(path):
    raise UsageError(
      f'{path} is missing, which has the variables of the best epoch; bring it '
      'back, or train again.'
    )
  return serialization.from_bytes(state.variables, files.read_bytes(path))


def summary(config: Config, workdir: str) -> str:
  """Returns how a training has ended, in a line.

  Args:
    config: the whole config.
    workdir: the work directory.
  """
  if not config.train.patience:
    return f'finished {config.train.epochs} epochs'
  scores = _read_scores(os.path.join(workdir, LABEL))
  best = _best_epoch(scores)
  return (
    f'ended after {len(scores)} of {config.train.epochs} epochs; what ships is '
    f'of epoch {best}, with a held-out accuracy of {max(scores):.2%} in the '
    'mean of the exits'
  )


def _read_scores(folder: str) -> list[float]:
  """Returns the scores of all epochs that are written down."""
  path = os.path.join(folder, 'metrics.jsonl')
  if not files.is_file(path):
    return []
  lines = metrics_lib.read_metrics(path)
  return [_score(line) for line in lines if _HOLDOUT_ACCURACY in line]


def _score(record: Mapping[str, Any]) -> float:
  return float(np.mean(record[_HOLDOUT_ACCURACY]))


def _best_epoch(scores: Sequence[float]) -> int:
  """Returns the number of the best epoch, from 1; 0 where there was none."""
  return int(np.argmax(scores)) + 1 if scores else 0


def _holdout_metrics(
  batch_size: int,
  dataset: Dataset,
  apply: Callable[..., jax.Array],
  state: TrainState,
  program: Program,
) -> dict[str, Any]:
  rows = program.held_out
  logits = jnp.asarray(
    prediction.predict(
      apply,
      state.variables,
      dataset.train_images,
      dataset.mean,
      dataset.std,
      batch_size,
      rows,
    )
  )
  labels = jnp.asarray(dataset.train_labels[rows])
  return {
    'holdout_loss': float(
      losses.weighted_loss(logits, labels, program.objective.weights)
    ),
    _HOLDOUT_ACCURACY: losses.exit_accuracies(logits, labels).tolist(),
  }


def _shown(record: Mapping[str, Any]) -> dict[str, float]:
  return {
    'loss': record['train_loss'],
    'first exit': record['train_accuracy'][0],
    'last exit': record['train_accuracy'][-1],
  }
