"""Search methods: what a step does, and with which params genotypes are judged.

A method is made of a `Problem` and gives a state, a step, and the logits by
which genotypes are judged. One without alphas has no genotype of its own:
candidates are drawn from the space. A method of one's own is named in a config
as 'my_module:MyMethod'; it needs what `Method` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
import os
import types
from typing import Any, ClassVar, Generic, Protocol, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import optax

from ms_ranas_jax import importing
from ms_ranas_jax.fields import field
from ms_ranas_jax.fields import number
from ms_ranas_jax.fields import one_of
from ms_ranas_jax.hypernetwork import hypernetwork as hypernetwork_lib
from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.search import bilevel
from ms_ranas_jax.search import hypernetwork_file
from ms_ranas_jax.search import hypernetwork_search
from ms_ranas_jax.search import options
from ms_ranas_jax.search import random_search
from ms_ranas_jax.search.cost_term import CostTerm
from ms_ranas_jax.search.optimizers import adam_with_l2
from ms_ranas_jax.sections import SearchConfig
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.training import initialization
from ms_ranas_jax.training import losses
from ms_ranas_jax.training import optimizers

PyTree = Any
# Of the section of a method, `config.search`.
Section = TypeVar('Section', bound=SearchConfig, covariant=True)
Weigh = Callable[[alphas_lib.Alphas], network_lib.Weights]


@dataclasses.dataclass(frozen=True)
class BilevelConfig(SearchConfig):
  """What the differentiable search is asked for besides."""

  order: int = field(
    1, one_of(*bilevel.ORDERS), '2 looks ahead: through one step of the params'
  )
  mixed_derivative: str = field(
    'exact',
    one_of(*bilevel.MIXED_DERIVATIVES),
    "of order 2; 'difference' is DARTS's",
  )
  alphas_learning_rate: float = field(
    3e-4, number(0, above=True), 'Adam, constant'
  )
  alphas_weight_decay: float = field(
    1e-3, number(0), 'L2 added to the gradient'
  )


def exit_loss(
  network: network_lib.Network,
  weights: tuple[float, ...],
  weigh: Weigh = edges_lib.softmax_weights,
) -> bilevel.Loss:
  """Returns eq. (3) for a search network, as the bilevel step takes it.

  Every forward normalises with the statistics of its batch; the updated
  running averages are returned, and which of them are kept is the step's
  decision.

  Args:
    network: a search network.
    weights: w_k, one per exit.
    weigh: alphas -> the weights that the network takes.
  """

  def loss(params, alphas, batch_stats, batch):
    images, labels = batch
    logits, updates = network.apply(
      {'params': params, 'batch_stats': batch_stats},
      images,
      weigh(alphas),
      train=True,
      mutable=['batch_stats'],
    )
    value = losses.weighted_loss(logits, labels, weights)
    metrics = {'accuracy': losses.exit_accuracies(logits, labels)}
    return value, (updates['batch_stats'], metrics)

  return loss


@dataclasses.dataclass(frozen=True)
class Problem(Generic[Section]):
  """What a method searches in, and with.

  Attributes:
    search: `config.search`, of the class that the method asks for.
    network: the search network, on `network.axis_name`.
    primitives: name -> operation, the choices on every edge.
    exit_weights: w_k, one per exit.
    cost_term: the cost of what is searched for.
    steps: of an epoch.
  """

  search: Section
  network: network_lib.Network
  primitives: ops.Primitives
  exit_weights: tuple[float, ...]
  cost_term: CostTerm
  steps: int = 1

  @property
  def axis_name(self) -> str | None:
    """The device axis to average over."""
    return self.network.axis_name

  def loss(
    self, weigh: Weigh = lambda weights: weights, alone: bool = False
  ) -> bilevel.Loss:
    """Returns the loss of all exits, see `bilevel.Loss`.

    Args:
      weigh: what the loss takes in the place of alphas -> weights.
      alone: on one device, whatever the network is for.
    """
    network = self.network.clone(axis_name=None) if alone else self.network
    return exit_loss(network, self.exit_weights, weigh)

  def sgd(self, clip: float) -> optax.GradientTransformation:
    """Returns the optimizer of params, at some clip.

    Args:
      clip: largest gradient norm; 0 is none.
    """
    search = self.search
    schedule = optimizers.epoch_cosine(
      search.learning_rate,
      search.final_learning_rate,
      search.epochs,
      self.steps,
    )
    return optimizers.sgd(schedule, search.momentum, search.weight_decay, clip)

  @functools.cached_property
  def params_optimizer(self) -> optax.GradientTransformation:
    """The optimizer of params."""
    return self.sgd(self.search.clip)

  def init_state(
    self, key: jax.Array, alphas_optimizer: optax.GradientTransformation
  ) -> bilevel.SearchState:
    """Returns a state with params and alphas.

    Args:
      key: of all that is random in the search.
      alphas_optimizer: updates alphas.
    """
    keys = jax.random.split(key, 3)
    alphas = alphas_lib.init_alphas(
      keys[0],
      self.network.plan.spec.nodes,
      len(self.primitives),
      options.edge_normalization(self.search),
    )
    variables = initialization.init_variables(
      self.network, keys[1], options.weights_in(self.search, 0)(alphas)
    )
    return bilevel.init_state(
      variables['params'],
      alphas,
      variables['batch_stats'],
      self.params_optimizer,
      alphas_optimizer,
      keys[2],
    )

  def metrics(self) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the metrics that every method has."""
    exits = (self.network.num_exits,)
    return {
      'train_loss': (),
      'train_accuracy': exits,
      'train_gradient_norm': (),
      'valid_loss': (),
      'valid_accuracy': exits,
    }


