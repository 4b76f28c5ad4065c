"""Genotypes: discrete cell architectures, and their JSON form.

A genotype says, for the normal and the reduction cell, which two operations
feed each node and which states are concatenated into the cell's output.
States 0 and 1 are the two inputs of the cell; node i is state 2 + i.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
import dataclasses
import json
import types
from typing import Any

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import edges as edges_lib

Edge = tuple[str, int]
_FIELDS = ('normal', 'normal_concat', 'reduction', 'reduction_concat')
# What DARTS calls the fields, in its order -> what they are called here.
DARTS_FIELDS: Mapping[str, str] = types.MappingProxyType(
  {name.replace('reduction', 'reduce'): name for name in _FIELDS}
)


def _is_int(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _checked_edges(kind: str, edges: Any) -> tuple[Edge, ...]:
  """Returns edges as nested tuples, or raises UsageError saying what is off."""
  if not isinstance(edges, (list, tuple)) or not edges:
    raise UsageError(
      f'genotype field "{kind}" must be a non-empty list of [operation, state]'
      f' pairs, not {edges!r}.'
    )
  if len(edges) % edges_lib.EDGES_PER_NODE:
    raise UsageError(
      f'genotype field "{kind}" has {len(edges)} entries; give two '
      '[operation, state] entries per node.'
    )
  checked = []
  for index, edge in enumerate(edges):
    where = f'genotype field "{kind}", entry {index}'
    if not isinstance(edge, (list, tuple)) or len(edge) != 2:
      raise UsageError(
        f'{where}: expected an [operation, state] pair, not {edge!r}.'
      )
    operation, state = edge
    if not isinstance(operation, str) or not operation:
      raise UsageError(
        f'{where}: the operation must be a name, not {operation!r}.'
      )
    node = index // edges_lib.EDGES_PER_NODE
    own = edges_lib.NUM_INPUTS + node
    if not _is_int(state) or not 0 <= state < own:
      raise UsageError(
        f'{where}: node {node} (state {own}) can read states 0 '
        f'to {own - 1} only, not {state!r}.'
      )
    checked.append((operation, state))
  return tuple(checked)


def _checked_concat(kind: str, concat: Any, nodes: int) -> tuple[int, ...]:
  last = edges_lib.NUM_INPUTS + nodes - 1
  if not isinstance(concat, (list, tuple)) or not concat:
    raise UsageError(
      f'genotype field "{kind}" must be a non-empty list of states, not '
      f'{concat!r}.'
    )
  for state in concat:
    if not _is_int(state) or not edges_lib.NUM_INPUTS <= state <= last:
      raise UsageError(
        f'genotype field "{kind}": {state!r} is not a node; name states '
        f'{edges_lib.NUM_INPUTS} to {last}.'
      )
  if len(set(concat)) != len(concat):
    raise UsageError(f'genotype field "{kind}" names a state twice: {concat}.')
  return tuple(concat)


@dataclasses.dataclass(frozen=True)
class Genotype:
  """A discrete architecture of the normal and of the reduction cell.

  Attributes:
    normal: two `(operation, state)` pairs per node of the normal cell.
    normal_concat: the states whose concatenation is the cell's output.
    reduction: the same for the reduction cell.
    reduction_concat: the same for the reduction cell.

  Raises:
    UsageError: a field is not of that form; the message says which and where.

  Example:
    >>> import ms_ranas_jax as mr
    >>> cell = (('skip_connect', 0), ('sep_conv_3x3', 1))
    >>> genotype = mr.Genotype(cell, (2,), cell, (2,))
    >>> genotype.nodes
    1
  """

  normal: tuple[Edge, ...]
  normal_concat: tuple[int, ...]
  reduction: tuple[Edge, ...]
  reduction_concat: tuple[int, ...]

  def __post_init__(self) -> None:
    for kind in edges_lib.KINDS:
      edges = _checked_edges(kind, getattr(self, kind))
      concat = _checked_concat(
        f'{kind}_concat',
        getattr(self, f'{kind}_concat'),
        len(edges) // edges_lib.EDGES_PER_NODE,
      )
      object.__setattr__(self, kind, edges)
      object.__setattr__(self, f'{kind}_concat', concat)
    if len(self.normal) != len(self.reduction):
      raise UsageError(
        f'genotype: the normal cell has {len(self.normal) // 2} nodes and the '
        f'reduction cell {len(self.reduction) // 2}; give both as many.'
      )

  @property
  def nodes(self) -> int:
    """The number of nodes of a cell."""
    return len(self.normal) // edges_lib.EDGES_PER_NODE

  def edges(self, reduction: bool) -> tuple[Edge, ...]:
    """Returns the edges of the reduction or of the normal cell."""
    return self.reduction if reduction else self.normal

  def concat(self, reduction: bool) -> tuple[int, ...]:
    """Returns the output states of the reduction or of the normal cell."""
    return self.reduction_concat if reduction else self.normal_concat

  def operations(self) -> tuple[str, ...]:
    """Returns the names of the operations in use, each once, sorted."""
    return tuple(sorted({name for name, _ in self.normal + self.reduction}))

  def to_json(self) -> str:
    """Returns the JSON form, one line per field."""
    lines = [
      f'  {json.dumps(name)}: {json.dumps(getattr(self, name))}'
      for name in _FIELDS
    ]
    return '{\n' + ',\n'.join(lines) + '\n}\n'

  def to_darts(self) -> str:
    """Returns the text that DARTS prints, as its `genotypes.py` takes it.

    `baselines.darts_text` reads it. DARTS knows its own operations only, those
    of `OPERATIONS` among them.

    Examples:
      >>> edges = (('sep_conv_3x3', 0), ('skip_connect', 1))
      >>> Genotype(edges, (2,), edges, (2,)).to_darts()[:39]
      "Genotype(normal=[('sep_conv_3x3', 0), ("
    """
    fields = ', '.join(
      f'{name}={list(getattr(self, field))}'
      for name, field in DARTS_FIELDS.items()
    )
    return f'Genotype({fields})'

  @classmethod
  def from_json(cls, text: str | bytes) -> Genotype:
    """Parses the JSON form.

    Args:
      text: a JSON object with exactly the four fields; bytes in any encoding
        that JSON has. A byte order mark is allowed.

    Returns:
      The genotype.

    Raises:
      UsageError: the text is not that; the message says what and where.
    """
    if isinstance(text, str):
      text = text.removeprefix('\ufeff')
    try:
      value = json.loads(text)
    except UnicodeDecodeError as error:
      raise UsageError('genotype is not a text file.') from error
    except ValueError as error:
      raise UsageError(f'genotype is not valid JSON: {error}.') from error
    except RecursionError as error:
      raise UsageError('genotype is nested too deeply.') from error
    if not isinstance(value, dict):
      raise UsageError(
        f'genotype must be a JSON object with the fields {list(_FIELDS)}.'
      )
    missing = [name for name in _FIELDS if name not in value]
    if missing:
      raise UsageError(f'genotype lacks the fields {missing}; add them.')
    unknown = sorted(set(value) - set(_FIELDS))
    if unknown:
      raise UsageError(f'genotype has unknown fields {unknown}; remove them.')
    return cls(**value)


def check_operations(genotype: Genotype, known: Container[str]) -> None:
  """Refuses a genotype that uses an operation that is not at hand.

  Args:
    genotype: the genotype.
    known: the names of the operations that a derived cell can hold.

  Raises:
    UsageError: an operation is not among them.
  """
  for name in genotype.operations():
    if name not in known:
      raise UsageError(
        f'genotype uses the operation "{name}", which a derived cell cannot '
        'hold; correct the name or pass the operation in with the primitives.'
      )
