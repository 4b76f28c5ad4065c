"""A config with every default, a small run on digits, and the known recipes.

The other configs start from one of these. A field can be set on the command
line: --config.search.epochs=10. What fields there are, what they mean and what
they may be stands in `sections`, and with each family and search method.
"""

from ml_collections import ConfigDict

from ms_ranas_jax import settings
from ms_ranas_jax.model import start


def get_config(family: str = 'grid', method: str = 'bilevel') -> ConfigDict:
  """Returns the default config, locked.

  Args:
    family: of the network to train; one of your own is 'my_module:my_family',
      and its fields are there too.
    method: of the search, the same: 'my_module:MyMethod'.

  Raises:
    UsageError: there is none of that name.
  """
  return settings.config_dict(family, method).lock()


def get_msdnet_config(dataset: str) -> ConfigDict:
  """Returns MSDNet with its own recipe on CIFAR-10 or CIFAR-100, locked.

  Eleven blocks and sixteen channels, the size that the paper compares with.

  Args:
    dataset: 'cifar10' or 'cifar100'.
  """
  config = get_config()
  config.stages = ('describe', 'train', 'evaluate', 'report')
  config.dataset.name = dataset
  config.dataset.holdout = 5000
  config.dataset.crop_padding = 4
  config.dataset.flip = True

  config.train.network.update(
    family='msdnet',
    channels=16,
    scales=3,
    blocks=11,
    base=4,
    step=2,
    step_mode='even',
    growth=6,
    growth_factors=(1, 2, 4),
    bottleneck_factors=(1, 2, 4),
    prune='max',
  )
  config.train.epochs = 300
  config.train.batch_size = 64
  config.train.learning_rate = 0.1
  config.train.schedule = 'step'
  config.train.weight_decay = 1e-4
  config.train.clip = 0.0
  return config


def get_paper_config(dataset: str) -> ConfigDict:
  """Returns the paper's settings for CIFAR-10 or CIFAR-100, locked.

  Search with exits on every layer but the first and with cutout (sections 4.1
  and 4.4), then train what it found, two nodes, three scales, seven layers,
  with exits and cutout (section 4.2); both by the recipe of DARTS.

  Args:
    dataset: 'cifar10' or 'cifar100'.
  """
  config = get_config()
  config.dataset.name = dataset
  config.dataset.holdout = 5000
  config.dataset.crop_padding = 4
  config.dataset.flip = True

  # Five layers and sixteen channels are the paper's size of searches.
  config.search.network.update(channels=16, layers=5, nodes=2, scales=3)
  config.search.order = 2
  config.search.epochs = 50
  config.search.batch_size = 64
  config.search.cutout = 16

  config.train.network.update(channels=16, layers=7, nodes=2, scales=3)
  config.train.epochs = 600
  config.train.batch_size = 96
  config.train.cutout = 16
  config.train.drop_path = 0.2
  return config


def get_fine_tuning_config(model: str) -> ConfigDict:
  """Returns a config that trains a model on other images, locked.

  Args:
    model: a model folder, the work directory of one, or the name of a network
      of the package.

  Raises:
    UsageError: there is none.
  """
  _, description = start.description_of(model)
  network = description.network
  config = get_config(network['family'])
  config.stages = ('describe', 'train', 'evaluate', 'report')
  config.dataset.name = 'folder'
  config.dataset.crop_padding = 4
  config.dataset.flip = True
  config.train.start_from = model
  config.train.network.update(
    {
      name: tuple(value) if isinstance(value, list) else value
      for name, value in network['sizes'].items()
    }
  )
  config.train.epochs = 20
  config.train.schedule = 'one_cycle'
  config.train.learning_rate = 0.01
  return config
