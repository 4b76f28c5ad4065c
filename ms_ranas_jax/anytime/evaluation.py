"""The evaluate stage: every exit, anytime and under a budget, on test images.

Thresholds are solved on the held-out training images; the test images are
read here alone.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.anytime import budgets
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import checkpoint
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import processes
from ms_ranas_jax.runtime.data import Dataset
from ms_ranas_jax.space import cost as cost_lib
from ms_ranas_jax.space import curves
from ms_ranas_jax.space.family import AnytimeNetwork
from ms_ranas_jax.training import loop
from ms_ranas_jax.training import losses
from ms_ranas_jax.training import prediction
from ms_ranas_jax.training import steps

Config = Any


def trained_variables(
  config: Config, dataset: Dataset, network: AnytimeNetwork, workdir: str
) -> dict[str, Any]:
  """Reads the params and batch_stats of a finished training.

  Args:
    config: the whole config.
    dataset: the dataset that was trained on.
    network: the network that was trained.
    workdir: the work directory.

  Raises:
    UsageError: there is no finished training in the work directory.
  """
  directory = steps.checkpoints(workdir, 'train')
  template, wanted = loop.saved_template(config, dataset, network)
  restored = None
  if files.is_directory(directory):
    with checkpoint.open_manager(directory, read_only=True) as manager:
      restored = checkpoint.restore_latest(manager, template)
  if restored is None or int(restored[0]) < wanted:
    found = 0 if restored is None else int(restored[0])
    raise UsageError(
      f'{directory} holds a training of {found} of {wanted} steps; run the '
      "'train' stage to its end first."
    )
  return restored[1].state.variables


def evaluate_exits(
  config: Config,
  dataset: Dataset,
  network: AnytimeNetwork,
  variables: dict[str, Any],
  held_out: np.ndarray,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Judges a network on the test images.

  Args:
    config: the whole config; the section `evaluate` is read.
    dataset: the dataset.
    network: the network, any family with named exits and a plan.
    variables: its params and batch_stats.
    held_out: indices of the training images that thresholds are solved on.

  Returns:
    The contents of `anytime.json` and `budgeted.json`.
  """
  predict = functools.partial(
    prediction.predict,
    functools.partial(network.apply, train=False),
    variables,
    mean=dataset.mean,
    std=dataset.std,
    batch_size=config.evaluate.batch_size,
  )
  logits = predict(images=dataset.test_images)
  holdout_logits = predict(images=dataset.train_images[held_out])
  cost = cost_lib.network_cost(network)
  accuracies = losses.exit_accuracies(logits, dataset.test_labels)
  exits = [
    {
      'exit': exit_cost.exit,
      'layer': exit_cost.layer,
      'accuracy': float(accuracy),
      'loss': float(loss),
      **dataclasses.asdict(exit_cost),
    }
    for exit_cost, accuracy, loss in zip(
      cost.exits,
      accuracies,
      losses.exit_losses(jnp.asarray(logits), jnp.asarray(dataset.test_labels)),
      strict=True,
    )
  ]
  costs = [e['macs'] for e in exits]
  low, high = config.evaluate.budget_range or (0, costs[-1])
  anytime = {
    'dataset': dataset.name,
    'num_examples': len(dataset.test_labels),
    'exits': exits,
    'expected_accuracy': curves.expected_accuracy(
      costs,
      [e['accuracy'] for e in exits],
      1.0 / dataset.num_classes,
      curves.Uniform(low, high),
    ),
    'budget_range': [low, high],
  }
  budgeted = {
    'num_holdout': len(held_out),
    'points': budgets.budgeted_curve(
      _confidence(holdout_logits),
      _confidence(logits),
      logits.argmax(axis=-1) == dataset.test_labels[None],
      costs,
    ),
  }
  return anytime, budgeted


def _confidence(logits: np.ndarray) -> np.ndarray:
  return np.asarray(jax.nn.softmax(jnp.asarray(logits))).max(axis=-1)


def run_evaluation(
  config: Config, dataset: Dataset, network: AnytimeNetwork, workdir: str
) -> dict[str, Any]:
  """Writes `evaluate/anytime.json` and `evaluate/budgeted.json`.

  Args:
    config: the whole config.
    dataset: the dataset.
    network: the network that was trained.
    workdir: the work directory.

  Returns:
    The contents of `anytime.json`.
  """
  variables = trained_variables(config, dataset, network, workdir)
  _, held_out = loop.split_training_images(config, dataset)
  anytime, budgeted = evaluate_exits(
    config, dataset, network, variables, held_out
  )
  directory = os.path.join(workdir, 'evaluate')
  if processes.is_first():
    files.write_json(os.path.join(directory, 'anytime.json'), anytime)
    files.write_json(os.path.join(directory, 'budgeted.json'), budgeted)
  return anytime
