"""Real handwritten digits, 8x8: the whole program in a few minutes.

  ./launch/local.sh --config=configs/digits.py

Measured on two cores of an AMD EPYC, seed 0: 99.44, 98.89 and 99.17 % at the
three exits, of 360 test images.
"""

from ml_collections import ConfigDict

from ms_ranas_jax import default_config


def get_config() -> ConfigDict:
  """Returns the config, locked."""
  config = default_config.get_config()
  config.search.network.update(channels=8, layers=3, nodes=2, scales=2)
  config.search.epochs = 10
  config.search.alphas_learning_rate = 3e-3
  config.train.network.update(channels=12, layers=4, nodes=2, scales=2)
  config.train.epochs = 20
  return config
