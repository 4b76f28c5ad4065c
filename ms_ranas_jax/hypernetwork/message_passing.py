r"""Messages along the graph of a network, forward and backward.

After Zhang, Ren and Urtasun, "Graph HyperNetworks for Neural Architecture
Search" (ICLR 2019, arXiv 1810.05749), eq. (12) to (15). The state of a node v
is updated from those of its neighbours,

  m_v = sum over u in IN(v) of MLP(h_u),   h_v = GRU(h_v, m_v),

in the order of computation, then in the reverse order from those that read v;
that is one round. A network is a stack of cells: the mean of the states of a
cell goes as one more message into the inputs of the cells that read it.

These are pure functions of params; `hypernetwork.Hypernetwork` owns them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np


class Mlp(NamedTuple):
  """Two dense layers with a ReLU between: (width, width) and (width,) each."""

  kernel_0: jax.Array
  bias_0: jax.Array
  kernel_1: jax.Array
  bias_1: jax.Array


class Gru(NamedTuple):
  """A gated recurrent unit; its gates lie side by side: reset, update, new.

  Attributes:
    message_kernel: (width, 3 * width).
    state_kernel: (width, 3 * width).
    bias: (3 * width,).
    state_bias: (width,), of the new gate's state.
  """

  message_kernel: jax.Array
  state_kernel: jax.Array
  bias: jax.Array
  state_bias: jax.Array


def message(mlp: Mlp, states: jax.Array) -> jax.Array:
  """Returns what nodes send, (..., width).

  Args:
    mlp: of all nodes.
    states: (..., width).
  """
  hidden = jax.nn.relu(_with_bias(states @ mlp.kernel_0, mlp.bias_0))
  return _with_bias(hidden @ mlp.kernel_1, mlp.bias_1)


def _with_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
  return x + jnp.broadcast_to(bias, x.shape)


def update(gru: Gru, states: jax.Array, messages: jax.Array) -> jax.Array:
  """Returns the states of nodes after messages (Cho et al., 2014).

      r = sigmoid(W_r m + U_r h + b_r),  z = sigmoid(W_z m + U_z h + b_z)
      n = tanh(W_n m + b_n + r * (U_n h + c_n)),  (1 - z) * n + z * h

  Args:
    gru: of all nodes.
    states: (..., width).
    messages: (..., width), sums over neighbours.
  """
  of_message = _with_bias(messages @ gru.message_kernel, gru.bias)
  of_message = jnp.split(of_message, 3, axis=-1)
  of_state = jnp.split(states @ gru.state_kernel, 3, axis=-1)
  reset, gate = (
    jax.nn.sigmoid(a + b)
    for a, b in zip(of_message[:2], of_state[:2], strict=True)
  )
  of_new = _with_bias(of_state[2], gru.state_bias)
  new = jnp.tanh(of_message[2] + reset * of_new)
  return (1 - gate) * new + gate * states


def propagate(
  mlp: Mlp,
  gru: Gru,
  states: jax.Array,
  adjacency: jax.Array,
  ranks: np.ndarray,
  outside: jax.Array,
  rounds: int,
) -> jax.Array:
  """Returns the states of the nodes of a cell after some rounds.

  Args:
    mlp: of all nodes.
    gru: of all nodes.
    states: (..., nodes, width), before.
    adjacency: (nodes, nodes), [v, u] is 1 where v reads u.
    ranks: (nodes,), see `graph.ranks`.
    outside: (..., nodes, width), messages from other cells, on the way forward.
    rounds: how many; 0 leaves the states as they are.
  """
  order = np.arange(ranks.max() + 1)
  # On the way back nothing comes from other cells.
  steps = (
    jnp.array([*order, *order[::-1]], jnp.int32),
    jnp.array([1.0] * len(order) + [0.0] * len(order), outside.dtype),
  )

  def step(states, scanned):
    rank, forward = scanned
    read = jnp.where(forward > 0, adjacency, adjacency.T)
    messages = read @ message(mlp, states) + forward * outside
    now = jnp.broadcast_to((ranks == rank)[:, None], states.shape)
    return jnp.where(now, update(gru, states, messages), states), None

  def one_round(states, _):
    return lax.scan(step, states, steps)[0], None

  return lax.scan(one_round, states, None, length=rounds)[0]
