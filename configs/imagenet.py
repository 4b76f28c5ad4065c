"""ImageNet in class folders, with the stem and the sizes of DARTS.

  ./launch/local.sh --config=configs/imagenet.py --config.dataset.dir=DIR

DIR has the folders train and test, the validation images as test, with a folder
for each of the 1,000 classes. What the network costs stands in seconds after
--config.stages=describe: 4,718,752 params and 529,911,552 macs.

The cell is the published DARTS_V2 (--config.train.genotype= is another), 14
layers, 48 channels, one exit; --config.train.network.exits=all_but_first adds
the others. As in its public code: 250 epochs with batches of 128, weight decay
3e-5, smoothed labels, random resized crops and colour jitter. Otherwise: the
learning rate falls along a cosine, there is no auxiliary head, and test images
are scaled to 224 pixels at once instead of cut out of 256. Decoded images of
200 GB go to dataset.cache_dir. Made for several GPUs or a TPU; not run yet.
"""

from ml_collections import ConfigDict

from ms_ranas_jax import default_config


def get_config() -> ConfigDict:
  """Returns the config, locked."""
  config = default_config.get_config()
  config.stages = ('describe', 'train', 'evaluate', 'report')
  config.dataset.update(
    name='folder', image_size='224', holdout=10_000, crop_padding=0, flip=True
  )
  config.dataset.update(crop_scale=0.08, colour_jitter=0.4)
  config.search.network.nodes = 4
  config.train.genotype = 'DARTS_V2'
  config.train.network.update(
    channels=48, layers=14, nodes=4, scales=1, exits='last', stem='imagenet'
  )
  config.train.epochs = 250
  config.train.batch_size = 128
  config.train.learning_rate = 0.1
  config.train.weight_decay = 3e-5
  config.train.label_smoothing = 0.1
  config.train.chunk_steps = 200
  return config
