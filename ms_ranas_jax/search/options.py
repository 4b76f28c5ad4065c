"""The guards of a search against its collapse to skip connections.

Each is a choice of `config.search.guards` and off by default; this module says
what they mean for a search:

- `max_skips`: a cap where genotypes are derived (`constrained`);
- `auxiliary_skip`: an operation more on every edge, which fades away
  (`auxiliary_skip`);
- `partial_channels`: some channels go past the mixtures (`space.cell`), and
  edges have logits of their own (`alphas`);
- `early_stop`: the genotype of the epoch before the validation loss became
  sharp in the alphas (`early_stop`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ms_ranas_jax.data.datasets import Dataset
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import metrics
from ms_ranas_jax.search import alphas as alphas_lib
from ms_ranas_jax.search import auxiliary_skip
from ms_ranas_jax.search import constrained
from ms_ranas_jax.search import early_stop
from ms_ranas_jax.sections import SearchConfig
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space.genotype import Genotype
from ms_ranas_jax.training import augmentation

PyTree = Any
EIGENVALUE = 'hessian_eigenvalue'


def search_network(
  search: SearchConfig,
  spec: grid.NetworkSpec,
  primitives: ops.Primitives = ops.PRIMITIVES,
  **fields,
) -> network_lib.Network:
  """Returns the network of a search with its guards.

  Args:
    search: `config.search`.
    spec: the sizes.
    primitives: name -> operation, those that can be chosen.
    **fields: further attributes of the network.

  Raises:
    UsageError: the sizes make no network, or the guards do not fit them.
  """
  guards = search.guards
  if guards.auxiliary_skip:
    primitives = auxiliary_skip.with_auxiliary_skip(primitives)
    if search.epochs < 2:
      raise UsageError(
        'search.guards.auxiliary_skip fades from the first epoch to the last, '
        f'but search.epochs = {search.epochs}; give two at least, or set it to '
        '0.'
      )
  if spec.channels % guards.partial_channels:
    raise UsageError(
      f'search.guards.partial_channels = {guards.partial_channels} does not '
      f'divide search.network.channels = {spec.channels}; change one of them.'
    )
  return network_lib.search_network(
    spec,
    primitives,
    field='search.network',
    partial_channels=guards.partial_channels,
    **fields,
  )


def max_skips(search: SearchConfig) -> int | None:
  """Returns the cap on skip connections in a cell, None where there is none.

  Args:
    search: `config.search`.
  """
  cap = search.guards.max_skips
  return None if cap < 0 else cap


def edge_normalization(search: SearchConfig) -> bool:
  """Returns whether edges have logits: they go with partial channels.

  Args:
    search: `config.search`.
  """
  return search.guards.partial_channels > 1


def factor_of(search: SearchConfig, epoch: jax.Array | int) -> jax.Array:
  """Returns the factor of the auxiliary skip in an epoch."""
  return auxiliary_skip.factor_at(
    epoch,
    search.guards.auxiliary_skip,
    search.epochs,
    search.guards.auxiliary_decay,
  )


def weights_in(
  search: SearchConfig, epoch: jax.Array | int
) -> Callable[[alphas_lib.Alphas], dict[str, jax.Array]]:
  """Returns what makes the weights that the search network takes.

  Args:
    search: `config.search`.
    epoch: from 0.
  """
  if not search.guards.auxiliary_skip:
    return edges_lib.softmax_weights
  factor = factor_of(search, epoch)
  return lambda alphas: auxiliary_skip.with_auxiliary_weights(
    edges_lib.softmax_weights(alphas), factor
  )


def one_hot_weights(
  search: SearchConfig, genotype: Genotype, primitives: ops.Primitives
) -> network_lib.Weights:
  """Returns the weights that make the search network that of a genotype.

  Args:
    search: `config.search`.
    genotype: of operations among the primitives.
    primitives: name -> operation, those that can be chosen.
  """
  weights: network_lib.Weights = alphas_lib.one_hot_weights(
    genotype, primitives
  )
  if edge_normalization(search):
    # The shares of a node's edges sum to one, and what goes past a mixture
    # counts with them: two edges have a half each, the others none.
    columns = np.arange(len(primitives)) != alphas_lib.none_column(primitives)
    weights = {kind: table * columns / 2 for kind, table in weights.items()}
  if not search.guards.auxiliary_skip:
    return weights
  return auxiliary_skip.with_auxiliary_weights(weights, 0.0)


def line_metrics(search: SearchConfig, epoch: int) -> dict[str, float]:
  """Returns what a line of metrics has of the guards.

  Args:
    search: `config.search`.
    epoch: of the line.
  """
  if not search.guards.auxiliary_skip:
    return {}
  return {'auxiliary_skip': float(factor_of(search, epoch))}


def skip_metrics(
  weights: alphas_lib.Alphas, primitives: ops.Primitives
) -> dict[str, int]:
  """Returns how many skip connections DARTS would derive, cell by cell.

  Args:
    weights: {'normal': (edges, operations), 'reduction': ...}.
    primitives: name -> operation, in the order of the columns.
  """
  genotype = alphas_lib.derive_genotype(weights, primitives)
  counts = constrained.count_skips(genotype, primitives)
  return {f'{kind}_skips': count for kind, count in counts.items()}


def read_eigenvalues(path: str, epochs: int) -> list[float]:
  """Reads the eigenvalues that an interrupted search goes on from.

  Args:
    path: the file of metrics.
    epochs: how many whole ones are done.

  Returns:
    One after each of these epochs.

  Raises:
    UsageError: they are not all there.
  """
  found = {
    record['epoch']: record[EIGENVALUE]
    for record in metrics.read_metrics(path)
    if EIGENVALUE in record
  }
  if any(epoch not in found for epoch in range(epochs)):
    raise UsageError(
      f'{path} lacks the {EIGENVALUE} of an epoch before {epochs}, which '
      'search.guards.early_stop goes on from; bring it back, or search anew in '
      'another --workdir.'
    )
  return [found[epoch] for epoch in range(epochs)]


def epoch_before_rise(
  search: SearchConfig, eigenvalues: Sequence[float]
) -> int | None:
  """Returns the epoch whose genotype counts, None while it is the last one.

  Args:
    search: `config.search`.
    eigenvalues: after each epoch so far; none without early stop.
  """
  guards = search.guards
  return early_stop.epoch_before_rise(
    eigenvalues, guards.early_stop_window, guards.early_stop_factor
  )


def eigenvalue_function(
  search: SearchConfig,
  dataset: Dataset,
  rows: np.ndarray,
  loss_in: Callable[[jax.Array], Callable[..., Any]],
) -> Callable[[PyTree, int], jax.Array]:
  """Returns what measures the eigenvalue after an epoch.

  It is that of a few batches (fewer where there are not so many), the same
  after every epoch and not augmented, so that what changes is the search and
  not the images. It runs on one device.

  Args:
    search: `config.search`.
    dataset: whose training images `rows` are of.
    rows: indices of the images that train alphas.
    loss_in: epoch -> the loss of the search, see `bilevel.Loss`, of a network
      without a device axis.

  Returns:
    (state, epoch) -> a scalar.
  """
  count = min(search.guards.early_stop_batches, len(rows) // search.batch_size)
  rows = rows[: count * search.batch_size].reshape(count, search.batch_size)
  images, labels = dataset.train_images[rows], dataset.train_labels[rows]

  @jax.jit
  def eigenvalue(params, alphas, batch_stats, images, labels, epoch):
    loss = loss_in(epoch)

    def of_batch(params, alphas, batch):
      images, labels = batch
      images = augmentation.normalize(images, dataset.mean, dataset.std)
      return loss(params, alphas, batch_stats, (images, labels))[0]

    return early_stop.hessian_eigenvalue(
      of_batch, params, alphas, batches=(images, labels)
    )

  def measure(state: PyTree, epoch: int) -> jax.Array:
    return eigenvalue(
      state.params,
      state.alphas,
      state.batch_stats,
      images,
      labels,
      np.int32(epoch),
    )

  return measure


def check(
  search: SearchConfig, primitives: ops.Primitives, has_alphas: bool = True
) -> None:
  """Refuses guards that could never act.

  Args:
    search: `config.search`.
    primitives: name -> operation, those that can be chosen.
    has_alphas: whether the method has alphas to guard.

  Raises:
    UsageError: names the field and the mend.
  """
  guards = search.guards
  if guards.early_stop and search.epochs < 2 * guards.early_stop_window:
    raise UsageError(
      'search.guards.early_stop compares two windows of '
      f'search.guards.early_stop_window = {guards.early_stop_window} epochs, '
      f'but search.epochs = {search.epochs}; search longer, or give a smaller '
      'window.'
    )
  if guards.early_stop and search.num_seeds > 1:
    raise UsageError(
      'search.guards.early_stop would stop each seed in an epoch of its own, '
      f'but search.num_seeds = {search.num_seeds} go side by side; search the '
      'seeds one by one, or switch it off.'
    )
  for name, off in (
    ('auxiliary_skip', 0),
    ('partial_channels', 1),
    ('early_stop', False),
  ):
    value = getattr(guards, name)
    if not has_alphas and value != off:
      raise UsageError(
        f'search.guards.{name} = {value!r}, but search.method = '
        f'{search.method!r} has no alphas to guard; leave it at {off!r}.'
      )
  cap = max_skips(search)
  choices = list(primitives.values())
  real = [choices[column] for column in edges_lib.real_columns(primitives)]
  if cap is not None and all(isinstance(o, ops.Skip) for o in real):
    if cap < 2 * search.network.nodes:
      raise UsageError(
        f'search.guards.max_skips = {cap}, but the primitives hold no other '
        'operation than skip connections; allow more, or add one.'
      )
