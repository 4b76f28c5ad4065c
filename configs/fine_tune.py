"""Trains a finished network on other images: class folders, and few of them.

  ./launch/local.sh --config=configs/fine_tune.py:MODEL --config.dataset.dir=DIR

MODEL is a model folder, the work directory of a training, or the name of a
network of the package, such as cifar10_tiny; DIR has a folder of pictures for
each class. The network is that of the model, for pictures of their own size;
where the classes are others its classifiers are drawn anew. With
--config.train.freeze="('stem','cell_0')" some of its modules keep their params.
"""

from ml_collections import ConfigDict

from ms_ranas_jax import default_config


def get_config(argument: str = 'cifar10_tiny') -> ConfigDict:
  """Returns the config, locked.

  Args:
    argument: the model to start from.
  """
  return default_config.get_fine_tuning_config(argument)
