"""The fast and the plain lowering, and remat, through whole search steps."""

import jax
import numpy as np

from ms_ranas_jax import default_config
from ms_ranas_jax import settings
from ms_ranas_jax.data.datasets import load_dataset
from ms_ranas_jax.runtime import parallel
from ms_ranas_jax.search import stage
from ms_ranas_jax.space import operations as ops

STEPS = 10
# One of each kind that has a gradient of its own.
KINDS = {
  name: ops.PRIMITIVES[name]
  for name in ('max_pool_3x3', 'avg_pool_3x3', 'sep_conv_3x3', 'dil_conv_5x5')
}


def _searched(dataset, **changes):
  config = default_config.get_config()
  config.num_devices = 1
  config.search.update(batch_size=4, alphas_learning_rate=1e-2)
  config.search.network.update(channels=4, layers=2, nodes=1, scales=1)
  config.update_from_flattened_dict(changes)
  config.search.primitives = tuple(KINDS)
  program = stage.build_program(settings.parse(config), dataset)
  chunk = parallel.compile_chunk(program.step, 1, STEPS)
  data = {'images': dataset.train_images, 'labels': dataset.train_labels}
  rows = np.random.default_rng(0).integers(
    0, len(data['labels']), (STEPS, 2, 4)
  )
  state = chunk(
    parallel.replicate(program.new_state(), 1),
    parallel.zero_sums(program.metrics),
    parallel.replicate(data, 1),
    rows,
  ).state
  return jax.device_get((state.alphas, state.params))


def test_ten_steps_give_the_same_alphas_and_params():
  """To 1e-3 of the largest value of a leaf, in float32.

  Rounding differs between the ways to sum, and each step starts from what the
  last one made of it.
  """
  dataset = load_dataset('digits')
  fast = _searched(dataset, lowering='taps')
  for other in (
    _searched(dataset, lowering='conv'),
    _searched(dataset, lowering='fused'),
    _searched(dataset, **{'lowering': 'taps', 'search.remat': True}),
  ):
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(other), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * np.abs(b).max())
