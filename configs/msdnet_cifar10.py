"""MSDNet on CIFAR-10: eleven blocks, sixteen channels, its own recipe.

  ./launch/local.sh --config=configs/msdnet_cifar10.py --config.dataset.dir=DIR

What it costs, without data or training, in seconds (5,470,050 params, and
134.58 M operations in the convention of the MSDNet op counter):

  ./launch/local.sh --config=configs/msdnet_cifar10.py \
    --workdir=runs/msdnet_cost --config.stages=describe

Made for a GPU or TPU; accuracy not yet measured.
"""

from ml_collections import ConfigDict

from ms_ranas_jax import default_config


def get_config() -> ConfigDict:
  """Returns the config, locked."""
  return default_config.get_msdnet_config('cifar10')
