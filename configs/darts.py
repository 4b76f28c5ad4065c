"""The original DARTS on CIFAR-10: one scale, one exit, four nodes.

  ./launch/local.sh --config=configs/darts.py --config.dataset.dir=DIR

What the networks cost, without data or training, in seconds (1,930,618 params
in the search; 3,349,342 params and 528,359,040 macs of DARTS_V2):

  ./launch/local.sh --config=configs/darts.py --workdir=runs/darts_v2 \
    --config.stages=describe --config.train.genotype=DARTS_V2

The training has no auxiliary classifier, which the original adds. Made for a
GPU or TPU; accuracy not yet measured.
"""

from ml_collections import ConfigDict

from ms_ranas_jax import default_config


def get_config() -> ConfigDict:
  """Returns the config, locked."""
  config = default_config.get_config()
  config.dataset.name = 'cifar10'
  config.dataset.holdout = 5000
  config.dataset.crop_padding = 4
  config.dataset.flip = True

  config.search.network.update(
    channels=16, layers=8, nodes=4, scales=1, exits='last'
  )
  config.search.order = 2
  config.search.epochs = 50
  config.search.batch_size = 64

  config.train.network.update(
    channels=36, layers=20, nodes=4, scales=1, exits='last'
  )
  config.train.epochs = 600
  config.train.batch_size = 96
  config.train.cutout = 16
  config.train.drop_path = 0.2
  return config
