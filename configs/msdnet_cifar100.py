"""MSDNet on CIFAR-100: as on CIFAR-10, with 100 classes.

  ./launch/local.sh --config=configs/msdnet_cifar100.py \
    --config.dataset.dir=DIR

Made for a GPU or TPU; accuracy not yet measured.
"""

from ml_collections import ConfigDict

from ms_ranas_jax import default_config


def get_config() -> ConfigDict:
  """Returns the config, locked."""
  return default_config.get_msdnet_config('cifar100')
