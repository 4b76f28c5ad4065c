"""Searches one cell inside somebody else's Flax model, on their own loss.

python examples/mixed_cell_in_your_model.py
"""

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

import ms_ranas_jax as mr

NODES = 2
NAMES = ('none', 'skip_connect', 'max_pool_3x3', 'sep_conv_3x3')
PRIMITIVES = {name: mr.PRIMITIVES[name] for name in NAMES}


class Denoiser(nn.Module):
  """A model of one's own: a convolution, a mixed cell, a convolution."""

  @nn.compact
  def __call__(self, x, weights):
    """Maps noisy images to clean ones, given the weights of the cell."""
    state = nn.Conv(8, (3, 3))(x)
    cell = mr.Cell(mr.mixed_wiring(NODES, PRIMITIVES), PRIMITIVES, channels=8)
    return nn.Conv(1, (1, 1))(cell((state, state), weights, train=True))


def main(steps: int = 20) -> mr.Genotype:
  """Runs the bilevel search and returns the genotype."""
  model = Denoiser()
  keys = jax.random.split(jax.random.key(0), 3)
  alphas = mr.init_alphas(keys[0], NODES, len(PRIMITIVES))

  def loss(params, alphas, batch_stats, clean):
    noisy = clean + 0.3 * jax.random.normal(keys[1], clean.shape)
    weights = mr.softmax_weights(alphas)['normal']
    output = model.apply({'params': params}, noisy, weights)
    return jnp.mean((output - clean) ** 2), (batch_stats, {})

  images = jnp.asarray(mr.load_dataset('digits').train_images[:256]) / 255.0
  train, valid = images[:128], images[128:]
  weights = mr.softmax_weights(alphas)['normal']
  params = jax.jit(model.init)(keys[2], train[:1], weights)['params']
  optimizers = {
    'params_optimizer': optax.adam(3e-3),
    'alphas_optimizer': mr.adam_with_l2(1e-2, weight_decay=1e-3),
  }
  state = mr.init_state(params, alphas, {}, rng=keys[1], **optimizers)
  options = {'loss': loss, 'order': 2, **optimizers}
  step = jax.jit(lambda *args: mr.search_step(*args, **options))
  for _ in range(steps):
    state, metrics = step(state, train, valid)
  print(f'validation loss {float(metrics["valid_loss"]):.4f}')
  return mr.derive_genotype(mr.softmax_weights(state.alphas), PRIMITIVES)


if __name__ == '__main__':
  print(main().to_json())
