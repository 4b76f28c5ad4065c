"""The paper's settings on CIFAR-10: two nodes, three scales, seven layers.

  ./launch/local.sh --config=configs/cifar10.py --config.dataset.dir=DIR

Made for a GPU or TPU; not yet measured. `cifar10_cpu.py` is for a laptop.
"""

from ml_collections import ConfigDict

from ms_ranas_jax import default_config


def get_config() -> ConfigDict:
  """Returns the config, locked."""
  return default_config.get_paper_config('cifar10')
