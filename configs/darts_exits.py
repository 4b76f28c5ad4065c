"""DARTS with exits on CIFAR-10: a published cell on one scale.

  ./launch/local.sh --config=configs/darts_exits.py --config.dataset.dir=DIR

The cell of DARTS_V2 in twenty layers of 36 channels, with a classifier after
every fourth layer; an empty `train.genotype` and the stage `search` take the
cell that is found instead. Recipe of DARTS, without its auxiliary classifier.
Made for a GPU or TPU; accuracy not yet measured.
"""

from ml_collections import ConfigDict

from ms_ranas_jax import default_config


def get_config() -> ConfigDict:
  """Returns the config, locked."""
  config = default_config.get_config()
  config.stages = ('describe', 'train', 'evaluate', 'report')
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

  config.train.genotype = 'DARTS_V2'
  config.train.network.update(
    channels=36, layers=20, nodes=4, scales=1, exits=(3, 7, 11, 15, 19)
  )
  config.train.epochs = 600
  config.train.batch_size = 96
  config.train.cutout = 16
  config.train.drop_path = 0.2
  return config
