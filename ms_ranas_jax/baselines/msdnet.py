"""MSDNet: the network of an MSDNet plan, and what it costs.

`params` are keyed by the names of the plan's features: `stem_S`, `layer_L_S`
with its convolutions, `FEATURE_bottleneck` with the 1x1 convolutions on a
feature, and `exit_L`. First params are drawn as PyTorch draws them by default,
which is also what the public code trains from: its own initialization reaches
no convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from ms_ranas_jax.baselines import msdnet_cost_rows
from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.kernels import channels_first
from ms_ranas_jax.kernels import gradient_scale
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.kernels import norm_relu
from ms_ranas_jax.kernels import normalization
from ms_ranas_jax.kernels import pooling
from ms_ranas_jax.space import layers
from ms_ranas_jax.space import protocol


class NormReLU(nn.Module):
  """BN and ReLU of (channels, height, width, batch), see `norm_relu`.

  Attributes:
    axis_name: the device axis that shares the statistics.
  """

  axis_name: str | None = None

  @nn.compact
  def __call__(self, z: jax.Array, train: bool) -> jax.Array:
    """Normalises and rectifies a map.

    Args:
      z: (channels, height, width, batch).
      train: use the statistics of the batch, and keep running averages if the
        collection `batch_stats` is mutable.
    """
    shape = (z.shape[0],)
    scale = layers.param(self, 'scale', nn.initializers.ones, shape)
    bias = layers.param(self, 'bias', nn.initializers.zeros, shape)
    averages = None
    if not train or self.is_mutable_collection('batch_stats'):
      averages = (
        self.variable('batch_stats', 'mean', jnp.zeros, shape, jnp.float32),
        self.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32),
      )
    if averages is not None and not train:
      mean, variance = (average.value for average in averages)
      return norm_relu.apply_norm_relu(z, scale, bias, (mean, variance))
    y, (mean, variance) = norm_relu.norm_relu(z, scale, bias, self.axis_name)
    if averages is not None and not self.is_initializing():
      pixels = z[0].size
      if self.axis_name is not None:
        pixels = pixels * lax.psum(1, self.axis_name)
      # The running variance is the unbiased one, as in PyTorch.
      unbiased = variance * (pixels / max(pixels - 1, 1))
      for average, value in zip(averages, (mean, unbiased), strict=True):
        average.value = (
          normalization.MOMENTUM * average.value
          + (1 - normalization.MOMENTUM) * value
        )
    return y


class _Part(nn.Module):
  """What all parts share; maps are (channels, height, width, batch).

  Attributes:
    axis_name: the device axis that shares the BN statistics.
  """

  axis_name: str | None = None

  def _norm_relu(self, x: jax.Array, name: str, train: bool) -> jax.Array:
    return NormReLU(axis_name=self.axis_name, name=name)(x, train)

  def _convolve(
    self, x: jax.Array, name: str, size: int, features: int, stride: int = 1
  ) -> jax.Array:
    kernel = layers.param(
      self,
      name,
      layers.uniform_fan_in(size**2 * x.shape[0]),
      (features, size, size, x.shape[0]),
    )
    if size == 1:
      return channels_first.pointwise(x, kernel[:, 0, 0])
    return channels_first.convolution(x, kernel, stride)


class ConvNormReLU(_Part):
  """Convolution, BN, ReLU.

  Attributes:
    features: output channels.
    kernel: size of the window.
    stride: 1 or 2.
  """

  features: int = 0
  kernel: int = 1
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps (channels, height, width, batch) to `features` channels."""
    x = self._convolve(x, 'kernel', self.kernel, self.features, self.stride)
    return self._norm_relu(x, 'norm', train)


