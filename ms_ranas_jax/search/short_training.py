"""A short training of a few candidates, before one of them is chosen.

After Zhang, Ren and Urtasun (2019), who train the best ten by the params that
a hypernetwork makes. Each has params of its own, trained from random ones by
the search's own SGD on the half of the images that trains params, and is judged
on the other half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import os

import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.data.datasets import Dataset
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.runtime.interruption import Interruption
from ms_ranas_jax.search import methods
from ms_ranas_jax.search.hypernetwork_search import HypernetworkConfig
from ms_ranas_jax.sections import Config
from ms_ranas_jax.sections import OptimisationConfig
from ms_ranas_jax.sections import TrainConfig
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space.genotype import Genotype
from ms_ranas_jax.training import losses
from ms_ranas_jax.training import prediction
from ms_ranas_jax.training import stage as training_stage

FOLDER = 'search/short'


@dataclasses.dataclass(frozen=True)
class ShortTraining:
  """How candidates are trained before one is chosen.

  Attributes:
    count: so many, the best.
    epochs: of each.
    accuracies: (number of the candidate, sizes of its network, its genotype) ->
      the accuracies of all exits on the validation half.
  """

  count: int
  epochs: int
  accuracies: Callable[[int, grid.NetworkSpec, Genotype], list[float]]


def build(
  config: Config,
  dataset: Dataset,
  problem: methods.Problem,
  halves: Sequence[np.ndarray],
  workdir: str,
  interruption: Interruption,
) -> ShortTraining | None:
  """Returns how the candidates of a search are trained, None if they are not.

  Args:
    config: the whole config.
    dataset: its training images are those of the halves.
    problem: of the search.
    halves: indices of the images to train on, and of those that judge.
    workdir: the work directory.
    interruption: may ask to stop.
  """
  search = config.search
  if not isinstance(search, HypernetworkConfig) or not search.ghn.short_epochs:
    return None
  epochs = search.ghn.short_epochs
  recipe = {
    field.name: getattr(search, field.name)
    for field in dataclasses.fields(OptimisationConfig)
  }
  own = dataclasses.replace(
    config,
    dataset=dataclasses.replace(config.dataset, holdout=0),
    train=TrainConfig(**recipe | {'epochs': epochs}),
  )
  fitted, held_out = halves

  def accuracies(
    number: int, spec: grid.NetworkSpec, genotype: Genotype
  ) -> list[float]:
    network = network_lib.derived_network(
      spec,
      genotype,
      problem.primitives,
      dtype=config.dtype,
      lowering=lowering.resolve(config.lowering),
      remat=search.remat,
    )
    folder = os.path.join(workdir, FOLDER, str(number))
    state = training_stage.run_training(
      own, dataset, network, folder, interruption, rows=fitted
    )

    def apply(variables, images):
      return jnp.asarray(network.apply(variables, images, train=False))

    logits = prediction.predict(
      apply,
      state.variables,
      dataset.train_images,
      dataset.mean,
      dataset.std,
      config.evaluate.batch_size,
      held_out,
    )
    labels = jnp.asarray(dataset.train_labels[held_out])
    return losses.exit_accuracies(jnp.asarray(logits), labels).tolist()

  return ShortTraining(search.ghn.short_candidates, epochs, accuracies)
