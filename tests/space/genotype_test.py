"""Genotypes: round trips, published cells, and what is refused."""

import dataclasses
import json

import pytest

from ms_ranas_jax.baselines import cells
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import genotype
from ms_ranas_jax.space import operations

SMALL = {
  'normal': [['sep_conv_3x3', 0], ['skip_connect', 1]],
  'normal_concat': [2],
  'reduction': [['max_pool_3x3', 1], ['max_pool_3x3', 1]],
  'reduction_concat': [2],
}


def _with(**changes):
  return json.dumps({**SMALL, **changes})


@pytest.mark.parametrize('name', cells.PUBLISHED)
def test_published_genotypes_survive_json_and_files(name, tmp_path):
  published = cells.load_genotype(name)
  text = published.to_json()
  assert genotype.Genotype.from_json(text) == published
  path = tmp_path / 'genotype.json'
  path.write_text(text)
  assert cells.load_genotype(str(path)) == published


@pytest.mark.parametrize('name', cells.PUBLISHED)
def test_published_genotypes_use_operations_that_are_at_hand(name):
  genotype.check_operations(cells.PUBLISHED[name], operations.OPERATIONS)


def test_json_form_is_the_documented_one():
  text = genotype.Genotype.from_json(_with()).to_json()
  assert text.endswith('\n')
  value = json.loads(text)
  assert value == SMALL
  assert list(value) == [
    'normal',
    'normal_concat',
    'reduction',
    'reduction_concat',
  ]
  assert len(text.splitlines()) == 6  # a line per field, and the braces


def test_order_of_the_fields_in_a_file_does_not_matter():
  text = json.dumps(dict(reversed(SMALL.items())))
  assert genotype.Genotype.from_json(text) == genotype.Genotype(**SMALL)


def test_darts_v2_is_the_published_cell():
  def cell(text):
    names = {
      'sep3': 'sep_conv_3x3',
      'skip': 'skip_connect',
      'dil3': 'dil_conv_3x3',
      'max': 'max_pool_3x3',
    }
    pairs = (part.rstrip(')').split('(') for part in text.split())
    return tuple((names[name], int(state)) for name, state in pairs)

  v2 = cells.DARTS_V2
  assert v2.normal == cell(
    'sep3(0) sep3(1) sep3(0) sep3(1) sep3(1) skip(0) skip(0) dil3(2)'
  )
  assert v2.reduction == cell(
    'max(0) max(1) skip(2) max(1) max(0) skip(2) skip(2) max(1)'
  )
  assert v2.normal_concat == v2.reduction_concat == (2, 3, 4, 5)


def test_accessors():
  nasnet = cells.NASNET
  assert nasnet.nodes == 5
  assert nasnet.edges(reduction=False) == nasnet.normal
  assert nasnet.edges(reduction=True) == nasnet.reduction
  assert nasnet.concat(reduction=False) == (2, 3, 4, 5, 6)
  assert nasnet.concat(reduction=True) == (4, 5, 6)
  assert nasnet.operations() == (
    'avg_pool_3x3',
    'max_pool_3x3',
    'sep_conv_3x3',
    'sep_conv_5x5',
    'sep_conv_7x7',
    'skip_connect',
  )


def test_lists_become_tuples_so_that_it_can_be_hashed():
  assert len({genotype.Genotype(**SMALL), genotype.Genotype(**SMALL)}) == 1
  with pytest.raises(dataclasses.FrozenInstanceError):
    cells.DARTS_V2.normal = ()


def test_an_input_that_no_node_reads_is_allowed():
  dead = genotype.Genotype(**SMALL)
  assert {state for _, state in dead.reduction} == {1}