class ImageNetStem(_Part):
  """7x7 convolution of stride 2 with bias, BN, ReLU, 3x3 max pool of stride 2.

  The bias has no effect before a BN; the public code has it, and counts it.

  Attributes:
    features: output channels.
  """

  features: int = 0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps (channels, height, width, batch) to a quarter of both sides."""
    size = 7
    bound = layers.uniform_fan_in(size**2 * x.shape[0])
    x = self._convolve(x, 'kernel', size, self.features, 2)
    bias = layers.param(self, 'bias', bound, (self.features,))
    x = x + bias.astype(x.dtype).reshape(-1, 1, 1, 1)
    x = self._norm_relu(x, 'norm', train)
    # The pool moves over the two axes before the last, whatever that is.
    return pooling.max_pool(x, 2)


class Node(_Part, kw_only=True):
  """A place of a layer, see `msdnet_plan.Node`.

  Attributes:
    plan: the plan's entry.
  """

  plan: msdnet_plan.Node

  @nn.compact
  def __call__(
    self,
    source: jax.Array,
    diagonal: jax.Array | None,
    horizontal: jax.Array,
    train: bool,
  ) -> jax.Array:
    """Puts new features beside the source.

    Args:
      source: (channels, height, width, batch), of the same scale.
      diagonal: what the 3x3 convolution of stride 2 reads, if there is one.
      horizontal: what the one of stride 1 reads.
      train: see `protocol.AnytimeNetwork`.
    """
    plan = self.plan
    new = self._convolve(horizontal, 'horizontal', 3, plan.horizontal.features)
    if diagonal is not None and plan.diagonal is not None:
      down = self._convolve(diagonal, 'diagonal', 3, plan.diagonal.features, 2)
      new = jnp.concatenate([down, new])
    new = self._norm_relu(new, 'norm', train)
    x = jnp.concatenate([source, new])
    if plan.transition:
      x = self._convolve(x, 'transition', 1, plan.output.channels)
      x = self._norm_relu(x, 'transition_norm', train)
    return x


class ExitHead(_Part):
  """A classifier, see `msdnet_plan.Exit`.

  Attributes:
    channels: of the convolutions.
    num_classes: classes.
  """

  channels: int = 0
  num_classes: int = 0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps (channels, height, width, batch) to (batch, classes), float32."""
    for index in range(2):
      x = self._convolve(x, f'kernel_{index}', 3, self.channels, 2)
      x = self._norm_relu(x, f'norm_{index}', train)
    # Two by two pixels are left of the published sizes; others are averaged
    # just the same.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    pooled = jnp.mean(x, axis=(1, 2), dtype=wide).T
    bound = layers.uniform_fan_in(self.channels)
    return nn.Dense(
      self.num_classes, kernel_init=bound, bias_init=bound, name='dense'
    )(pooled)


