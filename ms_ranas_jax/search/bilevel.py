r"""The bilevel step: alphas on validation data, params on training data.

  min over alphas of  L_valid(params*(alphas), alphas),
  params*(alphas) = argmin over params of L_train(params, alphas).

One step approximates params* by a lookahead, one update of the params
optimizer (order 2), or by the params themselves (order 1):

  params'(alphas) = params + update(grad_params L_train(params, alphas))
  gradient        = d/d alphas  L_valid(params'(alphas), alphas).

Everything here is pure and knows of no dataset, model or device count: a loss
function and optax optimizers come in, so that it serves other models as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import parallel
from ms_ranas_jax.training import optimizers

PyTree = Any
ORDERS = (1, 2)
EXACT, DIFFERENCE = 'exact', 'difference'
# How the second term of order 2 is computed.
MIXED_DERIVATIVES = (EXACT, DIFFERENCE)
# Length of the step that a difference takes in params, as in DARTS.
_DIFFERENCE_STEP = 0.01


# (params, alphas, batch_stats, batch) -> (loss, (batch_stats, metrics)): the
# loss is the mean over this device's part of the batch, batch_stats are the
# updated ones, metrics a dict of arrays.
Loss = Callable[
  [PyTree, PyTree, PyTree, PyTree],
  tuple[jax.Array, tuple[PyTree, Mapping[str, jax.Array]]],
]


# (alphas, multiplier) -> (value, (violation, metrics)): a term of the alphas
# loss that depends on no data. The multiplier grows with the violation, a
# scalar that is zero where a constraint holds.
Penalty = Callable[
  [PyTree, jax.Array],
  tuple[jax.Array, tuple[jax.Array, Mapping[str, jax.Array]]],
]


class SearchState(flax.struct.PyTreeNode):
  """All that a search carries from step to step.

  Attributes:
    step: int32 scalar, steps done.
    params: the network's.
    alphas: the architecture's; never part of params.
    batch_stats: running BN averages; only the params step writes them.
    params_opt_state: of the params optimizer.
    alphas_opt_state: of the alphas optimizer.
    multiplier: float32 scalar, of the penalty; see `search_step`.
    rng: the key that all of the search's randomness is folded from.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> state = mr.init_state(
    ...   {'w': jnp.ones(())}, {'a': jnp.zeros(3)}, {},
    ...   params_optimizer=optax.sgd(0.1),
    ...   alphas_optimizer=mr.adam_with_l2(0.1, weight_decay=0.0),
    ...   rng=jax.random.key(0),
    ... )
    >>> sorted(state.params), sorted(state.alphas)
    (['w'], ['a'])
  """

  step: jax.Array
  params: PyTree
  alphas: PyTree
  batch_stats: PyTree
  params_opt_state: optax.OptState
  alphas_opt_state: optax.OptState
  multiplier: jax.Array
  rng: jax.Array


def init_state(
  params: PyTree,
  alphas: PyTree,
  batch_stats: PyTree,
  params_optimizer: optax.GradientTransformation,
  alphas_optimizer: optax.GradientTransformation,
  rng: jax.Array,
) -> SearchState:
  """Returns the state before the first step.

  Args:
    params: network params.
    alphas: architecture logits.
    batch_stats: running BN averages, an empty dict where there are none.
    params_optimizer: updates params.
    alphas_optimizer: updates alphas.
    rng: a key.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> state = mr.init_state(
    ...   {'w': jnp.ones(())}, {'a': jnp.zeros(3)}, {},
    ...   params_optimizer=optax.sgd(0.1),
    ...   alphas_optimizer=mr.adam_with_l2(0.1, weight_decay=0.0),
    ...   rng=jax.random.key(0),
    ... )
    >>> int(state.step)
    0
  """
  return SearchState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    alphas=alphas,
    batch_stats=batch_stats,
    # As one program, not one for each shape of a param.
    params_opt_state=jax.jit(params_optimizer.init)(params),
    alphas_opt_state=jax.jit(alphas_optimizer.init)(alphas),
    multiplier=jnp.zeros((), jnp.float32),
    rng=rng,
  )


def alphas_gradient(
  train_loss: Callable[[PyTree, PyTree], jax.Array],
  valid_loss: Callable[[PyTree, PyTree], tuple[jax.Array, PyTree]],
  params: PyTree,
  alphas: PyTree,
  lookahead: Callable[[PyTree], PyTree] | None,
  axis_name: str | None = None,
  mixed_derivative: str = EXACT,
) -> tuple[PyTree, PyTree]:
  """The gradient of the validation loss in alphas, through the lookahead.

  With g(alphas) = grad_params L_train(params, alphas), averaged over devices,
  and v = grad L_valid at the lookahead params'(g), the chain rule gives

    d L_valid / d alphas + (d g / d alphas)^T u,   u = (d params' / d g)^T v.

  The second term is the mixed second derivative of L_train applied to u, and
  since that is symmetric it is the directional derivative of
  grad_alphas L_train along u in params: forward mode over reverse mode, which
  keeps the memory of one gradient; or, as DARTS does, the difference of two
  gradients at params +- e u with e = 0.01 / norm of u.

  Args:
    train_loss: (params, alphas) -> scalar, the mean over this device's part.
    valid_loss: (params, alphas) -> (scalar, auxiliary output).
    params: network params.
    alphas: architecture logits.
    lookahead: gradient -> params after one update with it (order 2); None
      stays at params (order 1).
    axis_name: the device axis to average over.
    mixed_derivative: 'exact', or 'difference'.

  Returns:
    The gradient, averaged over devices, and the auxiliary output.

  Raises:
    UsageError: there is no such way to differentiate.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> import jax.numpy as jnp
    >>> train = lambda params, alphas: jnp.sum((params - alphas) ** 2)
    >>> valid = lambda params, alphas: (jnp.sum(params * alphas), None)
    >>> params, alphas = jnp.ones(2), jnp.zeros(2)
    >>> gradient, _ = mr.alphas_gradient(
    ...   train, valid, params, alphas, lookahead=lambda g: params - 0.1 * g
    ... )
    >>> [round(float(x), 4) for x in gradient]
    [0.8, 0.8]
  """
  if mixed_derivative not in MIXED_DERIVATIVES:
    raise UsageError(
      f'mixed_derivative = {mixed_derivative!r}: give one of '
      f'{MIXED_DERIVATIVES}.'
    )

  def mean(tree: PyTree) -> PyTree:
    return parallel.mean_over_devices(tree, axis_name)

  if lookahead is None:
    gradient, aux = jax.grad(valid_loss, 1, has_aux=True)(params, alphas)
    return mean(gradient), aux
  # Every device takes the same lookahead, so its gradient is averaged inside;
  # leaving that out gives a second term of the local losses only.
  params_gradient = mean(jax.grad(train_loss)(params, alphas))
  ahead, transpose = jax.vjp(lookahead, params_gradient)
  (through_params, direct), aux = jax.grad(valid_loss, (0, 1), has_aux=True)(
    ahead, alphas
  )
  (direction,) = transpose(mean(through_params))
  if mixed_derivative == DIFFERENCE:
    step = _DIFFERENCE_STEP / jnp.maximum(optax.tree.norm(direction), 1e-12)
    ahead, behind = (
      jax.grad(train_loss, 1)(
        jax.tree.map(lambda p, d, s=sign: p + s * step * d, params, direction),
        alphas,
      )
      for sign in (1, -1)
    )
    mixed = jax.tree.map(lambda a, b: (a - b) / (2 * step), ahead, behind)
    return mean(jax.tree.map(jnp.add, direct, mixed)), aux
  # The gradient in params is not used, and compiled away; it is asked for
  # since rules with a hand-written reverse mode admit no other forward mode.
  _, (_, mixed) = jax.jvp(
    lambda p: jax.grad(train_loss, (0, 1))(p, alphas), (params,), (direction,)
  )
  return mean(jax.tree.map(jnp.add, direct, mixed)), aux


def search_step(
  state: SearchState,
  train_batch: PyTree,
  valid_batch: PyTree,
  *,
  loss: Loss,
  params_optimizer: optax.GradientTransformation,
  alphas_optimizer: optax.GradientTransformation,
  lookahead_optimizer: optax.GradientTransformation | None = None,
  order: int = 1,
  penalty: Penalty | None = None,
  mixed_derivative: str = EXACT,
  axis_name: str | None = None,
) -> tuple[SearchState, dict[str, jax.Array]]:
  """One alphas update on the validation batch, then one params update.

  Args:
    state: before the step.
    train_batch: what `loss` takes, of the half that trains params.
    valid_batch: the same of the half that trains alphas.
    loss: see `Loss`.
    params_optimizer: updates params.
    alphas_optimizer: updates alphas.
    lookahead_optimizer: takes the lookahead of order 2 with the state of
      params_optimizer; by default that itself. DARTS leaves the clip out.
    order: 1 or 2.
    penalty: a term that is added to the alphas loss; its multiplier is updated
      by dual ascent, `multiplier + violation`.
    mixed_derivative: of order 2, see `alphas_gradient`.
    axis_name: the device axis to average gradients and metrics over.

  Returns:
    The state after the step, and the metrics: the loss, the metrics that come
    with it and the norm of the gradient, in params as `train_*` and in alphas
    as `valid_*`; and those of the penalty.

  Raises:
    UsageError: there is no such order.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> import optax
    >>> import jax.numpy as jnp
    >>> def loss(params, alphas, batch_stats, batch):
    ...   mixed = jax.nn.softmax(alphas['a']) @ jnp.array([0.0, 1.0, 2.0])
    ...   value = jnp.mean((params['w'] * mixed - batch) ** 2)
    ...   return value, (batch_stats, {})
    ...
    >>> optimizers = {
    ...   'params_optimizer': optax.sgd(0.1),
    ...   'alphas_optimizer': mr.adam_with_l2(0.1, weight_decay=0.0),
    ... }
    >>> state = mr.init_state(
    ...   {'w': jnp.ones(())}, {'a': jnp.zeros(3)}, {}, **optimizers,
    ...   rng=jax.random.key(0),
    ... )
    >>> batch = jnp.full(4, 2.0)
    >>> state, metrics = mr.search_step(
    ...   state, batch, batch, loss=loss, **optimizers
    ... )
    >>> int(state.step), bool(state.alphas['a'][2] > state.alphas['a'][0])
    (1, True)
  """
  if order not in ORDERS:
    raise UsageError(f'order = {order}: give one of {ORDERS}.')
  optimizer = lookahead_optimizer or params_optimizer

  def train_loss(params: PyTree, alphas: PyTree) -> jax.Array:
    return loss(params, alphas, state.batch_stats, train_batch)[0]

  def valid_loss(params: PyTree, alphas: PyTree):
    value, (_, metrics) = loss(params, alphas, state.batch_stats, valid_batch)
    return value, {'loss': value, **metrics}

  def lookahead(gradient: PyTree) -> PyTree:
    updates, _ = optimizer.update(
      gradient, state.params_opt_state, state.params
    )
    return optax.apply_updates(state.params, updates)

  gradient, valid_metrics = alphas_gradient(
    train_loss,
    valid_loss,
    state.params,
    state.alphas,
    lookahead if order == 2 else None,
    axis_name,
    mixed_derivative,
  )
  multiplier, penalty_metrics = state.multiplier, {}
  if penalty is not None:
    # Of no data, so it is the same on all devices.
    of_penalty, (violation, penalty_metrics) = jax.grad(penalty, has_aux=True)(
      state.alphas, state.multiplier
    )
    gradient = jax.tree.map(jnp.add, gradient, of_penalty)
    multiplier = multiplier + violation
  valid_metrics['gradient_norm'] = optax.tree.norm(gradient)
  updates, alphas_opt_state = alphas_optimizer.update(
    gradient, state.alphas_opt_state, state.alphas
  )
  alphas = optax.apply_updates(state.alphas, updates)

  state, train_metrics = params_step(
    state,
    alphas,
    train_batch,
    loss=loss,
    optimizer=params_optimizer,
    axis_name=axis_name,
  )
  metrics = train_metrics | {f'valid_{k}': v for k, v in valid_metrics.items()}
  metrics |= penalty_metrics
  return (
    state.replace(
      step=state.step + 1,
      alphas=alphas,
      alphas_opt_state=alphas_opt_state,
      multiplier=multiplier,
    ),
    parallel.mean_over_devices(metrics, axis_name),
  )


def params_step(
  state: SearchState,
  alphas: PyTree,
  batch: PyTree,
  *,
  loss: Loss,
  optimizer: optax.GradientTransformation,
  axis_name: str | None = None,
) -> tuple[SearchState, dict[str, jax.Array]]:
  """One params update on the training batch.

  Args:
    state: before the step; its own alphas are not read.
    alphas: what the loss takes for them.
    batch: what `loss` takes, of the half that trains params.
    loss: see `Loss`.
    optimizer: updates params.
    axis_name: the device axis to average the gradient over.

  Returns:
    The state with other params, batch_stats and optimizer state, and the
    metrics as `train_*`, of this device.
  """
  (value, (batch_stats, metrics)), gradient = jax.value_and_grad(
    loss, has_aux=True
  )(state.params, alphas, state.batch_stats, batch)
  gradient = parallel.mean_over_devices(gradient, axis_name)
  updates, opt_state = optimizer.update(
    gradient, state.params_opt_state, state.params
  )
  metrics = {
    **metrics,
    'loss': value,
    'gradient_norm': optimizers.global_norm(gradient),
  }
  return (
    state.replace(
      params=optax.apply_updates(state.params, updates),
      batch_stats=parallel.mean_over_devices(batch_stats, axis_name),
      params_opt_state=opt_state,
    ),
    {f'train_{k}': v for k, v in metrics.items()},
  )


def shared_params_step(
  state: Any,
  weights: PyTree,
  train_batch: PyTree,
  valid_batch: PyTree,
  *,
  loss: Loss,
  optimizer: optax.GradientTransformation,
  axis_name: str | None = None,
) -> tuple[Any, dict[str, jax.Array]]:
  """One params update of a search without alphas; looks at both halves.

  Args:
    state: before the step; has `step`, `params`, `batch_stats` and
      `params_opt_state`.
    weights: what the loss takes in the place of alphas.
    train_batch: what `loss` takes, of the half that trains params.
    valid_batch: the same of the other half; it is only looked at, before.
    loss: see `Loss`.
    optimizer: updates params.
    axis_name: the device axis to average gradients and metrics over.

  Returns:
    The state after the step, and the metrics: the loss and what comes with it
    as `train_*`, with the norm of the gradient, and as `valid_*`.
  """
  value, (_, found) = loss(
    state.params, weights, state.batch_stats, valid_batch
  )
  metrics = {f'valid_{k}': v for k, v in {'loss': value, **found}.items()}
  state, train_metrics = params_step(
    state,
    weights,
    train_batch,
    loss=loss,
    optimizer=optimizer,
    axis_name=axis_name,
  )
  metrics |= train_metrics
  return state.replace(step=state.step + 1), parallel.mean_over_devices(
    metrics, axis_name
  )
