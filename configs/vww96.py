"""Two classes of 96 x 96 photographs for a microcontroller: a person, or none.

  ./launch/local.sh --config=configs/vww96.py --config.dataset.dir=DIR

DIR has the folders person and non_person, as the Visual Wake Words images of
MLPerf Tiny unpack to, or folders train and test that have. The widest network
is trained that costs at most 7.5 M macs and 220,000 params with batch
normalisation folded, about what its MobileNet (a quarter of the width) costs.
The images are not part of this project; not run yet.
"""

from ml_collections import ConfigDict

from ms_ranas_jax import default_config


def get_config() -> ConfigDict:
  """Returns the config, locked."""
  config = default_config.get_config()
  config.dataset.update(
    name='folder', image_size='96', holdout=5000, crop_padding=0, flip=True
  )
  config.dataset.update(crop_scale=0.5, colour_jitter=0.2)
  for section in (config.search, config.train):
    section.network.update(
      layers=7, nodes=2, scales=1, stem='imagenet', stem_multiplier=1
    )
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
  config.train.budget.update(macs=7.5e6, params_deployed=220_000)
  config.train.epochs = 30
  config.train.schedule = 'one_cycle'
  config.train.learning_rate = 0.1
  return config
