"""An anytime network as small as ResNet8 of MLPerf Tiny: CIFAR-10, two cores.

  ./launch/local.sh --config=configs/cifar10_tiny.py --config.dataset.dir=DIR

DIR holds the published python or binary batches. The search looks for a cell of
one scale, since on several scales the links between them take most of what so
small a network may have. The widest network of it is then trained that costs at
most 12.5 M macs and 77,706 params with batch normalisation folded, what ResNet8
(configs/resnet8.py) costs. Accuracy: not yet measured.
"""

from ml_collections import ConfigDict

from ms_ranas_jax import default_config


def get_config() -> ConfigDict:
  """Returns the config, locked."""
  config = default_config.get_config()
  config.dataset.name = 'cifar10'
  config.dataset.holdout = 2000
  config.dataset.crop_padding = 4
  config.dataset.flip = True
  for section in (config.search, config.train):
    section.network.update(layers=4, nodes=2, scales=1, stem_multiplier=1)
  config.search.network.channels = 8
  # What runs fast where small networks run, in 8 bits too.
  config.search.primitives = (
    *('none', 'max_pool_3x3', 'skip_connect'),
    *('sep_conv_3x3', 'sep_conv_5x5'),
  )
  config.search.epochs = 3
  # The paper's 3e-4 is for fifty epochs; three need larger steps.
  config.search.alphas_learning_rate = 2e-3
  config.train.network.channels = 'auto'
  config.train.budget.update(macs=12.5e6, params_deployed=77_706)
  config.train.epochs = 60
  config.train.schedule = 'one_cycle'
  config.train.learning_rate = 0.1
  config.search.chunk_steps = 30
  config.train.chunk_steps = 50
  return config
