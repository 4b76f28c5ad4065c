"""The widest network in a budget through the stages, without a training."""

import json

import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax import families
from ms_ranas_jax import settings
from ms_ranas_jax import stages
from ms_ranas_jax.baselines import cells
from ms_ranas_jax.costs import width
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space import protocol


def _config(**fields):
  config = default_config.get_config()
  config.stages = ('describe',)
  config.train.network.channels = protocol.AUTO
  config.update_from_flattened_dict(fields)
  if config.train.network.family == 'grid':
    config.train.genotype = 'DARTS_V2'
    config.train.network.nodes = 4
  return config


def _described(config, workdir, told=None):
  said = []
  stages.run_stages(config, str(workdir), said.append)
  if told is not None:
    told[workdir] = '\n'.join(said)
  assert 'the widest in train.budget' in '\n'.join(said)
  path = workdir / 'describe/train_network.json'
  return json.loads(path.read_text(encoding='utf-8'))


def _network(config, channels):
  config = config.copy_and_resolve_references()
  with config.ignore_type():
    config.train.network.channels = channels
    config.train.budget.update(dict.fromkeys(width.LIMITS, 0.0))
  return families.train_network(
    settings.parse(config).train,
    ((8, 8, 1), 10),
    cells.DARTS_V2,
    dtype='float32',
  )


@pytest.mark.parametrize('limit', width.LIMITS)
def test_it_is_the_widest_that_fits(limit, tmp_path):
  config = _config()
  costs = {c: width.measured(_network(config, c))[limit] for c in (10, 12, 14)}
  config.train.budget[limit] = float(costs[12] + costs[14]) / 2
  found = _described(config, tmp_path)
  exit_ = found['exits'][-1]
  measured = {
    'macs': exit_['macs'],
    'params': exit_['total_params'],
    'params_deployed': exit_['params_deployed'],
    'bytes': 4 * exit_['total_params'] + exit_['peak_activation_bytes'],
  }
  assert costs[12] <= measured[limit] <= config.train.budget[limit]


def test_bytes_count_in_the_type_that_is_shipped(tmp_path):
  config = _config(
    **{'train.budget.bytes': 300_000.0, 'train.budget.macs': 1e9}
  )
  params, said = {}, {}
  for dtype, size in ('float32', 4), ('bfloat16', 2), ('int8', 1):
    config.train.budget.dtype = dtype
    last = _described(config, tmp_path / dtype, said)['exits'][-1]
    params[dtype] = last['total_params']
    taken = size * (params[dtype] + last['peak_activation_bytes'] // 4)
    assert taken <= 300_000
    assert (
      f'train.budget: {last["macs"]:,} of 1,000,000,000 macs, {taken:,} of '
      f'300,000 bytes in {dtype}' in said[tmp_path / dtype]
    )
  # Half the size is room for nearly twice the params.
  assert params['bfloat16'] > 1.5 * params['float32']
  assert params['int8'] > 1.5 * params['bfloat16']


@pytest.mark.parametrize('family', families.FAMILIES)
def test_every_family_has_a_widest(family):
  fields = {'train.network.family': family, 'train.budget.params': 600_000.0}
  if family != 'grid':
    fields['train.genotype'] = ''
  config = _config(**fields)
  found = families.train_network(
    settings.parse(config).train,
    ((8, 8, 1), 10),
    cells.DARTS_V2,
    dtype='float32',
  )
  assert width.measured(found)['params'] <= 600_000
  wider = _network(config, found.plan.spec.channels + 2)
  assert width.measured(wider)['params'] > 600_000


@pytest.mark.parametrize(
  ('limit', 'dtype', 'words'),
  [
    ('macs', 'float32', "macs = 100,000.* macs; .*channels = 'auto'"),
    ('bytes', 'float32', "bytes = 100,000.* bytes in float32; .* = 'auto'"),
    ('bytes', 'int8', "bytes = 100,000.* bytes in int8; .*channels = 'auto'"),
  ],
)
def test_a_width_that_is_set_must_fit(limit, dtype, words, tmp_path):
  config = _config(
    **{
      'train.network.channels': 40,
      f'train.budget.{limit}': 100_000.0,
      'train.budget.dtype': dtype,
    }
  )
  with pytest.raises(UsageError, match=words):
    _described(config, tmp_path)


@pytest.mark.parametrize('family', families.FAMILIES)
def test_what_fits_in_a_smaller_type_does_not_in_a_larger(family):
  config = _config(**{'train.network.family': family})
  if family != 'grid':
    config.train.genotype = ''
  taken = width.measured(_network(config, 12), 'int8')['bytes']
  config.train.budget.update(bytes=float(taken), dtype='int8')
  with config.ignore_type():
    config.train.network.channels = 12

  def build():
    return families.train_network(
      settings.parse(config).train,
      ((8, 8, 1), 10),
      cells.DARTS_V2,
      dtype='float32',
    )

  assert width.measured(build(), 'int8')['bytes'] == taken
  config.train.budget.dtype = 'bfloat16'
  with pytest.raises(UsageError, match=f'{2 * taken:,} bytes in bfloat16'):
    build()


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({}, ['train.budget limits nothing', 'train.budget.macs']),
    ({'train.budget.macs': 10.0}, ['narrowest', 'macs (10 allowed)']),
    # Before a search, when the genotype is not known.
    (
      {
        'stages': ('search', 'train'),
        'train.genotype': '',
        'train.network.nodes': 2,
        'train.budget.bytes': 10.0,
      },
      ['narrowest', 'bytes in float32 (10 allowed)'],
    ),
    (
      {'train.budget.bytes': 10.0, 'train.budget.dtype': 'bfloat16'},
      ['narrowest', 'bytes in bfloat16 (10 allowed)'],
    ),
    # A type that nothing is counted in.
    (
      {'train.budget.macs': 1e7, 'train.budget.dtype': 'int8'},
      [
        "config.train.budget.dtype = 'int8'",
        'bytes = 0',
        'set train.budget.bytes',
      ],
    ),
    (
      {'train.budget.bytes': 1e7, 'train.budget.dtype': 'float16'},
      ["config.train.budget.dtype = 'float16'", "'bfloat16', 'int8'"],
    ),
    (
      {
        'stages': ('search', 'train'),
        'train.genotype': '',
        'train.network.nodes': 2,
        'train.budget.macs': 1e7,
        'search.cost.target': 1e6,
      },
      ['search.cost.target', "channels = 'auto'", 'set the channels'],
    ),
    ({'train.network.channels': 'wide'}, ['train.network.channels', "'auto'"]),
  ],
  ids=[
    'none',
    'small',
    'before a search',
    'small type',
    'unused type',
    'unknown type',
    'target',
    'text',
  ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
  fields, words, tmp_path
):
  workdir = tmp_path / 'new'
  with pytest.raises(UsageError) as caught:
    _described(_config(**fields), workdir)
  for word in words:
    assert word in str(caught.value)
  assert not workdir.exists()