class State(Protocol):
  """What is needed of a state: a pytree with these leaves.

  Attributes:
    step: int32 scalar, steps done.
    rng: the key that all of the search's randomness is folded from.
  """

  step: jax.Array
  rng: jax.Array


class Method(Protocol):
  """A way to search; it is called with a `Problem`.

  Attributes:
    config: the class of its section, `SearchConfig` or a subclass.
    has_alphas: whether its states have `alphas`, which genotypes are derived
      from; else genotypes are drawn, and chosen by area.
  """

  config: ClassVar[type[SearchConfig]]
  has_alphas: ClassVar[bool]

  def __init__(self, problem: Problem) -> None: ...

  @classmethod
  def summary(cls, search: Any, network: network_lib.Network) -> str | None:
    """Returns what is trained in words, None where it is the search network.

    Args:
      search: `config.search`, of the class of the method.
      network: the search network.
    """

  @property
  def problem(self) -> Problem:
    """What it was made of."""

  def init(self, key: jax.Array) -> State:
    """Returns the state before the first step; traced."""

  def step(
    self, state: Any, train_batch: PyTree, valid_batch: PyTree
  ) -> tuple[State, Mapping[str, jax.Array]]:
    """Does a step; traced.

    Args:
      state: before the step, of the class that `init` returns.
      train_batch: normalised images and labels of the half for params.
      valid_batch: the same of the other half.

    Returns:
      The state after it, and the metrics, averaged over devices.
    """

  def metrics(self) -> Mapping[str, tuple[int, ...]]:
    """Returns name -> shape of what a step measures."""

  def logits(
    self, state: Any, weights: network_lib.Weights, images: jax.Array
  ) -> jax.Array:
    """Returns what judges a genotype; traced, the genotype is data.

    Args:
      state: after the last step.
      weights: that make the search network that of the genotype.
      images: normalised, on one device; BNs use their statistics.

    Returns:
      (exits, batch, classes).
    """

  def save(self, state: Any, directory: str, seed: int | None) -> None:
    """Writes what others may take of a finished search, where there is any.

    Args:
      state: after the last step, of one seed.
      directory: of the search.
      seed: which, of several; else None.
    """


class AlphasMethod(Method, Protocol):
  """A way to search with alphas."""

  def loss_in(
    self, epoch: jax.Array | int, alone: bool = False
  ) -> bilevel.Loss:
    """Returns the loss of an epoch, which early stop follows in alphas.

    Args:
      epoch: from 0.
      alone: on one device, see `Problem.loss`.
    """


def has_alphas(method: Method) -> TypeGuard[AlphasMethod]:
  """Returns whether the states of a method have alphas."""
  return method.has_alphas