@pytest.mark.parametrize(
  ('text', 'says'),
  [
    ('', ['not valid JSON', 'line 1']),
    ('{"normal": [', ['not valid JSON', 'line 1']),
    (_with()[:-1] + ',}', ['not valid JSON']),
    ('[' * 200_000, ['nested too deeply']),
    (f'{{"normal": {"9" * 5000}}}', ['genotype']),
    ('[]', ['JSON object', 'normal_concat']),
    ('null', ['JSON object']),
    ('"DARTS_V2"', ['JSON object']),
    ('{}', ['lacks', 'normal', 'reduction_concat']),
    (
      json.dumps({k: v for k, v in SMALL.items() if k != 'reduction'}),
      ['lacks', "['reduction']"],
    ),
    (_with(reduce=[]), ['unknown', "['reduce']"]),
    (_with(normal=None), ['"normal"', 'non-empty list', 'None']),
    (_with(normal=[]), ['"normal"', 'non-empty list']),
    (_with(reduction={}), ['"reduction"', 'non-empty list']),
    (_with(normal='skip_connect'), ['"normal"', 'non-empty list']),
    (_with(normal=SMALL['normal'][:1]), ['"normal"', '1 entries', 'two']),
    (
      _with(reduction=SMALL['reduction'] + [['none', 0]]),
      ['"reduction"', '3 entries'],
    ),
    (_with(normal=['ab', ['a', 0]]), ['"normal", entry 0', "'ab'"]),
    (_with(normal=[['a', 0], ['a']]), ['"normal", entry 1', "['a']"]),
    (_with(normal=[['a', 0, 1], ['a', 0]]), ['"normal", entry 0']),
    (_with(normal=[['a', 0], 7]), ['"normal", entry 1', '7']),
    (_with(normal=[[0, 'a'], ['a', 0]]), ['"normal", entry 0', 'name', '0']),
    (_with(normal=[['', 0], ['a', 0]]), ['"normal", entry 0', 'name']),
    (_with(normal=[['a', 2], ['a', 0]]), ['"normal", entry 0', 'node 0', '2']),
    (_with(normal=[['a', -1], ['a', 0]]), ['"normal", entry 0', '-1']),
    (_with(normal=[['a', 0.0], ['a', 0]]), ['"normal", entry 0', '0.0']),
    (_with(normal=[['a', True], ['a', 0]]), ['"normal", entry 0', 'True']),
    (_with(normal=[['a', None], ['a', 0]]), ['"normal", entry 0', 'None']),
    (
      _with(reduction=[['a', 0], ['a', 1], ['a', 2], ['a', 3]]),
      ['"reduction", entry 3', 'node 1 (state 3)', '0 to 2', '3'],
    ),
    (
      _with(reduction=[['a', 0], ['a', 1]] * 2, reduction_concat=[2, 3]),
      ['normal cell has 1 nodes', 'reduction cell 2'],
    ),
    (_with(normal_concat=[]), ['"normal_concat"', 'non-empty']),
    (_with(normal_concat=2), ['"normal_concat"', 'non-empty', '2']),
    (_with(normal_concat=[1]), ['"normal_concat"', '1 is not a node']),
    (_with(normal_concat=[3]), ['"normal_concat"', '3 is not a node']),
    (_with(reduction_concat=['2']), ['"reduction_concat"', "'2'"]),
    (_with(reduction_concat=[[2]]), ['"reduction_concat"', '[2]']),
    (_with(reduction_concat=[2.0]), ['"reduction_concat"', '2.0']),
    (_with(reduction_concat=[2, 2]), ['"reduction_concat"', 'twice']),
  ],
)
def test_a_broken_genotype_is_refused(text, says, tmp_path):
  with pytest.raises(UsageError) as caught:
    genotype.Genotype.from_json(text)
  message = str(caught.value)
  for part in says:
    assert part in message
  assert message.endswith('.') and '\n' not in message

  path = tmp_path / 'broken.json'
  path.write_text(text)
  with pytest.raises(UsageError) as caught:
    cells.load_genotype(str(path))
  assert str(caught.value) == f'{path}: {message}'


def test_load_genotype_refuses_what_is_no_file(tmp_path):
  for path in (tmp_path / 'absent.json', tmp_path, 'darts_v2', ''):
    with pytest.raises(UsageError, match='neither a published') as caught:
      cells.load_genotype(str(path))
    assert 'DARTS_V2' in str(caught.value)
    assert f'"{path}"' in str(caught.value)


@pytest.mark.parametrize(
  'encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-32']
)
def test_a_genotype_file_may_have_a_byte_order_mark(tmp_path, encoding):
  """Editors and shells of Windows write one."""
  path = tmp_path / 'genotype.json'
  path.write_bytes(_with().encode(encoding))
  expected = genotype.Genotype(**SMALL)
  assert cells.load_genotype(str(path)) == expected
  assert genotype.Genotype.from_json('\ufeff' + _with()) == expected


def test_a_genotype_in_the_home_folder_is_found(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'g.json').write_text(_with())
  assert cells.load_genotype('~/g.json') == genotype.Genotype(**SMALL)


def test_load_genotype_refuses_a_binary_file(tmp_path):
  path = tmp_path / 'genotype.json'
  path.write_bytes(b'\x80\x04\xff')
  with pytest.raises(UsageError, match='not a text file') as caught:
    cells.load_genotype(str(path))
  assert str(path) in str(caught.value)


def test_check_operations_names_the_unknown_one():
  found = genotype.Genotype(**{**SMALL, 'normal': [['typo', 0], ['typo', 1]]})
  with pytest.raises(UsageError, match='"typo"'):
    genotype.check_operations(found, operations.OPERATIONS)
