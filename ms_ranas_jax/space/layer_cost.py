"""What single layers cost: the rows that the cost model adds up.

What is counted, for one image:

- `macs`: multiply-adds of convolutions and dense layers, nothing else; the
  project's own unit.
- `flops_msdnet`: the convention of the MSDNet op counter, for comparison with
  published curves: multiply-adds (and a dense layer's bias), one per element
  of a ReLU and of a global pool's input, one per window element of a pool,
  none for batch normalisation.
- `params`: trainable parameters.
- `params_deployed`: those that are left to be held on a chip once every BN is
  folded into the convolution before it, as in the plain form: the kernel and a
  bias for each feature of a convolution, also where no BN follows, and the
  kernel and bias of a dense layer.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Layer:
  """The cost of one layer.

  Attributes:
    macs: multiply-adds.
    flops_msdnet: operations in the MSDNet convention.
    params: trainable parameters.
    elements: elements of the output.
    in_place: whether the output can overwrite the input.
    folded: what folding takes from `params`, see the module; negative where it
      adds some.

  Example:
    >>> import ms_ranas_jax as mr
    >>> layer = mr.Layer(macs=9 * 3 * 8 * 32 * 32, params=9 * 3 * 8)
    >>> layer.macs, layer.params
    (221184, 216)
  """

  macs: int = 0
  flops_msdnet: int = 0
  params: int = 0
  elements: int = 0
  in_place: bool = False
  folded: int = 0

  @property
  def params_deployed(self) -> int:
    """Parameters once every BN is folded."""
    return self.params - self.folded


def convolution(
  height: int,
  width: int,
  channels: int,
  features: int,
  kernel: tuple[int, int],
  groups: int = 1,
) -> Layer:
  """A convolution without bias; height and width are those of its output."""
  params = kernel[0] * kernel[1] * channels // groups * features
  macs = params * height * width
  # A BN, or a `bias`, is folded into the bias that it gets.
  return Layer(macs, macs, params, height * width * features, folded=-features)


def bias(height: int, width: int, features: int) -> Layer:
  """The bias of a convolution, in place."""
  elements = height * width * features
  return Layer(
    params=features, elements=elements, in_place=True, folded=features
  )


def relu(height: int, width: int, channels: int) -> Layer:
  """A ReLU, in place."""
  elements = height * width * channels
  return Layer(flops_msdnet=elements, elements=elements, in_place=True)


def norm(
  height: int,
  width: int,
  channels: int,
  affine: bool,
  after_convolution: bool = True,
) -> Layer:
  """A batch normalisation, in place, with or without scale and bias.

  Where no convolution stands before it, a factor and a shift for each channel
  are left of it, whether it has a scale and bias or not.
  """
  params = 2 * channels if affine else 0
  return Layer(
    params=params,
    elements=height * width * channels,
    in_place=True,
    folded=params if after_convolution else params - 2 * channels,
  )


def pool(height: int, width: int, channels: int, kernel: int) -> Layer:
  """A pool; height and width are those of its output."""
  elements = height * width * channels
  return Layer(flops_msdnet=elements * kernel * kernel, elements=elements)


def global_pool(height: int, width: int, channels: int) -> Layer:
  """A global average pool of a (height, width, channels) feature map."""
  return Layer(flops_msdnet=height * width * channels, elements=channels)


def dense(channels: int, features: int) -> Layer:
  """A dense layer with bias."""
  macs = channels * features
  return Layer(macs, macs + features, macs + features, features)
