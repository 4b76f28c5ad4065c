"""The average of variables, step by step."""

import jax
import numpy as np

from ms_ranas_jax.training import averaging


def test_it_follows_its_formula():
  rng = np.random.default_rng(0)
  trees = [
    {'a': rng.normal(size=(2, 3)), 'b': {'c': rng.normal(size=())}}
    for _ in range(40)
  ]
  trees = jax.tree.map(np.float32, trees)
  found = expected = trees[0]
  for step, tree in enumerate(trees[1:], 1):
    found = averaging.update(found, tree, step, 0.7)
    # The first steps forget faster: 2/11, 3/12, ... up to 0.7.
    decay = min(0.7, (1 + step) / (10 + step))
    expected = jax.tree.map(
      lambda old, new, d=decay: d * old + (1 - d) * new, expected, tree
    )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
    found,
    expected,
  )
  assert found['a'].dtype == np.float32
