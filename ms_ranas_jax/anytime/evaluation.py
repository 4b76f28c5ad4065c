"""The evaluate stage: every exit, anytime and under a budget, on test images.

Temperatures and thresholds are solved on the held-out training images; the
test images are read here alone.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.anytime import budgets
from ms_ranas_jax.anytime import calibration
from ms_ranas_jax.anytime import curves
from ms_ranas_jax.anytime.early_exit import CompiledSteps
from ms_ranas_jax.data.datasets import Dataset
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import processes
from ms_ranas_jax.sections import EvaluateConfig
from ms_ranas_jax.space import cost as cost_lib
from ms_ranas_jax.training import losses


def evaluate_exits(
  config: EvaluateConfig,
  dataset: Dataset,
  steps: CompiledSteps,
  held_out: np.ndarray,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Judges a network on the test images.

  Without held-out images the temperatures are 1, and there is no point under a
  budget.

  Args:
    config: `config.evaluate`.
    dataset: the dataset.
    steps: of the network, any family with named exits and a plan.
    held_out: indices of the training images that temperatures and thresholds
      are solved on.

  Returns:
    The contents of `anytime.json` and `budgeted.json`.
  """
  batch_size = config.batch_size
  logits = steps.logits(dataset.test_images, batch_size)
  labels = dataset.test_labels
  temperatures = [1.0] * len(logits)
  holdout_logits = None
  if len(held_out):
    holdout_logits = steps.logits(dataset.train_images[held_out], batch_size)
    temperatures = [
      calibration.solve_temperature(exit_logits, dataset.train_labels[held_out])
      for exit_logits in holdout_logits
    ]
  confidence = _confidence(logits, temperatures)
  correct = logits.argmax(axis=-1) == labels
  errors = [
    [
      calibration.calibration_error(sure, right)
      for sure, right in zip(of_exits, correct)
    ]
    for of_exits in (_confidence(logits, [1.0] * len(logits)), confidence)
  ]
  exits = [
    {
      'exit': exit_cost.exit,
      'layer': exit_cost.layer,
      'accuracy': float(right.mean()),
      'loss': float(loss),
      'temperature': temperature,
      'calibration_error_before': before,
      'calibration_error': after,
      **dataclasses.asdict(exit_cost),
    }
    for exit_cost, right, loss, temperature, before, after in zip(
      cost_lib.network_cost(steps.network).exits,
      correct,
      losses.exit_losses(jnp.asarray(logits), jnp.asarray(labels)),
      temperatures,
      *errors,
      strict=True,
    )
  ]
  costs = [e['macs'] for e in exits]
  low, high = config.budget_range or (0, costs[-1])
  anytime = {
    'dataset': dataset.name,
    'num_examples': len(labels),
    'exits': exits,
    'expected_accuracy': curves.expected_accuracy(
      costs,
      [e['accuracy'] for e in exits],
      1.0 / dataset.num_classes,
      curves.Uniform(low, high),
    ),
    'budget_range': [low, high],
  }
  points = []
  if holdout_logits is not None:
    points = budgets.budgeted_curve(
      _confidence(holdout_logits, temperatures), confidence, correct, costs
    )
  return anytime, {'num_holdout': len(held_out), 'points': points}


def _confidence(logits: np.ndarray, temperatures: list[float]) -> np.ndarray:
  """Returns the largest probabilities, (exits, images)."""
  return np.stack(
    [
      calibration.probabilities(exit_logits, temperature).max(axis=-1)
      for exit_logits, temperature in zip(logits, temperatures, strict=True)
    ]
  )


def write_evaluation(
  anytime: dict[str, Any], budgeted: dict[str, Any], workdir: str
) -> None:
  """Writes `evaluate/anytime.json` and `evaluate/budgeted.json`.

  Args:
    anytime: the content of the first.
    budgeted: of the second.
    workdir: the work directory.
  """
  directory = os.path.join(workdir, 'evaluate')
  if processes.is_first():
    files.write_json(os.path.join(directory, 'anytime.json'), anytime)
    files.write_json(os.path.join(directory, 'budgeted.json'), budgeted)
