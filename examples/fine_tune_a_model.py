"""Loads a finished network, steps through it, and fine-tunes it.

python examples/fine_tune_a_model.py runs/digits

It was trained on digits; the new task is to tell even digits from odd ones.
"""

import dataclasses
import sys

import jax
import numpy as np
import optax

import ms_ranas_jax as mr

NAMES = ('even', 'odd')


def sure_enough(model: mr.Model, image: np.ndarray, least: float) -> str:
  """Goes on from exit to exit until the answer is sure enough."""
  for answer in model.steps(image[None]):
    print(f'exit {answer.exits[0]}: {answer.confidence[0]:.0%} sure')
    if answer.confidence[0] >= least:
      break
  return str(answer.names[0])


def with_new_heads(model: mr.Model, key: jax.Array) -> mr.Model:
  """Keeps all layers, and draws classifiers for other classes."""
  spec = dataclasses.replace(model.network.plan.spec, num_classes=len(NAMES))
  network = mr.derived_network(spec, model.genotype)
  fresh = mr.init_variables(network, key)
  heads = {k: v for k, v in fresh['params'].items() if k.startswith('exit')}
  params = {**model.variables['params'], **heads}
  variables = {**model.variables, 'params': params}
  old = model.description
  return mr.build_model(network, variables, old.mean, old.std, NAMES)


def main(path: str, steps: int = 60, save_to: str = '') -> mr.Model:
  """Fine-tunes a model and returns it."""
  digits = mr.load_dataset('digits')
  model = mr.load_model(path)
  print('it is a', sure_enough(model, digits.test_images[0], least=0.9))

  tuned = with_new_heads(model, jax.random.key(0))
  images = (digits.train_images / 255.0 - digits.mean) / digits.std
  labels = digits.train_labels % 2
  optimizer = optax.adam(1e-3)

  @jax.jit
  def step(params, state, x, y):
    # BNs keep the averages that they have, so few images are enough.
    def loss(params):
      variables = {**tuned.variables, 'params': params}
      logits = tuned.network.apply(variables, x, train=False)
      return mr.exit_losses(logits, y).sum()

    gradient = jax.grad(loss)(params)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state

  params = tuned.variables['params']
  state = optimizer.init(params)
  for _ in range(steps):
    rows = np.random.choice(len(labels), 64)
    params, state = step(params, state, images[rows], labels[rows])
  tuned = tuned.with_variables({**tuned.variables, 'params': params})
  right = tuned.predict(digits.test_images).labels == digits.test_labels % 2
  print(f'{right.mean():.1%} of the test images are told even from odd')
  if save_to:
    tuned.save(save_to)
  return tuned


if __name__ == '__main__':
  main(*sys.argv[1:2])
