"""Genotypes as others print them: read without running, and written."""

import collections
import itertools
import sys

import pytest

from ms_ranas_jax.baselines import cells
from ms_ranas_jax.baselines import darts_text
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import operations
from ms_ranas_jax.space.genotype import Genotype

# As quark0/darts, yuhuixu1993/PC-DARTS and khanrc/pt.darts all define it, so
# that what they print is the `repr` of one of these.
Printed = collections.namedtuple(
  'Genotype', 'normal normal_concat reduce reduce_concat'
)
# The line of DARTS_V2 in the genotypes.py of DARTS and PC-DARTS.
DARTS_V2 = (
  "DARTS_V2 = Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
  "('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 1), "
  "('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], "
  "normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), "
  "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), "
  "('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), "
  "('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)
# One node, to be broken.
SMALL = (
  "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1)], "
  "normal_concat=range(2, 3), reduce=[('max_pool_3x3', 1), "
  "('max_pool_3x3', 1)], reduce_concat=range(2, 3))"
)
FOUND = Genotype(
  (('sep_conv_3x3', 0), ('skip_connect', 1)),
  (2,),
  (('max_pool_3x3', 1), ('max_pool_3x3', 1)),
  (2,),
)


def _printed(genotype, by_node=False, concat=list):
  """What a search with this result prints."""

  def edges(cell):
    row = list(cell)
    if by_node:
      return [list(pair) for pair in zip(row[::2], row[1::2], strict=True)]
    return row

  return repr(
    Printed(
      edges(genotype.normal),
      concat(genotype.normal_concat),
      edges(genotype.reduction),
      concat(genotype.reduction_concat),
    )
  )


def _range(states):
  return range(states[0], states[-1] + 1)


@pytest.mark.parametrize('name', cells.PUBLISHED)
@pytest.mark.parametrize('by_node', [False, True], ids=['in a row', 'by node'])
def test_what_others_print_is_read(name, by_node, tmp_path):
  genotype = cells.PUBLISHED[name]
  for concat in list, tuple:
    text = _printed(genotype, by_node, concat)
    assert darts_text.parse(text) == genotype
  path = tmp_path / 'genotype.txt'
  path.write_text(text + '\n')
  assert cells.load_genotype(str(path), operations.REAL) == genotype


@pytest.mark.parametrize('name', ['DARTS_V1', 'DARTS_V2'])
def test_range_is_read_as_python_has_it(name):
  genotype = cells.PUBLISHED[name]
  text = _printed(genotype, concat=_range)
  assert text.count('range(2, 6)') == 2
  assert darts_text.parse(text) == genotype


@pytest.mark.parametrize('name', cells.PUBLISHED)
def test_what_is_written_is_what_darts_prints_and_is_read_again(name):
  genotype = cells.PUBLISHED[name]
  text = genotype.to_darts()
  assert text == _printed(genotype)
  assert darts_text.is_text(text)
  assert darts_text.parse(text) == genotype


def test_darts_v2_is_written_as_darts_has_it():
  assert f'DARTS_V2 = {cells.DARTS_V2.to_darts()}' == DARTS_V2
  assert darts_text.parse(DARTS_V2) == cells.DARTS_V2


def test_an_operation_of_ones_own_survives():
  edges = (("my_module:it's", 0), ('my_module:other', 1))
  genotype = Genotype(edges, (2,), edges, (2,))
  assert darts_text.parse(genotype.to_darts()) == genotype


@pytest.mark.parametrize(
  'text',
  [
    SMALL,
    f'  {SMALL}\n\n',
    f'\n{SMALL} # after 50 epochs\n# the end',
    f'# CIFAR10\n\n  # seed 2\n{SMALL}',
    f'genotype = {SMALL}',
    f'genotype={SMALL}\r\n',
    # As the logs of DARTS and of pt.darts have it.
    f'03/24 05:01:12 PM genotype = {SMALL}',
    f'03/24 05:01:12 PM | Best Genotype = {SMALL}',
    SMALL.replace("'", '"'),
    SMALL.replace('[', '(').replace(']', ')'),
    SMALL.replace(', ', ',\n    '),
    SMALL.replace('range(2, 3)', '[2]').replace('])', '],\n)'),
    SMALL.replace('range(2, 3)', '(2,)'),
    # By position, all or some.
    "Genotype([('sep_conv_3x3', 0), ('skip_connect', 1)], [2], "
    "[('max_pool_3x3', 1), ('max_pool_3x3', 1)], range(2, 3))",
    "Genotype([['sep_conv_3x3', 0], ['skip_connect', 1]], [2], "
    "reduce_concat=[2], reduce=[[('max_pool_3x3', 1), ('max_pool_3x3', 1)]])",
    SMALL.replace("'sep_conv_3x3'", "'sep_' 'conv_3x3'"),
  ],
)
def test_the_same_genotype_in_other_clothes(text, tmp_path):
  assert darts_text.parse(text) == FOUND
  path = tmp_path / 'genotype'
  path.write_bytes(text.encode())
  assert cells.load_genotype(str(path)) == FOUND


_SKIPS = "[('skip_connect', 0), ('skip_connect', 1)]"


def _with(**fields):
  values = {
    'normal': _SKIPS,
    'normal_concat': 'range(2, 3)',
    'reduce': _SKIPS,
    'reduce_concat': '[2]',
  } | fields
  given = ', '.join(f'{k}={v}' for k, v in values.items() if v)
  return f'Genotype({given})'


@pytest.mark.parametrize(
  ('text', 'says'),
  [
    # Around it.
    (SMALL + '\n' + SMALL, ['"Genotype(" 2 times', 'keep the one']),
    ('import os\n' + SMALL, ["'import os' stands before", 'remove it']),
    ('print(' + SMALL, ["'print(' stands before"]),
    ('# genotype = ' + SMALL, ["'# genotype =' stands before"]),
    ('x = 1; genotype = ' + SMALL, ['stands before']),
    ("'" + SMALL + "'", ['stands before']),
    (SMALL + '.normal', ['something stands after', 'remove it']),
    (SMALL + ' + 1', ['something stands after']),
    (SMALL + '()', ['something stands after']),
    (SMALL + ', 1', ['something stands after']),
    (SMALL + '\nimport os', ['invalid syntax', 'line 2']),
    (SMALL[:-1], ['never closed', 'line 1']),
    ('Genotype(', ['never closed']),
    ('Genotype(\0)', ['null bytes']),
    ('Genotype(\ud800)', ['surrogates not allowed']),
    ('Genotype(' + '(' * 300, ['too many nested']),
    ('Genotype(' + '-' * 100_000 + '1)', ['nested too deeply']),
    ('Genotype(' + '1+' * 200_000 + '1)', ['nested too deeply']),
    (_with(normal='9' * 5000), ['4300 digits']),
    # The fields.
    ('Genotype()', ["lacks the fields ['normal',", 'add them']),
    (_with(reduce='', reduce_concat=''), ["['reduce', 'reduce_concat']"]),
    (
      "Genotype(recurrent=[('tanh', 0)], concat=range(1, 9))",
      ["unknown fields ['concat', 'recurrent']", 'normal, normal_concat, red'],
    ),
    (_with(more='1'), ["unknown fields ['more']"]),
    ('Genotype(**{})', ["unknown fields ['**']"]),
    ('Genotype(1, 2, 3, 4, 5)', ['has 5 fields']),
    (_with()[:-1] + ', reduce=[])', ['a field twice']),
    ('Genotype([], ' + _with()[len('Genotype(') :], ['a field twice']),
    # What runs nothing, and is no genotype.
    (_with(normal='[f()]'), ['field "normal", line 1', 'can be read']),
    (_with(normal='[x]'), ['field "normal", line 1']),
    (_with(normal='[x for x in ()]'), ['field "normal", line 1']),
    (_with(normal='[*"ab"]'), ['field "normal", line 1']),
    (_with(normal="{'skip_connect', 0}"), ['field "normal", line 1']),
    (_with(normal='{}'), ['field "normal", line 1']),
    (_with(normal="[(f'skip_connect', 0)] * 2"), ['field "normal", line 1']),
    (_with(normal="[(f'skip', 0), ('skip', 1)]"), ['field "normal", line 1']),
    (_with(normal="[(b'skip', 0), ('skip', 1)]"), ['field "normal", line 1']),
    (
      _with(normal="[('skip', np.int64(0)), ('skip', 1)]"),
      ['field "normal", line 1'],
    ),
    (_with(normal="[('skip', 0.0),\n('skip', 1)]"), ['"normal", line 1']),
    (_with(normal="[('skip', 0),\n('skip', True)]"), ['"normal", line 2']),
    (_with(normal="[('skip', None), ('skip', 1)]"), ['"normal", line 1']),
    (_with(normal="[('skip', -1), ('skip', 1)]"), ['"normal", line 1']),
    (
      _with(reduce=f"[('skip', 0x{'f' * 9000}), ('skip', 1)]"),
      ['"reduce", line 1'],
    ),
    (_with(reduce_concat='range(2)'), ['"reduce_concat"', 'range(first, end)']),
    (_with(reduce_concat='range(2, 6, 1)'), ['range(first, end)']),
    (_with(reduce_concat="range(2, 'a')"), ['range(first, end)']),
    (_with(reduce_concat='range(*[2, 3])'), ['"reduce_concat", line 1']),
    (_with(reduce_concat='range(2, stop=3)'), ['"reduce_concat", line 1']),
    (_with(reduce_concat='list(range(2, 3))'), ['"reduce_concat", line 1']),
    (_with(reduce_concat='np.arange(2, 3)'), ['"reduce_concat", line 1']),
    # Cells that do not fit.
    (_with(normal="'skip_connect'"), ['"normal" must be a list', "not 'skip"]),
    (_with(normal='[]'), ['"normal" must be a non-empty list']),
    (_with(normal="[('skip', 0)]"), ['"normal" has 1 entries', 'two']),
    (_with(reduce="[('a', 0)] "), ['"reduce" has 1 entries']),
    (_with(reduce="[('a', 0), ('b', 2)]"), ['"reduce", entry 1', '0 to 1']),
    (_with(reduce="[('a', 0), (1, 'b')]"), ['"reduce", entry 1', 'a name']),
    (_with(reduce="[('a', 0), 'b']"), ['"reduce", entry 1', 'pair']),
    (
      _with(normal="[[('a', 0), ('b', 1), ('c', 0)]]"),
      ['"normal", node 0', 'two', "('operation', state) pairs"],
    ),
    (
      _with(normal="[[('a', 0), ('b', 1)], [('c', 0)]]"),
      ['"normal", node 1', 'two'],
    ),
    (_with(normal="[[('a', 0), ('b', 1)], 'c']"), ['"normal", node 1']),
    (
      _with(normal="[[('a', 0), ('b', 1)], ('c', 0)]"),
      ['"normal", entry 2', "'c'"],
    ),
    (
      _with(reduce=f'[{_SKIPS}, {_SKIPS}]'),
      ['normal cell has 1 nodes', 'reduction cell 2'],
    ),
    (_with(normal_concat='range(2, 6)'), ['"normal_concat": 3 is not a node']),
    (_with(normal_concat='range(6)'), ['"normal_concat"', 'range(first, end)']),
    (_with(normal_concat='range(0, 2)'), ['"normal_concat": 0 is not a node']),
    (_with(normal_concat='range(3, 2)'), ['"normal_concat"', 'non-empty']),
    (_with(normal_concat='range(2, 2000000000)'), ['3 is not a node']),
    (_with(reduce_concat='[2, 2]'), ['"reduce_concat" names a state twice']),
    (_with(reduce_concat="'2'"), ['"reduce_concat" must be a non-empty list']),
  ],
  ids=itertools.count(),
)
def test_what_is_no_genotype_is_refused(text, says, tmp_path):
  with pytest.raises(UsageError) as caught:
    darts_text.parse(text)
  message = str(caught.value)
  for part in says:
    assert part in message
  assert message.startswith('genotype') and message.endswith('.')
  assert '\n' not in message

  path = tmp_path / 'broken.txt'
  path.write_bytes(text.encode(errors='replace'))
  with pytest.raises(UsageError) as caught:
    cells.load_genotype(str(path))
  if '\ud800' not in text:
    assert str(caught.value) == f'{path}: {message}'


def test_nothing_in_the_text_runs(tmp_path):
  mark = tmp_path / 'mark'
  code = f"open({str(mark)!r}, 'w').close()"
  run = f'exec({code!r})'
  for text in (
    f'Genotype({run})',
    _with(normal=f'[{run}]'),
    _with(normal_concat=f'range({run}, 3)'),
    _with(normal_concat=f'range(2, 3) if {run} else []'),
    f'{run} == {SMALL}',
    f'{SMALL}; {run}',
    f'{SMALL}\n{run}',
  ):
    with pytest.raises(UsageError):
      darts_text.parse(text)
  assert not mark.exists()
  # Not even a module is loaded.
  with pytest.raises(UsageError):
    darts_text.parse(_with(normal='[__import__("this")]'))
  assert 'this' not in sys.modules


def test_unknown_operations_are_refused_by_name(tmp_path):
  path = tmp_path / 'genotype.txt'
  for name in 'dw_conv_7x7', 'none':
    path.write_text(SMALL.replace('sep_conv_3x3', name))
    with pytest.raises(UsageError, match=f'genotype.txt: .*"{name}"'):
      cells.load_genotype(str(path), operations.REAL)


def test_a_text_in_the_place_of_a_path_is_refused():
  with pytest.raises(UsageError, match='write that to a file'):
    cells.load_genotype(SMALL)
  # And JSON that speaks of one is JSON.
  assert not darts_text.is_text(' {"normal": "Genotype()"}')
  assert not darts_text.is_text('NASGenotype(normal=[])')


def test_a_byte_order_mark_before_a_file_is_passed_over(tmp_path):
  path = tmp_path / 'marked.txt'
  path.write_bytes(SMALL.encode('utf-8-sig'))
  assert cells.load_genotype(str(path)) == darts_text.parse(SMALL)
