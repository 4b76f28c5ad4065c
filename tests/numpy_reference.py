"""Plain numpy forms of what a cell computes, and random variables.

The reference follows the definitions of the reference code (PyTorch) pixel by
pixel and edge by edge, in float64, and shares nothing with the package but the
layout of its params.
"""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

EPSILON = 1e-5
SEPARABLE = {  # name -> kernel, dilation, repeats
  'sep_conv_3x3': (3, 1, 2),
  'sep_conv_5x5': (5, 1, 2),
  'sep_conv_7x7': (7, 1, 2),
  'dil_conv_3x3': (3, 2, 1),
  'dil_conv_5x5': (5, 2, 1),
}


def relu(x):
  return np.maximum(x, 0)


def _patches(x, kernel, strides, padding, dilation):
  """Yields (row, column, the pixels under the kernel) of every output pixel."""
  (rows, columns), (down, right) = kernel, strides
  height, width = x.shape[1:3]
  x = np.pad(x, [(0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)])
  span = dilation * (rows - 1) + 1, dilation * (columns - 1) + 1
  for i in range((height + 2 * padding[0] - span[0]) // down + 1):
    for j in range((width + 2 * padding[1] - span[1]) // right + 1):
      yield (
        i,
        j,
        x[
          :,
          i * down : i * down + span[0] : dilation,
          j * right : j * right + span[1] : dilation,
        ],
      )


def _assemble(pixels):
  """{(row, column): (batch, channels)} -> (batch, height, width, channels)."""
  height, width = (max(axis) + 1 for axis in zip(*pixels))
  rows = [
    np.stack([pixels[i, j] for j in range(width)], 1) for i in range(height)
  ]
  return np.stack(rows, 1)


def convolution(x, kernel, strides=(1, 1)):
  """Dense, kernel (rows, columns, channels, features), padding rows // 2."""
  size = kernel.shape[:2]
  padding = size[0] // 2, size[1] // 2
  return _assemble(
    {
      (i, j): np.einsum('bhwc,hwcf->bf', patch, kernel)
      for i, j, patch in _patches(x, size, strides, padding, 1)
    }
  )


def depthwise(x, kernel, stride=1, dilation=1):
  """Kernel (k, k, channels), padding dilation * (k - 1) / 2."""
  size = kernel.shape[:2]
  padding = (dilation * (size[0] - 1) // 2,) * 2
  return _assemble(
    {
      (i, j): np.einsum('bhwc,hwc->bc', patch, kernel)
      for i, j, patch in _patches(x, size, (stride,) * 2, padding, dilation)
    }
  )


def pool(x, kind, stride):
  """3x3, padding 1: a max, or an average over the pixels of the image."""
  reduce = {'max': np.max, 'average': np.mean}[kind]
  height, width = x.shape[1:3]
  return _assemble(
    {
      (i // stride, j // stride): reduce(
        x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2], axis=(1, 2)
      )
      for i in range(0, height, stride)
      for j in range(0, width, stride)
    }
  )


def factorized_reduce(x, kernels):
  """Without the BN; kernels (2, channels, features / 2)."""
  x = relu(x)
  even = x[:, ::2, ::2] @ kernels[0]
  odd = x[:, 1::2, 1::2] @ kernels[1]
  height, width = even.shape[1:3]
  # An odd size has fewer odd rows and columns; the missing ones are zero.
  odd = np.pad(
    odd,
    [(0, 0), (0, height - odd.shape[1]), (0, width - odd.shape[2]), (0, 0)],
  )
  return np.concatenate([even, odd], axis=-1)


def batch_norm(x, scale=1.0, bias=0.0, mean=None, variance=None):
  """With the statistics of the batch unless they are given."""
  if mean is None:
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
  return (x - mean) / np.sqrt(variance + EPSILON) * scale + bias


def _of_edge(array, edge):
  """Picks the edge's row; one row is shared by all edges."""
  return array[edge if array.shape[0] > 1 else 0]


def norm(x, variables, path, row=0, train=True):
  """The BN whose variables lie in a row of those under `path`."""
  found = {}
  for collection in ('params', 'batch_stats'):
    tree = variables.get(collection, {})
    for key in path:
      tree = tree.get(key, {})
    found |= tree
  fields = {}
  if 'scale' in found:
    fields['scale'] = _of_edge(found['scale'], row)
    fields['bias'] = _of_edge(found['bias'], row)
  if not train:
    fields['mean'] = _of_edge(found['mean'], row)
    fields['variance'] = _of_edge(found['var'], row)
  return batch_norm(x, **fields)


def norm_rows(groups, stride):
  """Where the BNs of the edges that leave a state lie.

  Args:
    groups: (operation name, number of edges) in their order.
    stride: 1 or 2.

  Returns:
    Two dicts from names to the first row of their edges: in the norm of a mixed
    cell, and in the norms between the repeats of separable convolutions.
  """
  last, between = {}, {}
  in_last = in_between = 0
  for name, edges in groups:
    if 'pool' in name:
      last[name] = in_last
      in_last += 1  # all edges share it
    elif name in SEPARABLE or (name == 'skip_connect' and stride == 2):
      last[name] = in_last
      in_last += edges
    if name in SEPARABLE and SEPARABLE[name][2] > 1:
      between[name] = in_between
      in_between += edges
  return last, between


def operation(
  name, x, variables, path, edge, stride, groups, *, train, search, mixed
):
  """One operation on one edge.

  Args:
    name: of the operation.
    x: (batch, height, width, channels).
    variables: of a network or cell.
    path: where the variables of the state's edges lie in them.
    edge: which of the edges that carry the operation.
    stride: 1 or 2.
    groups: of the state, see `norm_rows`.
    train: whether BNs use the statistics of the batch.
    search: whether a BN follows a pool.
    mixed: whether one norm holds the last BNs of all operations.
  """
  last, between = norm_rows(groups, stride)
  params = variables.get('params', {})
  for key in path:
    params = params.get(key, {})

  def last_norm(z):
    if not mixed:
      return norm(z, variables, (*path, f'{name}_norm'), edge, train)
    row = last[name] + (0 if 'pool' in name else edge)
    return norm(z, variables, (*path, 'norm'), row, train)

  if name == 'none':
    return np.zeros(1)
  if name == 'skip_connect':
    if stride == 1:
      return x
    kernels = params[f'{name}_reduce']['kernel'][:, edge]
    return last_norm(factorized_reduce(x, kernels))
  if name in ('max_pool_3x3', 'avg_pool_3x3'):
    kind = {'max_pool_3x3': 'max', 'avg_pool_3x3': 'average'}[name]
    z = pool(x, kind, stride)
    return last_norm(z) if search else z
  if name == 'conv_7x1_1x7':
    own = params[f'{name}_{edge}']
    z = convolution(relu(x), own['row'], (1, stride))
    z = convolution(z, own['column'], (stride, 1))
    return norm(z, variables, (*path, f'{name}_{edge}', 'norm'), train=train)
  _, dilation, repeats = SEPARABLE[name]
  for repeat in range(repeats):
    kernel = params[f'{name}_depthwise_{repeat}'][edge]
    x = depthwise(relu(x), kernel, 1 if repeat else stride, dilation)
    x = x @ params[f'{name}_pointwise_{repeat}'][edge]
    if repeat < repeats - 1:
      row = between[name] + edge
      x = norm(x, variables, (*path, f'separable_norm_{repeat}'), row, train)
  return last_norm(x)


def cell(
  variables, edges, concat, inputs, reduction, *, train, search, weights=None
):
  """A cell, edge by edge.

  Args:
    variables: of the cell.
    edges: (state, node, operation names) each.
    concat: states that make the output.
    inputs: states 0 and 1.
    reduction: whether edges from the inputs have stride 2.
    train: whether BNs use the statistics of the batch.
    search: whether a BN follows a pool.
    weights: (edges, operations) of a mixed cell.
  """
  states = list(inputs)
  num_nodes = max(node for _, node, _ in edges) + 1
  for node in range(num_nodes):
    total = 0
    for row, (state, target, names) in enumerate(edges):
      if target != node:
        continue
      for column, name in enumerate(names):
        # Variables of the edges that leave a state are stacked in row order.
        leaving = [(r, n) for r, (s, _, n) in enumerate(edges) if s == state]
        counts = collections.Counter(n for _, names in leaving for n in names)
        same = [r for r, names in leaving if name in names]
        mixed = weights is not None
        value = operation(
          name,
          states[state],
          variables,
          (f'state_{state}',),
          same.index(row),
          2 if reduction and state < 2 else 1,
          tuple(counts.items()),
          train=train,
          search=search,
          mixed=mixed,
        )
        total = total + value * (weights[row, column] if mixed else 1)
    states.append(total)
  return np.concatenate([states[s] for s in concat], axis=-1)


@pytest.fixture(scope='session')
def reference():
  """The plain forms, as a namespace."""
  return types.SimpleNamespace(
    relu=relu,
    convolution=convolution,
    depthwise=depthwise,
    pool=pool,
    factorized_reduce=factorized_reduce,
    batch_norm=batch_norm,
    norm=norm,
    norm_rows=norm_rows,
    operation=operation,
    cell=cell,
  )


@pytest.fixture(scope='session')
def params_of():
  """(network) -> the shapes of its params, from an abstract init."""

  def shapes(network):
    weights = None
    if network.search:
      sizes = len(network.normal.edges), len(network.normal.edges[0].operations)
      weights = dict.fromkeys(('normal', 'reduction'), jnp.zeros(sizes))
    images = jnp.zeros((1, *network.plan.spec.image_shape))
    return jax.eval_shape(
      lambda x, w: network.init(jax.random.key(0), x, w, train=False),
      images,
      weights,
    )['params']

  return shapes


@pytest.fixture(scope='session')
def mixing():
  """(edges, operations, seed) -> random rows that sum to one, float32."""

  def weights(edges, operations, seed=0):
    rows = np.random.default_rng(seed).uniform(0.2, 1, (edges, operations))
    return (rows / rows.sum(1, keepdims=True)).astype(np.float32)

  return weights
