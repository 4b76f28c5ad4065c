"""The evaluate stage: every exit, anytime and under a budget, on test images.

Temperatures and thresholds are solved on the held-out training images; the
test images are read here alone.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.anytime import budgets
from ms_ranas_jax.anytime import calibration
from ms_ranas_jax.anytime import classes as classes_lib
from ms_ranas_jax.anytime import curves
from ms_ranas_jax.anytime.early_exit import CompiledSteps
from ms_ranas_jax.costs import cost as cost_lib
from ms_ranas_jax.data.datasets import Dataset
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import processes
from ms_ranas_jax.sections import EvaluateConfig
from ms_ranas_jax.training import losses

# With more classes than this it is also of interest whether the true one is
# among the likeliest.
_FEW_CLASSES = 10
_BEST = 5


class Judged(NamedTuple):
  """What came out, as the files of `evaluate/` hold it.

  Attributes:
    anytime: of `anytime.json`: each exit's accuracy, calibration and cost.
    budgeted: of `budgeted.json`: what early leaving gives.
    classes: of `classes.json`: `dataset` and `num_examples` as in the first;
      `class_names`; `images`, how many test images there are of each;
      `accuracies`, a list per exit of one share per class, None where it has no
      image; `confusion`, how many images of each class (rows) the last exit
      took for each class (columns).
    predictions: of `predictions.npz`: `label` int32 (images,); `prediction`
      int32 and `confidence` float32, both (exits, images); `class_names`
      (classes,). Images stand as in the data set, and a confidence is that of
      the calibrated probabilities, which thresholds are compared with.
  """

  anytime: dict[str, Any]
  budgeted: dict[str, Any]
  classes: dict[str, Any]
  predictions: dict[str, np.ndarray]


def evaluate_exits(
  config: EvaluateConfig,
  dataset: Dataset,
  steps: CompiledSteps,
  held_out: np.ndarray,
) -> Judged:
  """Judges a network on the test images.

  Without held-out images the temperatures are 1, and there is no point under a
  budget.

  Args:
    config: `config.evaluate`.
    dataset: the dataset.
    steps: of the network, any family with named exits and a plan.
    held_out: indices of the training images that temperatures and thresholds
      are solved on.
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
  predictions = logits.argmax(axis=-1)
  correct = predictions == labels
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
      **_best_accuracy(exit_logits, labels),
      'loss': float(loss),
      'temperature': temperature,
      'calibration_error_before': before,
      'calibration_error': after,
      **exit_cost.to_dict(),
    }
    for exit_cost, exit_logits, right, loss, temperature, before, after in zip(
      cost_lib.network_cost(steps.network).exits,
      logits,
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
  matrices = [
    classes_lib.confusion(labels, of_exit, dataset.num_classes)
    for of_exit in predictions
  ]
  classes = {
    'dataset': dataset.name,
    'num_examples': len(labels),
    'class_names': list(dataset.class_names),
    'images': matrices[-1].sum(axis=1).tolist(),
    'accuracies': [classes_lib.accuracies(matrix) for matrix in matrices],
    'confusion': matrices[-1].tolist(),
  }
  arrays = {
    'label': labels.astype(np.int32),
    'prediction': predictions.astype(np.int32),
    'confidence': confidence.astype(np.float32),
    'class_names': np.array(dataset.class_names),
  }
  return Judged(
    anytime,
    {'num_holdout': len(held_out), 'points': points},
    classes,
    arrays,
  )


def _best_accuracy(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
  """Returns the top-5 accuracy of an exit where there are many classes."""
  if logits.shape[-1] <= _FEW_CLASSES:
    return {}
  right = classes_lib.among_best(logits, labels, _BEST)
  return {f'top{_BEST}_accuracy': float(right.mean())}


def _confidence(logits: np.ndarray, temperatures: list[float]) -> np.ndarray:
  """Returns the largest probabilities, (exits, images)."""
  return np.stack(
    [
      calibration.probabilities(exit_logits, temperature).max(axis=-1)
      for exit_logits, temperature in zip(logits, temperatures, strict=True)
    ]
  )


def write_evaluation(judged: Judged, workdir: str) -> None:
  """Writes the files of `evaluate/`.

  Args:
    judged: their contents.
    workdir: the work directory.
  """
  directory = os.path.join(workdir, 'evaluate')
  if processes.is_first():
    files.write_npz(
      os.path.join(directory, 'predictions.npz'), **judged.predictions
    )
    # The last one says that all are there, see `studies.plan`.
    for name in 'classes', 'anytime', 'budgeted':
      path = os.path.join(directory, f'{name}.json')
      files.write_json(path, getattr(judged, name))
