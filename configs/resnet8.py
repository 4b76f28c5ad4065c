"""ResNet8 of MLPerf Tiny on CIFAR-10: three stacks, one exit, 16 channels.

  ./launch/local.sh --config=configs/resnet8.py --config.dataset.dir=DIR

What it costs, without data or training, in seconds (12,501,632 macs, and 77,706
params once batch normalisation is folded):

  ./launch/local.sh --config=configs/resnet8.py --workdir=runs/resnet8_cost \
    --config.stages=describe

--config.train.network.exits=0,1 puts classifiers after the other two stacks as
well. The recipe is that of configs/cifar10_tiny.py, not that of MLPerf Tiny;
accuracy not yet measured.
"""

from ml_collections import ConfigDict

from ms_ranas_jax import default_config


def get_config() -> ConfigDict:
  """Returns the config, locked."""
  config = default_config.get_config('resnet8')
  config.stages = ('describe', 'train', 'evaluate', 'report')
  config.dataset.name = 'cifar10'
  config.dataset.holdout = 2000
  config.dataset.crop_padding = 4
  config.dataset.flip = True
  config.train.network.update(channels=16, exits='last')
  config.train.epochs = 60
  config.train.schedule = 'one_cycle'
  config.train.learning_rate = 0.1
  config.train.chunk_steps = 50
  return config
