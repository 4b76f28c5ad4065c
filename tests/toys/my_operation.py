"""An operation of one's own: ReLU, 1x1 convolution, BN."""

import ms_ranas_jax as mr
from ms_ranas_jax import default_config
from ms_ranas_jax.space import layers


def cost(channels, stride, height, width, search):
  return layers.conv_norm_layers(
    channels, channels, height, width, stride=stride, affine=not search
  )


def make(channels, stride, affine):
  return layers.ConvNorm(channels, stride=stride, affine=affine)


conv_1x1 = mr.Custom(make, cost)


def get_config():
  config = default_config.get_config()
  config.search.primitives = ('skip_connect', 'my_operation:conv_1x1')
  return config
