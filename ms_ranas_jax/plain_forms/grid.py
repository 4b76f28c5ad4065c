"""A derived network on a grid of cells as plain layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ms_ranas_jax import plain_form
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import cell as cell_lib
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space import protocol

Variables = Mapping[str, Any]
Module = plain_form.ModuleVariables


def build(
  network: network_lib.Network, variables: Variables
) -> plain_form.PlainForm:
  """Returns a trained network as plain layers.

  Args:
    network: a derived one.
    variables: its 'params' and 'batch_stats'.

  Raises:
    UsageError: it is a search network, or one of its operations has no plain
      form.
  """
  if network.search:
    raise UsageError(
      'a search network has no plain form: derive a genotype from its alphas, '
      'and train the network of that.'
    )
  plan = network.plan
  builder = plain_form.Builder()
  steps = []
  for exit_ in plan.exits:
    step = exit_.index
    for stem in (s for s in plan.stems if s.step == step):
      _stem(
        builder,
        plan,
        stem,
        plain_form.module_variables(variables, stem.output.name),
      )
    for cell in (c for c in plan.cells if c.step == step):
      _cell(builder, network, cell, variables)
    own = builder.classifier(
      exit_.feature.name, variables['params'][exit_.name], exit_.name
    )
    carried = grid.carried_features(plan, step)
    steps.append(protocol.end_plain_step(builder, plan, step, own, carried))
  return plain_form.PlainForm(
    tuple(steps), plan.spec.image_shape, plan.spec.num_classes
  )


def _stem(
  builder: plain_form.Builder,
  plan: grid.Plan,
  stem: grid.Stem,
  module: Module,
) -> None:
  source = protocol.IMAGES if stem.source is None else stem.source.name
  if stem.is_link and plan.spec.links == grid.SEPARABLE:
    _separable_norm(builder, source, module, stem.output.name)
    return
  builder.convolution(
    builder.relu(source) if stem.rectify else source,
    module.params['kernel'],
    module.norm_of_one(),
    stem.output.name,
    stride=(stem.stride, stem.stride),
  )


def _conv_norm(
  builder: plain_form.Builder,
  x: str,
  module: Module,
  stride: int = 1,
) -> str:
  return builder.convolution(
    builder.relu(x),
    module.params['kernel'],
    module.norm_of_one(),
    stride=(stride, stride),
  )


def _separable_norm(
  builder: plain_form.Builder, x: str, module: Module, output: str | None = None
) -> str:
  """Adds a `layers.SeparableNorm` of stride 2."""
  taps = np.asarray(module.params['depthwise'])[0][:, :, None]
  return builder.convolution(
    builder.convolution(
      builder.relu(x), taps, stride=(2, 2), groups=taps.shape[-1]
    ),
    np.asarray(module.params['pointwise'])[None, None],
    module.norm_of_one(),
    output,
  )


def _factorized_reduce(
  builder: plain_form.Builder,
  x: str,
  kernels: np.ndarray,
  norm: tuple[np.ndarray, np.ndarray],
) -> str:
  """Adds two 1x1 convolutions of stride 2 side by side.

  Args:
    builder: takes them.
    x: what they read.
    kernels: (2, channels, features / 2).
    norm: (factor, shift), (features,) each.
  """
  x = builder.relu(x)
  half = kernels.shape[-1]
  factor, shift = norm
  parts = []
  for source, kernel, start in zip(
    (x, builder.shift(x)), kernels, (0, half), strict=True
  ):
    rows = slice(start, start + half)
    parts.append(
      builder.convolution(
        source,
        kernel[None, None],
        (factor[rows], shift[rows]),
        stride=(2, 2),
      )
    )
  return builder.join(plain_form.Concatenate(), parts, None)


def _cell_input(
  builder: plain_form.Builder,
  source: grid.CellInput,
  module: Module,
  links: str,
) -> str:
  def along(x: str, part: Module) -> str:
    if not source.halve:
      return _conv_norm(builder, x, part)
    return _reduce(x, part)

  def _reduce(x: str, part: Module) -> str:
    kernels = np.asarray(part.params['kernel'])[:, 0]
    return _factorized_reduce(builder, x, kernels, part.norm_of_one())

  level = along(source.horizontal.name, module['horizontal'])
  if source.diagonal is None:
    return level
  name, part = source.diagonal.name, module['diagonal']
  if links == grid.SEPARABLE:
    down = _separable_norm(builder, name, part)
  else:
    down = _conv_norm(builder, name, part, 2)
  if source.halve:
    down = _reduce(down, module['diagonal_reduce'])
  return builder.join(plain_form.Concatenate(), [down, level], None)


def _cell(
  builder: plain_form.Builder,
  network: network_lib.Network,
  plan: grid.Cell,
  variables: Variables,
) -> None:
  name = plan.output.name
  states = [
    _cell_input(
      builder,
      source,
      plain_form.module_variables(variables, f'{name}_input_{position}'),
      network.plan.spec.links,
    )
    for position, source in enumerate(plan.inputs)
  ]
  wiring = network.reduction if plan.reduction else network.normal
  module = plain_form.module_variables(variables, name)
  incoming: list[list[str]] = [[] for _ in range(wiring.nodes)]
  for state in range(edges_lib.NUM_INPUTS + wiring.nodes):
    if state >= edges_lib.NUM_INPUTS:
      terms = incoming[state - edges_lib.NUM_INPUTS]
      states.append(builder.join(plain_form.Sum(), terms, None))
    rows = [e for e in wiring.edges if e.state == state]
    groups: dict[str, list[cell_lib.Edge]] = {}
    for edge in rows:
      groups.setdefault(edge.operations[0], []).append(edge)
    stride = 2 if plan.reduction and state < edges_lib.NUM_INPUTS else 1
    outputs = _state_edges(
      builder,
      states[state],
      {n: (network.operations[n], len(g)) for n, g in groups.items()},
      stride,
      module[f'state_{state}'],
    )
    for group, of_group in zip(groups.values(), outputs, strict=True):
      for edge, output in zip(group, of_group, strict=True):
        incoming[edge.node].append(output)
  parts = [states[state] for state in wiring.concat]
  builder.join(plain_form.Concatenate(), parts, name)


def _state_edges(
  builder: plain_form.Builder,
  x: str,
  groups: Mapping[str, tuple[ops.Operation, int]],
  stride: int,
  module: Module,
) -> list[list[str]]:
  """Adds all edges that leave a state, see `cell.StateEdges`.

  Returns:
    Per group the outputs of its edges.
  """
  separable = _separable(builder, x, groups, stride, module)
  outputs = []
  for name, (operation, edges) in groups.items():
    match operation:
      case ops.Separable():
        outputs.append(separable[name])
      case ops.Pool():
        pool = plain_form.Pool(operation.kind, stride)
        outputs.append([builder.add(pool, [x])] * edges)
      case ops.Skip() if stride == 1:
        outputs.append([x] * edges)
      case ops.Skip():
        kernels = np.asarray(module[f'{name}_reduce'].params['kernel'])
        factor, shift = module.norm(f'{name}_norm')
        outputs.append(
          [
            _factorized_reduce(
              builder, x, kernels[:, edge], (factor[edge], shift[edge])
            )
            for edge in range(edges)
          ]
        )
      case ops.Custom(plain=translate) if translate is not None:
        outputs.append(
          [
            translate(builder, x, stride, module[f'{name}_{edge}'])
            for edge in range(edges)
          ]
        )
      case _:
        raise UsageError(
          f'the operation "{name}" has no plain form, so its network is not '
          'exported; give it one (Custom.plain), or search without it.'
        )
  return outputs


def _separable(
  builder: plain_form.Builder,
  x: str,
  groups: Mapping[str, tuple[ops.Operation, int]],
  stride: int,
  module: Module,
) -> dict[str, list[str]]:
  """Adds the separable convolutions; returns name -> its edges' outputs."""
  found = {
    name: (operation, edges)
    for name, (operation, edges) in groups.items()
    if isinstance(operation, ops.Separable)
  }
  outputs = {name: [x] * edges for name, (_, edges) in found.items()}
  for repeat in range(max((o.repeats for o, _ in found.values()), default=0)):
    now = {n: entry for n, entry in found.items() if entry[0].repeats > repeat}
    norms = _norms_after(module, now, repeat)
    for name, (operation, edges) in now.items():
      depthwise = np.asarray(module.params[f'{name}_depthwise_{repeat}'])
      pointwise = np.asarray(module.params[f'{name}_pointwise_{repeat}'])
      step = stride if repeat == 0 else 1
      outputs[name] = [
        builder.convolution(
          builder.convolution(
            builder.relu(outputs[name][edge]),
            depthwise[edge][:, :, None],
            stride=(step, step),
            dilation=operation.dilation,
            groups=depthwise.shape[-1],
          ),
          pointwise[edge][None, None],
          norms[name, edge],
        )
        for edge in range(edges)
      ]
  return outputs


def _norms_after(
  module: Module,
  groups: Mapping[str, tuple[ops.Separable, int]],
  repeat: int,
) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
  """Returns the BN after a repeat, by (name, edge).

  Operations that end with this repeat have their own; the others share one
  module, whose rows are theirs in turn.
  """
  norms: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
  shared: Sequence[tuple[str, int]] = [
    (name, edge)
    for name, (operation, edges) in groups.items()
    if operation.repeats > repeat + 1
    for edge in range(edges)
  ]
  if shared:
    rows = module.norm(f'separable_norm_{repeat}')
    for row, key in enumerate(shared):
      norms[key] = (rows[0][row], rows[1][row])
  for name, (operation, edges) in groups.items():
    if operation.repeats == repeat + 1:
      rows = module.norm(f'{name}_norm')
      for edge in range(edges):
        norms[name, edge] = (rows[0][edge], rows[1][edge])
  return norms
