"""Makes the params of a genotype, and trains on from them and from random ones.

python examples/params_for_a_genotype.py

A hypernetwork is trained here for a while, on networks of random genotypes; one
of a search with search.method = 'ghn' is loaded with `mr.load_hypernetwork`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import ms_ranas_jax as mr

NAMES = ('none', 'skip_connect', 'max_pool_3x3', 'sep_conv_3x3')
PRIMITIVES = {name: mr.PRIMITIVES[name] for name in NAMES}
SPEC = mr.NetworkSpec(channels=4, layers=2, nodes=1, image_shape=(8, 8, 1))
BATCH = 128


def train(
  apply: Callable[..., jax.Array], params: Any, batches: Sequence[Any]
) -> tuple[Any, float]:
  """Returns the params after all batches, and the loss of the last one."""
  optimizer = optax.adam(3e-3)

  def loss(params, images, labels, *genotype):
    return mr.exit_losses(apply(params, images, *genotype), labels).mean()

  @jax.jit
  def step(params, state, batch):
    value, gradient = jax.value_and_grad(loss)(params, *batch)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, value

  state, value = optimizer.init(params), 0.0
  for batch in batches:
    params, state, value = step(params, state, batch)
  return params, float(value)


def main(epochs: int = 30) -> dict[str, float]:
  """Returns the loss after an epoch, from made and from random params."""
  data = mr.load_dataset('digits')
  images = (data.train_images / 255.0 - data.mean) / data.std
  images, labels = jnp.asarray(images, jnp.float32), data.train_labels
  starts = range(0, len(labels) - BATCH + 1, BATCH)
  batches = [(images[i : i + BATCH], labels[i : i + BATCH]) for i in starts]
  genotype, *others = mr.random_genotypes(0, 40, SPEC.nodes, PRIMITIVES)

  hypernetwork = mr.Hypernetwork(SPEC, PRIMITIVES, rounds=2)
  weights = [mr.one_hot_weights(other, PRIMITIVES) for other in others]
  params, _ = train(
    lambda params, images, weights: mr.hypernetwork_logits(
      hypernetwork, params, weights, images
    ),
    mr.init_hypernetwork(hypernetwork, jax.random.key(0)),
    [
      (*batch, weights[index % len(weights)])
      for index, batch in enumerate(batches * epochs)
    ],
  )
  network = mr.derived_network(SPEC, genotype)
  starts = {
    'made': mr.make_params(hypernetwork, params, genotype),
    'random': mr.init_variables(network, jax.random.key(1))['params'],
  }

  def apply(params, images):
    return network.apply({'params': params}, images, train=True)

  return {name: train(apply, at, batches)[1] for name, at in starts.items()}


if __name__ == '__main__':
  print(main())