@dataclasses.dataclass(frozen=True)
class SharedParams(Generic[Section]):
  """A method whose genotypes share params; a base without alphas.

  Attributes:
    problem: what it searches in.
  """

  problem: Problem[Section]
  config: ClassVar[type[SearchConfig]] = SearchConfig
  has_alphas: ClassVar[bool] = False

  @classmethod
  def summary(cls, search: Any, network: network_lib.Network) -> str | None:
    """Returns nothing: it is the search network."""
    del search, network

  def metrics(self) -> Mapping[str, tuple[int, ...]]:
    """Returns name -> shape of what a step measures."""
    return self.problem.metrics()

  def logits(
    self, state: Any, weights: network_lib.Weights, images: jax.Array
  ) -> jax.Array:
    """Returns those of the search network, with the params that all share."""
    network = self.problem.network.clone(axis_name=None)
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    return jnp.asarray(network.apply(variables, images, weights, train=True))

  def save(self, state: Any, directory: str, seed: int | None) -> None:
    """Writes nothing: the params are of use in this search alone."""

  def params_step(
    self,
    state: Any,
    weights: PyTree,
    train_batch: PyTree,
    valid_batch: PyTree,
    loss: bilevel.Loss,
  ) -> tuple[Any, dict[str, jax.Array]]:
    """Does a step of params, and looks at the other half before.

    Args:
      state: has `step`, `params`, `batch_stats` and `params_opt_state`.
      weights: what the loss takes in the place of alphas.
      train_batch: of the half that trains params.
      valid_batch: of the other half.
      loss: see `bilevel.Loss`.

    Returns:
      The state after it, and the metrics that every method has.
    """
    return bilevel.shared_params_step(
      state,
      weights,
      train_batch,
      valid_batch,
      loss=loss,
      optimizer=self.problem.params_optimizer,
      axis_name=self.problem.axis_name,
    )


