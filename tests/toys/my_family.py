"""A family of one's own: 3x3 convolutions in a row, an exit after each."""

import dataclasses

from flax import linen as nn
import jax.numpy as jnp

from ms_ranas_jax import default_config
from ms_ranas_jax import families
from ms_ranas_jax.fields import field
from ms_ranas_jax.fields import whole
from ms_ranas_jax.space import layer_cost
from ms_ranas_jax.space import protocol
from ms_ranas_jax.space.protocol import CostRow


@dataclasses.dataclass(frozen=True)
class RowConfig(protocol.NetworkConfig):
  length: int = field(2, whole(1), 'convolutions in a row')


@dataclasses.dataclass(frozen=True)
class Sizes:
  channels: int
  length: int
  image_shape: tuple[int, int, int]
  num_classes: int


class Row(protocol.SteppedNetwork):
  plan: protocol.PlainPlan
  dtype: str = 'float32'
  lowering: str = 'auto'
  axis_name: str | None = None

  @nn.compact
  def advance(self, carried, weights=None, *, step, train, drop_path=None):
    spec, (x,) = self.plan.spec, carried.values()
    x = nn.Conv(spec.channels, (3, 3), use_bias=False, name=f'conv{step}')(x)
    norm = nn.BatchNorm(not train, axis_name=self.axis_name, name=f'bn{step}')
    x = nn.relu(norm(x))
    logits = nn.Dense(spec.num_classes, name=f'exit{step}')(x.mean((1, 2)))
    return {'x': x}, logits.astype(jnp.float32)

  def modules_of_step(self, step):
    return frozenset(f'{name}{step}' for name in ('conv', 'bn', 'exit'))

  def cost_rows(self):
    spec, rows, source = self.plan.spec, [], protocol.IMAGES
    (height, width, before), channels = spec.image_shape, spec.channels
    head = layer_cost.dense(channels, spec.num_classes)
    for step in range(spec.length):
      out = f'x{step}'
      conv = layer_cost.convolution(height, width, before, channels, (3, 3))
      norm = layer_cost.norm(height, width, channels, affine=True)
      rows += [
        CostRow((source,), out, conv.elements, (conv, norm), step, out),
        CostRow((out,), f'exit{step}', spec.num_classes, (head,), step, out),
      ]
      source, before = out, channels
    return tuple(rows)


def plan(spec, field):
  exits = map(protocol.NumberedExit, *[range(spec.length)] * 2)
  return protocol.PlainPlan(spec, tuple(exits))


FAMILY = families.Family(
  RowConfig,
  Sizes,
  lambda config, *images: Sizes(config.width, config.length, *images),
  plan,
  lambda spec, genotype, field, **others: Row(plan(spec, field), **others),
)


def get_config():
  return default_config.get_config(family='my_family:FAMILY')