class MSDNet(protocol.SteppedNetwork):
  """A multi-scale dense network with an exit after every block.

  Attributes:
    plan: the plan.
    dtype: of the computation: 'float32' or 'bfloat16'. BN statistics and
      logits are float32.
    lowering: how operations are computed, see `use_lowering`.
    axis_name: the device axis that shares the BN statistics.
    gradient_equilibrium: whether all exits count the same for what is below
      them, see `gradient_scale.in_equilibrium`.

  Example:
    >>> import ms_ranas_jax as mr
    >>> spec = mr.MSDNetSpec(channels=8, blocks=2, base=1, step=1)
    >>> network = mr.build_msdnet(spec)
    >>> network.num_exits
    2
  """

  plan: msdnet_plan.Plan
  dtype: str = 'float32'
  lowering: str = lowering.AUTO
  axis_name: str | None = None
  gradient_equilibrium: bool = False

  def cost_rows(self) -> tuple[protocol.CostRow, ...]:
    """Returns what is computed, for the cost model."""
    return msdnet_cost_rows.cost_rows(self.plan)

  def tensors(self) -> Mapping[str, tuple[str, ...]]:
    """Returns the tensors that lie side by side in a feature, by its name."""
    return msdnet_cost_rows.tensors(self.plan)

  @property
  def batch_axis(self) -> int:
    """The axis of the images in what is carried from step to step."""
    return 3

  @nn.compact
  def advance(
    self,
    carried: protocol.Carried,
    weights: Any = None,
    *,
    step: int,
    train: bool,
    drop_path: jax.Array | float | None = None,
  ) -> tuple[protocol.Carried, jax.Array]:
    """Computes one step, from the features at hand; see `protocol`.

    Args:
      carried: what the step before returned, (channels, height, width, batch)
        each; `{'images': images}` at first, (batch, height, width, channels),
        normalised.
      weights: None; there are no mixed cells.
      step: index of the exit to come to, that after the one before.
      train: normalise with the statistics of the batch, and write running
        averages if the collection `batch_stats` is mutable.
      drop_path: None or zero; there are no operations to drop.

    Returns:
      The features that later steps read, by name, and the logits
      (batch, classes), float32.
    """
    del weights, drop_path
    with lowering.using(self.lowering):
      return self._step(carried, step, train)

  def modules_of_step(self, step: int) -> frozenset[str]:
    """Returns the modules, keys of `params`, that a step computes with."""
    names = {self.plan.exits[step].name}
    names.update(s.output.name for s in self.plan.stems if s.step == step)
    for node in (n for n in self.plan.nodes if n.step == step):
      names.add(node.output.name)
      names.update(
        conv.bottleneck_name for conv in node.convolutions if conv.inner
      )
    return frozenset(names)

  def _step(self, carried, step, train):
    if protocol.IMAGES in carried:
      features = self._stems(carried[protocol.IMAGES], train)
    else:
      read = msdnet_plan.carried_features(self.plan, step - 1)
      features = {f.scale: carried[f.name] for f in read}
    for layer in msdnet_plan.layers_of_step(self.plan, step):
      inner = self._bottlenecks(layer, features, train)
      features = {
        node.output.scale: Node(
          plan=node, name=node.output.name, axis_name=self.axis_name
        )(
          features[node.output.scale],
          None if node.diagonal is None else inner[node.diagonal],
          inner[node.horizontal],
          train,
        )
        for node in layer
      }
    exit_ = self.plan.exits[step]
    x = features[exit_.feature.scale]
    if self.gradient_equilibrium and train:
      x, onward = gradient_scale.in_equilibrium(x, step, self.num_exits)
      features[exit_.feature.scale] = onward
    logits = ExitHead(
      channels=exit_.channels,
      num_classes=self.plan.spec.num_classes,
      name=exit_.name,
      axis_name=self.axis_name,
    )(x, train)
    kept = msdnet_plan.carried_features(self.plan, step)
    return self.boosted(
      carried, {f.name: features[f.scale] for f in kept}, logits, step
    )

  def _stems(self, images, train) -> dict[int, jax.Array]:
    """Computes the features before the first layer, by scale."""
    protocol.check_images(self.plan, images)
    x = channels_first.from_images(images.astype(jnp.dtype(self.dtype)))
    features = {}
    for stem in self.plan.stems:
      scale, name = stem.output.scale, stem.output.name
      channels = stem.output.channels
      if not scale and self.plan.spec.stem == msdnet_plan.IMAGENET:
        module = ImageNetStem(
          features=channels, name=name, axis_name=self.axis_name
        )
      else:
        stride = 2 if scale else 1
        module = ConvNormReLU(
          features=channels,
          kernel=3,
          stride=stride,
          name=name,
          axis_name=self.axis_name,
        )
      x = features[scale] = module(x, train)
    return features

  def _bottlenecks(
    self, layer, features, train
  ) -> dict[msdnet_plan.Convolution, jax.Array]:
    """Computes what the 3x3 convolutions of a layer read.

    The 1x1 convolutions on one feature are one matrix product and one BN.
    """
    inner = {
      conv: features[conv.source.scale]
      for node in layer
      for conv in node.convolutions
      if not conv.inner
    }
    for source, convs in msdnet_plan.bottlenecks(layer).items():
      x = ConvNormReLU(
        features=sum(conv.inner for conv in convs),
        name=convs[0].bottleneck_name,
        axis_name=self.axis_name,
      )(features[source.scale], train)
      start = 0
      for conv in convs:
        inner[conv] = x[start : start + conv.inner]
        start += conv.inner
    return inner


def build_msdnet(
  spec: msdnet_plan.MSDNetSpec, *, field: str = 'spec', **fields
) -> MSDNet:
  """Returns the network of some sizes.

  Args:
    spec: the sizes.
    field: the config section that error messages name.
    **fields: further attributes of `MSDNet`.

  Raises:
    UsageError: the sizes make no network.

  Example:
    >>> import ms_ranas_jax as mr
    >>> spec = mr.MSDNetSpec(channels=8, blocks=2, base=1, step=1)
    >>> [exit_.macs for exit_ in mr.network_cost(mr.build_msdnet(spec)).exits]
    [3625216, 6625792]
  """
  return MSDNet(plan=msdnet_plan.build_plan(spec, field), **fields)
