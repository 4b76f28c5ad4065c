"""The search with a graph hypernetwork: it is trained on random genotypes.

After Zhang, Ren and Urtasun, "Graph HyperNetworks for Neural Architecture
Search" (ICLR 2019, arXiv 1810.05749), section 4: every step draws a genotype,
evenly over the space, makes its params, and improves what made them by the loss
of the network, eq. (3) over its exits. In the end many random genotypes are
judged with the params that are made for them, on the validation half, by the
area under their accuracy-cost curve.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ms_ranas_jax.fields import field
from ms_ranas_jax.fields import number
from ms_ranas_jax.fields import section
from ms_ranas_jax.fields import whole
from ms_ranas_jax.hypernetwork import hypernetwork as hypernetwork_lib
from ms_ranas_jax.sections import SearchConfig
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.training import optimizers

_OF_SGD = ('learning_rate', 'final_learning_rate', 'momentum', 'weight_decay')


@dataclasses.dataclass(frozen=True)
class HypernetworkSection:
  """The hypernetwork and its optimizer."""

  rounds: int = field(
    5, whole(0), 'of messages along the graph, forward and backward'
  )
  width: int = field(32, whole(1), 'of the states of nodes')
  hidden: int = field(64, whole(1), 'of the layer of the head')
  tile: int = field(
    8, whole(1), 'channels in and out that one output of the head makes'
  )
  learning_rate: float = field(
    1e-3, number(0, above=True), 'Adam, along a cosine to 0'
  )
  weight_decay: float = field(1e-5, number(0), 'L2 added to the gradient')
  short_epochs: int = field(
    0,
    whole(0),
    'of a training of the best candidates before one is chosen, by the SGD of '
    'the search; 0 is none',
  )
  short_candidates: int = field(
    10, whole(1), 'so many of them', needs=('short_epochs', None)
  )


@dataclasses.dataclass(frozen=True)
class HypernetworkConfig(SearchConfig):
  """What the search with a hypernetwork is asked for besides."""

  ghn: HypernetworkSection = section(
    HypernetworkSection, 'the graph hypernetwork'
  )

  @staticmethod
  def unused(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the fields of a search that this one has no use for.

    Args:
      values: name -> value, of the whole config.
    """
    # Those of SGD serve the short trainings alone.
    return () if values.get('search.ghn.short_epochs') else _OF_SGD


class State(flax.struct.PyTreeNode):
  """All that the search carries from step to step.

  Attributes:
    step: int32 scalar, steps done.
    params: the hypernetwork's.
    batch_stats: nothing; BNs see the batch.
    params_opt_state: of its optimizer.
    rng: the key that all of the search's randomness is folded from.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  params_opt_state: optax.OptState
  rng: jax.Array


def build(
  config: HypernetworkSection,
  spec: grid.NetworkSpec,
  primitives: ops.Primitives,
) -> hypernetwork_lib.Hypernetwork:
  """Returns the hypernetwork that a config asks for.

  Args:
    config: `config.search.ghn`.
    spec: sizes of the network of the search.
    primitives: name -> operation, the choices on every edge.
  """
  return hypernetwork_lib.Hypernetwork(
    spec, primitives, config.rounds, config.width, config.hidden, config.tile
  )


def optimizer(
  search: HypernetworkConfig, steps: int
) -> optax.GradientTransformation:
  """Returns the optimizer of the hypernetwork: a clip, L2 decay, Adam.

  Args:
    search: `config.search`.
    steps: of an epoch.
  """
  ghn = search.ghn
  schedule = optimizers.epoch_cosine(
    ghn.learning_rate, 0.0, search.epochs, steps
  )
  return optax.flatten(
    optax.chain(
      optax.clip_by_global_norm(search.clip)
      if search.clip
      else optax.identity(),
      optax.add_decayed_weights(ghn.weight_decay),
      optax.adam(schedule),
    )
  )


def init_state(
  hypernetwork: hypernetwork_lib.Hypernetwork,
  params_optimizer: optax.GradientTransformation,
  key: jax.Array,
) -> State:
  """Returns the state before the first step.

  Args:
    hypernetwork: what is trained.
    params_optimizer: updates its params.
    key: of all that is random in the search.
  """
  keys = jax.random.split(key)
  params = hypernetwork_lib.init_params(hypernetwork, keys[0])
  return State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats={},
    params_opt_state=jax.jit(params_optimizer.init)(params),
    rng=keys[1],
  )
