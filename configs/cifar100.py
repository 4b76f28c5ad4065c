"""The paper's settings on CIFAR-100: as on CIFAR-10, with 100 classes.

  ./launch/local.sh --config=configs/cifar100.py --config.dataset.dir=DIR

To train the cell that was found on CIFAR-10, add
--config.train.genotype=runs/cifar10/search/genotype.json and
--config.stages=train,evaluate,report. Made for a GPU or TPU; not
yet measured.
"""

from ml_collections import ConfigDict

from ms_ranas_jax import default_config


def get_config() -> ConfigDict:
  """Returns the config, locked."""
  return default_config.get_paper_config('cifar100')
