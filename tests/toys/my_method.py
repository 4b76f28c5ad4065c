"""A search method of one's own: a step on the mean over several genotypes."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import optax

import ms_ranas_jax as mr
from ms_ranas_jax import default_config
from ms_ranas_jax import sections
from ms_ranas_jax.fields import field
from ms_ranas_jax.fields import whole
from ms_ranas_jax.search import methods
from ms_ranas_jax.search import random_search


@dataclasses.dataclass(frozen=True)
class FairConfig(sections.SearchConfig):
  paths: int = field(2, whole(1), 'genotypes of a step')


@flax.struct.dataclass
class State:
  step: jax.Array
  rng: jax.Array
  params: dict
  batch_stats: dict
  params_opt_state: optax.OptState


class Fair(methods.SharedParams):
  config = FairConfig

  def _draw(self, key):
    nodes = self.problem.search.network.nodes
    return random_search.random_weights(key, nodes, self.problem.primitives)

  def init(self, key):
    found = mr.init_variables(self.problem.network, key, self._draw(key))
    optimizer = self.problem.params_optimizer.init(found['params'])
    return State(
      step=jnp.int32(0), rng=key, params_opt_state=optimizer, **found
    )

  def step(self, state, train_batch, valid_batch):
    def loss(params, keys, stats, batch):
      found = [one(params, self._draw(k), stats, batch) for k in keys]
      return sum(value for value, _ in found) / len(found), found[0][1]

    one, paths = self.problem.loss(), self.problem.search.paths
    keys = jax.random.split(jax.random.fold_in(state.rng, state.step), paths)
    return self.params_step(state, keys, train_batch, valid_batch, loss)


def get_config():
  return default_config.get_config(method='my_method:Fair')