@dataclasses.dataclass(frozen=True)
class Bilevel(SharedParams[BilevelConfig]):
  """The differentiable search, see `bilevel`."""

  config: ClassVar[type[SearchConfig]] = BilevelConfig
  has_alphas: ClassVar[bool] = True

  @functools.cached_property
  def _alphas_optimizer(self) -> optax.GradientTransformation:
    search = self.problem.search
    return adam_with_l2(search.alphas_learning_rate, search.alphas_weight_decay)

  def init(self, key: jax.Array) -> bilevel.SearchState:
    """Returns the state before the first step."""
    return self.problem.init_state(key, self._alphas_optimizer)

  def loss_in(
    self, epoch: jax.Array | int, alone: bool = False
  ) -> bilevel.Loss:
    """Returns the loss in an epoch, with its guards, see `Problem.loss`."""
    return self.problem.loss(
      options.weights_in(self.problem.search, epoch), alone
    )

  def step(
    self, state: bilevel.SearchState, train_batch: PyTree, valid_batch: PyTree
  ) -> tuple[bilevel.SearchState, dict[str, jax.Array]]:
    """Does a step of alphas, then one of params."""
    problem = self.problem
    return bilevel.search_step(
      state,
      train_batch,
      valid_batch,
      loss=self.loss_in(state.step // problem.steps),
      params_optimizer=problem.params_optimizer,
      alphas_optimizer=self._alphas_optimizer,
      lookahead_optimizer=problem.sgd(0.0),
      order=problem.search.order,
      penalty=problem.cost_term.penalty,
      mixed_derivative=problem.search.mixed_derivative,
      axis_name=problem.axis_name,
    )

  def metrics(self) -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of what a step measures."""
    return self.problem.metrics() | {
      'valid_gradient_norm': (),
      'expected_cost': (),
    }


@dataclasses.dataclass(frozen=True)
class RandomSearch(SharedParams[SearchConfig]):
  """Random search with shared params, see `random_search`."""

  def init(self, key: jax.Array) -> bilevel.SearchState:
    """Returns the state before the first step; its alphas stay as they are."""
    return self.problem.init_state(key, adam_with_l2(0.0, 0.0))

  def step(
    self, state: bilevel.SearchState, train_batch: PyTree, valid_batch: PyTree
  ) -> tuple[bilevel.SearchState, dict[str, jax.Array]]:
    """Does a step of params, for a genotype that it draws."""
    problem = self.problem
    return random_search.random_search_step(
      state,
      train_batch,
      valid_batch,
      loss=problem.loss(),
      params_optimizer=problem.params_optimizer,
      nodes=problem.network.plan.spec.nodes,
      primitives=problem.primitives,
      axis_name=problem.axis_name,
    )


@dataclasses.dataclass(frozen=True)
class GraphHypernetwork(SharedParams[hypernetwork_search.HypernetworkConfig]):
  """A hypernetwork that makes the params, see `hypernetwork_search`."""

  config: ClassVar[type[SearchConfig]] = hypernetwork_search.HypernetworkConfig

  @classmethod
  def summary(
    cls,
    search: hypernetwork_search.HypernetworkConfig,
    network: network_lib.Network,
  ) -> str:
    """Returns how large the hypernetwork is."""
    hypernetwork = hypernetwork_search.build(
      search.ghn, network.plan.spec, network.operations
    )
    shapes = [shape for shape, _ in hypernetwork.param_shapes().values()]
    return (
      f'a hypernetwork of {sum(map(math.prod, shapes)):,} params, which makes '
      'those of every genotype'
    )

  @functools.cached_property
  def hypernetwork(self) -> hypernetwork_lib.Hypernetwork:
    """What makes the params."""
    problem = self.problem
    return hypernetwork_search.build(
      problem.search.ghn, problem.network.plan.spec, problem.primitives
    )

  @functools.cached_property
  def _optimizer(self) -> optax.GradientTransformation:
    return hypernetwork_search.optimizer(
      self.problem.search, self.problem.steps
    )

  def init(self, key: jax.Array) -> hypernetwork_search.State:
    """Returns the state before the first step."""
    return hypernetwork_search.init_state(
      self.hypernetwork, self._optimizer, key
    )

  def step(
    self,
    state: hypernetwork_search.State,
    train_batch: PyTree,
    valid_batch: PyTree,
  ) -> tuple[hypernetwork_search.State, dict[str, jax.Array]]:
    """Does a step of the hypernetwork, for a genotype that it draws."""
    problem = self.problem

    def loss(params, weights, batch_stats, batch):
      images, labels = batch
      logits = self._apply(params, weights, images, problem.axis_name)
      value = losses.weighted_loss(logits, labels, problem.exit_weights)
      metrics = {'accuracy': losses.exit_accuracies(logits, labels)}
      return value, (batch_stats, metrics)

    return random_search.random_search_step(
      state,
      train_batch,
      valid_batch,
      loss=loss,
      params_optimizer=self._optimizer,
      nodes=problem.network.plan.spec.nodes,
      primitives=problem.primitives,
      axis_name=problem.axis_name,
    )

  def logits(
    self,
    state: hypernetwork_search.State,
    weights: network_lib.Weights,
    images: jax.Array,
  ) -> jax.Array:
    """Returns those of the genotype's network with the params made for it."""
    return self._apply(state.params, weights, images, None)

  def save(
    self, state: hypernetwork_search.State, directory: str, seed: int | None
  ) -> None:
    """Writes the hypernetwork, see `hypernetwork_file`."""
    path = os.path.join(directory, hypernetwork_file.name(seed))
    hypernetwork_file.save(path, self.hypernetwork, state.params)

  def _apply(
    self,
    params: PyTree,
    weights: network_lib.Weights,
    images: jax.Array,
    axis_name: str | None,
  ) -> jax.Array:
    network = self.problem.network
    return hypernetwork_lib.logits(
      self.hypernetwork,
      params,
      weights,
      images,
      dtype=network.dtype,
      remat=network.remat,
      lowering=network.lowering,
      axis_name=axis_name,
    )


METHODS: Mapping[str, type[Method]] = types.MappingProxyType(
  {'bilevel': Bilevel, 'random': RandomSearch, 'ghn': GraphHypernetwork}
)


# What the program asks of a method before it makes one, and after.
_PARTS = ('config', 'has_alphas', 'step', 'summary', 'logits', 'save')


def named(name: str) -> type[Method]:
  """Returns a search method.

  Args:
    name: of `METHODS`, or 'my_module:MyMethod'.

  Raises:
    UsageError: there is none of that name.
  """
  return importing.find(
    name,
    METHODS,
    'config.search.method',
    lambda found: (
      isinstance(found, type) and all(hasattr(found, part) for part in _PARTS)
    ),
    'a class with all that ms_ranas_jax.search.methods.Method has',
  )
