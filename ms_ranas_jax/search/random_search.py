r"""Random search with weight sharing: the baseline that every search must beat.

After Li and Talwalkar, "Random Search and Reproducibility for Neural
Architecture Search" (UAI 2019), section 3.3: every step draws one genotype,
evenly over the space, and updates the params that it shares with all others;
in the end more genotypes are drawn and judged with these params on the
validation half. There are no alphas to learn.

A drawn genotype is put into the search network as one-hot weights: an edge that
it keeps has weight one on its operation, any other on `none`. Params of
operations that were not drawn get no gradient; weight decay and momentum go on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.search import bilevel
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space.genotype import Genotype

# Genotypes drawn at once, and how many times as many as are wanted at most.
_DRAWN_AT_ONCE = 256
_MOST_DRAWN = 1000
# Told apart from the keys of a search of the same seed.
_STREAM = 0x72616E64


def random_weights(
  key: jax.Array, nodes: int, primitives: ops.Primitives = ops.PRIMITIVES
) -> dict[str, jax.Array]:
  """Returns the one-hot weights of a genotype drawn evenly from the space.

  Per node two of the states before it, and on each an operation other than
  none; all choices are equally likely.

  Args:
    key: random key.
    nodes: nodes per cell.
    primitives: name -> operation, in the order of the columns.

  Returns:
    {'normal': (edges, operations), 'reduction': ...} float32. Rows of edges
    that are not kept are one on `none`, or zero where there is no such
    operation.
  """
  real = jnp.array(edges_lib.real_columns(primitives), jnp.int32)
  counts = edges_lib.NUM_INPUTS + np.arange(nodes, dtype=np.float32)
  # All at once: on CPUs, every draw costs a second of compile time or so. The
  # second state of a node is one of those that the first left over.
  choices = np.stack(
    [counts, counts - 1, *([np.full(nodes, len(real), np.float32)] * 2)]
  )
  shape = (len(edges_lib.KINDS), *choices.shape)
  uniform = jax.random.uniform(key, shape, jnp.float32)
  numbers = jnp.floor(uniform * choices[None]).astype(jnp.int32)
  node, state = np.transpose(edges_lib.edge_list(nodes))
  none = alphas_lib.none_column(primitives)
  weights = {}
  for kind, (first, second, *operations) in zip(
    edges_lib.KINDS, numbers, strict=True
  ):
    second += second >= first
    columns = jnp.select(
      [first[node] == state, second[node] == state],
      [real[drawn][node] for drawn in operations],
      none,
    )
    weights[kind] = jax.nn.one_hot(columns, len(primitives), dtype=jnp.float32)
  return weights


def random_genotypes(
  seed: int,
  count: int,
  nodes: int,
  primitives: ops.Primitives = ops.PRIMITIVES,
  preferred: Callable[[Genotype], bool] = lambda genotype: True,
) -> list[Genotype]:
  """Draws genotypes evenly from the space, none of them twice.

  Args:
    seed: the same seed gives the same genotypes.
    count: how many.
    nodes: nodes per cell.
    primitives: name -> operation.
    preferred: which are wanted, such as those that cost what they may. Others
      make up the number when no more can be found in 1000 draws for each.

  Returns:
    The genotypes, the preferred ones first. Fewer where the space has fewer.

  Example:
    >>> import ms_ranas_jax as mr
    >>> genotypes = mr.random_genotypes(seed=0, count=3, nodes=2)
    >>> len(genotypes), genotypes[0].nodes
    (3, 2)
    >>> genotypes == mr.random_genotypes(seed=0, count=3, nodes=2)
    True
  """
  key = jax.random.fold_in(jax.random.key(seed), _STREAM)
  draw = jax.jit(
    jax.vmap(
      lambda number: random_weights(
        jax.random.fold_in(key, number), nodes, primitives
      )
    )
  )
  wanted: dict[Genotype, None] = {}
  others: dict[Genotype, None] = {}
  for start in range(0, _MOST_DRAWN * count, _DRAWN_AT_ONCE):
    tables = jax.device_get(draw(np.arange(start, start + _DRAWN_AT_ONCE)))
    for index in range(_DRAWN_AT_ONCE):
      genotype = alphas_lib.derive_genotype(
        {kind: table[index] for kind, table in tables.items()}, primitives
      )
      if genotype in wanted or genotype in others:
        continue
      (wanted if preferred(genotype) else others)[genotype] = None
      if len(wanted) == count:
        return list(wanted)
  return [*wanted, *others][:count]


def random_search_step(
  state: Any,
  train_batch: bilevel.PyTree,
  valid_batch: bilevel.PyTree,
  *,
  loss: bilevel.Loss,
  params_optimizer: optax.GradientTransformation,
  nodes: int,
  primitives: ops.Primitives = ops.PRIMITIVES,
  axis_name: str | None = None,
) -> tuple[Any, dict[str, jax.Array]]:
  """Draws a genotype and updates the params for it.

  Args:
    state: before the step, as `bilevel.shared_params_step` takes it.
    train_batch: what `loss` takes, of the half that trains params.
    valid_batch: the same of the other half; it is only looked at.
    loss: see `bilevel.Loss`; takes weights in the place of alphas.
    params_optimizer: updates params.
    nodes: nodes per cell.
    primitives: name -> operation, in the order of the columns.
    axis_name: the device axis to average gradients and metrics over.

  Returns:
    The state after the step, alphas as they were, and the metrics: the loss
    and what comes with it as `train_*`, with the norm of the gradient, and as
    `valid_*`, before the update and of the same genotype.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> def loss(params, weights, batch_stats, batch):
    ...   mixed = weights['normal'].sum()  # of a genotype that was drawn
    ...   value = jnp.mean((params['w'] * mixed - batch) ** 2)
    ...   return value, (batch_stats, {})
    ...
    >>> optimizer = optax.sgd(0.01)
    >>> state = mr.init_state(
    ...   {'w': jnp.zeros(())}, {}, {}, params_optimizer=optimizer,
    ...   alphas_optimizer=optimizer, rng=jax.random.key(0),
    ... )
    >>> batch = jnp.ones(4)
    >>> state, metrics = mr.random_search_step(
    ...   state, batch, batch, loss=loss, params_optimizer=optimizer, nodes=2
    ... )
    >>> int(state.step), sorted(metrics)
    (1, ['train_gradient_norm', 'train_loss', 'valid_loss'])
  """
  key = jax.random.fold_in(jax.random.fold_in(state.rng, state.step), _STREAM)
  weights = random_weights(key, nodes, primitives)
  return bilevel.shared_params_step(
    state,
    weights,
    train_batch,
    valid_batch,
    loss=loss,
    optimizer=params_optimizer,
    axis_name=axis_name,
  )
