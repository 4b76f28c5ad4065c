"""A data set of one's own: bright and dark squares."""

import numpy as np

import ms_ranas_jax as mr
from ms_ranas_jax import default_config


def squares(directory):
  labels = np.arange(400, dtype=np.int32) % 2
  images = np.random.default_rng(0).integers(0, 128, (400, 8, 8, 1), np.uint8)
  images[:, 2:6, 2:6] += 127 * labels[:, None, None, None].astype(np.uint8)
  parts = images[:300], labels[:300], images[300:], labels[300:]
  return mr.Dataset('', *parts, 2, (0.4,), (0.2,), ('dark', 'bright'))


def get_config():
  config = default_config.get_config()
  config.dataset.name = 'my_images:squares'
  return config
