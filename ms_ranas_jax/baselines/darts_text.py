r"""Genotypes as DARTS, PC-DARTS and pt.darts print them.

    genotype = Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0), ...],
      normal_concat=range(2, 6), reduce=[...], reduce_concat=range(2, 6))

This is a Python namedtuple as its `repr` and as `genotypes.py` have it
(https://github.com/quark0/darts/blob/master/cnn/genotypes.py). pt.darts
(https://github.com/khanrc/pt.darts) has a list for each node:

    normal=[[('sep_conv_3x3', 0), ('skip_connect', 1)], [...], ...]

The text is parsed to a syntax tree and read from there. Nothing in it runs.
"""

from __future__ import annotations

import ast
import itertools
import re
from typing import Any
import warnings

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space.genotype import DARTS_FIELDS
from ms_ranas_jax.space.genotype import Genotype

_CALL = re.compile(r'\bGenotype\s*\(')
# What a name or a log puts before it: `03/24 05:01:12 PM genotype = `.
_ASSIGNED = re.compile(r'[^()\'"#;=]*=\s*')
# No state has a number like this; it could not even be shown in a message.
_MOST_BITS = 32


def is_text(text: str) -> bool:
  """Returns whether this is such a text, right or wrong, and no JSON.

  Args:
    text: the content of a genotype file.
  """
  return bool(_CALL.search(text)) and not text.lstrip().startswith('{')


def parse(text: str) -> Genotype:
  """Returns the genotype that a text stands for; nothing in the text runs.

  Args:
    text: `Genotype(...)` with the four fields by name or by position, quotes
      of either kind, lists or tuples, edges in a row or node by node. A
      concatenation is a list or `range(first, end)`. There may be comments, and
      on its line a name, or what a log has, with `=` before it.

  Returns:
    The genotype; `Genotype.to_darts` is the way back.

  Raises:
    UsageError: the text is not that; the message says what and where.

  Examples:
    >>> parse('''Genotype(
    ...   normal=[('skip_connect', 0), ('sep_conv_3x3', 1)],
    ...   normal_concat=range(2, 3),
    ...   reduce=[[('max_pool_3x3', 0), ('max_pool_3x3', 1)]],
    ...   reduce_concat=[2])''').reduction
    (('max_pool_3x3', 0), ('max_pool_3x3', 1))
  """
  fields = _fields(_call(text))
  found: dict[str, Any] = {}
  for name in ('normal', 'reduce'):
    found[name] = _in_a_row(name, _literal(name, fields[name]))
    concat = f'{name}_concat'
    found[concat] = _concat(concat, fields[concat], len(found[name]))
  try:
    return Genotype(**{DARTS_FIELDS[name]: found[name] for name in found})
  except UsageError as error:
    # By the name that stands in the text.
    said = str(error).replace('field "reduction', 'field "reduce')
    raise UsageError(said) from error


def _call(text: str) -> ast.Call:
  """Returns the tree of the one `Genotype(...)` in a text."""
  starts = [match.start() for match in _CALL.finditer(text)]
  if len(starts) != 1:
    raise UsageError(
      f'genotype: the text has "Genotype(" {len(starts)} times; keep the one '
      'that is meant.'
    )
  *above, before = text[: starts[0]].split('\n')
  stray = [line for line in above if not line.lstrip().startswith('#')]
  if not _ASSIGNED.fullmatch(before):
    stray.append(before)
  for line in filter(None, map(str.strip, stray)):
    raise UsageError(
      f'genotype: {line[:40]!r} stands before Genotype(...); remove it.'
    )
  try:
    with warnings.catch_warnings():
      # Of literals that are refused below, or harmless.
      warnings.simplefilter('ignore', SyntaxWarning)
      warnings.simplefilter('ignore', DeprecationWarning)
      tree = ast.parse(text[starts[0] :].strip(), mode='eval').body
  except SyntaxError as error:
    raise UsageError(
      f'genotype: {error.msg}, in line {error.lineno or 1} of Genotype(...).'
    ) from error
  except ValueError as error:
    raise UsageError(f'genotype: {error}.') from error
  except (RecursionError, MemoryError) as error:
    raise UsageError('genotype is nested too deeply.') from error
  if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
    raise UsageError(
      'genotype: something stands after Genotype(...); remove it.'
    )
  return tree


def _fields(call: ast.Call) -> dict[str, ast.expr]:
  """Returns name -> value of the arguments, all four and nothing else."""
  names = list(DARTS_FIELDS)
  if len(call.args) > len(names):
    raise UsageError(
      f'genotype has {len(call.args)} fields; give {", ".join(names)}.'
    )
  given = [*zip(names, call.args, strict=False)]
  given += [(keyword.arg or '**', keyword.value) for keyword in call.keywords]
  fields = dict(given)
  unknown = sorted(set(fields) - set(names))
  if unknown:
    raise UsageError(
      f'genotype has unknown fields {unknown}; give {", ".join(names)}.'
    )
  if len(fields) < len(given):
    raise UsageError('genotype has a field twice; remove one of both.')
  missing = [name for name in names if name not in fields]
  if missing:
    raise UsageError(f'genotype lacks the fields {missing}; add them.')
  return fields


def _literal(field: str, node: ast.expr) -> Any:
  """Returns nested lists of names and whole numbers."""
  if isinstance(node, ast.List | ast.Tuple):
    return [_literal(field, entry) for entry in node.elts]
  if isinstance(node, ast.Constant):
    value = node.value
    if isinstance(value, str) or (
      type(value) is int and value.bit_length() <= _MOST_BITS
    ):
      return value
  raise UsageError(
    f'genotype field "{field}", line {node.lineno} of Genotype(...): only '
    "('operation', state) pairs in lists, and states, can be read there."
  )


def _in_a_row(field: str, value: Any) -> list[Any]:
  """Returns the edges in a row, also where they stand node by node."""
  if not isinstance(value, list):
    raise UsageError(
      f'genotype field "{field}" must be a list of (\'operation\', state) '
      f'pairs, not {value!r}.'
    )
  if not any(
    isinstance(entry, list) and entry and isinstance(entry[0], list)
    for entry in value
  ):
    return value
  for number, node in enumerate(value):
    if not isinstance(node, list) or len(node) != edges_lib.EDGES_PER_NODE:
      raise UsageError(
        f'genotype field "{field}", node {number}: give two '
        f"('operation', state) pairs per node, not {node!r}."
      )
  return list(itertools.chain(*value))


def _concat(field: str, node: ast.expr, most: int) -> Any:
  """Returns the states of a concatenation, also those of a `range`."""
  if not (
    isinstance(node, ast.Call)
    and isinstance(node.func, ast.Name)
    and node.func.id == 'range'
    and not node.keywords
  ):
    return _literal(field, node)
  ends = [_literal(field, end) for end in node.args]
  if len(ends) != 2 or not all(isinstance(end, int) for end in ends):
    raise UsageError(
      f'genotype field "{field}": give range(first, end) or a list of states.'
    )
  first, end = ends
  # What is longer than there are edges is refused by its first wrong state.
  return list(range(first, min(end, first + most)))
