"""Weights of DARTS' own code (quark0/darts, `NetworkCIFAR`) in our network.

A grid of one scale with one exit is that network. Names are those of its state
dict: `stem`, `cells.LAYER` with `preprocess0`, `preprocess1` and `_ops.ROW`,
one for each entry of the genotype, and `classifier`.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
import re
from typing import Any

import numpy as np

from ms_ranas_jax.baselines import torch_places
from ms_ranas_jax.baselines.torch_places import Path
from ms_ranas_jax.baselines.torch_places import Place
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops

# The second classifier is for the training alone.
UNUSED = re.compile(rf'auxiliary_head\..*|{torch_places.COUNTER.pattern}')
_POINTWISE = 'oi11->io'
_PLAIN = 'oihw->hwio'
_FACTORIZED = 'conv_7x1_1x7'


def variables(
  network: network_lib.Network,
  arrays: Mapping[str, np.ndarray],
  sizes: str = 'the sizes and the genotype',
) -> dict[str, Any]:
  """Makes the variables of a network out of a state dict of `NetworkCIFAR`.

      spec = NetworkSpec(channels=36, layers=20, nodes=4, exits='last')
      network = derived_network(spec, DARTS_V2)
      arrays = safetensors.numpy.load_file('darts.safetensors')
      model = build_model(network, variables(network, arrays), mean, std)

  Args:
    network: derived, of one scale and one exit.
    arrays: name -> array, as PyTorch has them: (output, input, height, width).
      Those that match `UNUSED` are not used.
    sizes: what decides which tensors there are, for messages.

  Returns:
    {'params': ..., 'batch_stats': ...}, float32.

  Raises:
    UsageError: the network is none that DARTS has, or the arrays are not those
      of such a network; names the first that is not.
  """
  return torch_places.assemble(network, places(network), arrays, UNUSED, sizes)


def places(network: network_lib.Network) -> dict[str, Place]:
  """Returns the place of every tensor of DARTS' network of the same sizes.

  Args:
    network: derived, of one scale and one exit.

  Raises:
    UsageError: DARTS has no such network.
  """
  plan = network.plan
  if network.search or plan.spec.scales != 1 or len(plan.exits) != 1:
    raise UsageError(
      "DARTS' network is derived, of one scale and one exit; give scales = 1 "
      f"and exits = '{grid.LAST}'."
    )
  (stem,), (exit_,) = plan.stems, plan.exits
  name = stem.output.name
  found = _convolution('stem.0', (name, 'kernel'), _PLAIN)
  found |= torch_places.norm('stem.1', (name, 'norm'), (0,))
  for cell in plan.cells:
    name, theirs = cell.output.name, f'cells.{cell.output.layer}'
    for position, source in enumerate(cell.inputs):
      reader = _reduced if source.halve else _preprocessed
      found |= reader(
        f'{theirs}.preprocess{position}',
        (f'{name}_input_{position}', 'horizontal'),
      )
    wiring = network.reduction if cell.reduction else network.normal
    for state in range(edges_lib.NUM_INPUTS + wiring.nodes):
      strided = cell.reduction and state < edges_lib.NUM_INPUTS
      found |= _state(
        f'{theirs}._ops',
        (name, f'state_{state}'),
        wiring.groups(state),
        network.operations,
        strided,
      )
  return found | torch_places.dense('classifier', (exit_.name,))


def _convolution(
  name: str, path: Path, axes: str, index: torch_places.Index = ()
) -> dict[str, Place]:
  return {f'{name}.weight': Place(('params', *path), axes, index)}


def _preprocessed(name: str, path: Path) -> dict[str, Place]:
  """ReLU, 1x1 convolution, BN."""
  return {
    **_convolution(f'{name}.op.1', (*path, 'kernel'), _PLAIN),
    **torch_places.norm(f'{name}.op.2', (*path, 'norm'), (0,)),
  }


def _reduced(name: str, path: Path) -> dict[str, Place]:
  """A factorized reduce with its norm."""
  return {
    **_halves(name, path, 0),
    **torch_places.norm(f'{name}.bn', (*path, 'norm'), (0,)),
  }


def _halves(name: str, path: Path, edge: int) -> dict[str, Place]:
  """Both 1x1 convolutions of a factorized reduce."""
  found = {}
  for half in (0, 1):
    found |= _convolution(
      f'{name}.conv_{half + 1}', (*path, 'kernel'), _POINTWISE, (half, edge)
    )
  return found


def _state(
  theirs: str,
  path: Path,
  groups: Mapping[str, list[int]],
  operations: ops.Primitives,
  strided: bool,
) -> dict[str, Place]:
  """All operations on the edges that leave one state, see `StateEdges`."""
  found = {}
  # Norms between the repeats of all separable convolutions lie in one array.
  between: collections.Counter[int] = collections.Counter()
  for name, rows in groups.items():
    operation = operations[name]
    for edge, row in enumerate(rows):
      at = f'{theirs}.{row}'
      match operation:
        case ops.Pool():
          pass
        case ops.Skip():
          if strided:
            found |= _halves(at, (*path, f'{name}_reduce'), edge)
            found |= torch_places.norm(
              f'{at}.bn', (*path, f'{name}_norm'), (edge,)
            )
        case ops.Separable():
          for repeat in range(operation.repeats):
            # ReLU, depthwise, pointwise, BN, and so on.
            first = 4 * repeat + 1
            for offset, kind, axes in (
              (0, 'depthwise', 'o1hw->hwo'),
              (1, 'pointwise', _POINTWISE),
            ):
              found |= _convolution(
                f'{at}.op.{first + offset}',
                (*path, f'{name}_{kind}_{repeat}'),
                axes,
                (edge,),
              )
            last = repeat + 1 == operation.repeats
            found |= torch_places.norm(
              f'{at}.op.{first + 2}',
              (*path, f'{name}_norm' if last else f'separable_norm_{repeat}'),
              (edge if last else between[repeat] + edge,),
            )
        case ops.Custom() if operation == ops.OPERATIONS[_FACTORIZED]:
          inner = (*path, f'{name}_{edge}')
          found |= _convolution(f'{at}.1', (*inner, 'row'), _PLAIN)
          found |= _convolution(f'{at}.2', (*inner, 'column'), _PLAIN)
          found |= torch_places.norm(f'{at}.3', (*inner, 'norm'), (0,))
        case _:
          raise UsageError(
            f"genotype: the operation '{name}' is none of DARTS' own; give the "
            'genotype that the weights are of.'
          )
    if isinstance(operation, ops.Separable):
      for repeat in range(operation.repeats - 1):
        between[repeat] += len(rows)
  return found
