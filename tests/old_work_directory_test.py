"""A work directory of an earlier release goes on."""

import json

import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax import same_run
from ms_ranas_jax import stages
from ms_ranas_jax.errors import UsageError

# What configs have had since.
_NEWER = ('method', 'primitives')


def _write_old(folder, **search):
  values = json.loads(json.dumps(default_config.get_config().to_dict()))
  for name in _NEWER:
    del values['search'][name]
  values['search'] |= search
  (folder / 'config.json').write_text(json.dumps(values))


def _check(folder, **search):
  config = default_config.get_config()
  config.search.update(search)
  same_run.compare(config.to_dict(), str(folder))


def test_what_it_lacks_was_at_its_default(tmp_path):
  _write_old(tmp_path, epochs=7)
  _check(tmp_path, epochs=7)
  with pytest.raises(UsageError, match='search.epochs was 7, now 8'):
    _check(tmp_path, epochs=8)
  with pytest.raises(UsageError, match="search.method was 'bilevel'"):
    _check(tmp_path, epochs=7, method='random')
  with pytest.raises(UsageError, match='search.primitives was'):
    _check(tmp_path, epochs=7, primitives=('none', 'skip_connect'))


def test_order_0_was_random_search(tmp_path):
  _write_old(tmp_path, order=0)
  _check(tmp_path, method='random')
  with pytest.raises(UsageError, match="search.method was 'random', now"):
    _check(tmp_path)


def test_order_0_is_refused_with_the_new_name():
  config = default_config.get_config()
  config.search.order = 0
  with pytest.raises(UsageError, match="search.method = 'random' now"):
    stages.run_stages(config, 'nowhere', print)


def test_what_a_method_has_not_is_refused():
  config = default_config.get_config()
  config.search.update(method='random', order=2)
  with pytest.raises(
    UsageError, match='search.order = 2, but .* leave it at 1'
  ):
    stages.run_stages(config, 'nowhere', print)


@pytest.mark.parametrize('scales', [1, 2])
def test_the_stem_was_three_times_as_wide(tmp_path, scales):
  config = default_config.get_config()
  for section in config.search, config.train:
    section.network.scales = scales
  values = json.loads(json.dumps(config.to_dict()))
  for section in 'search', 'train':
    del values[section]['network']['stem_multiplier']
  (tmp_path / 'config.json').write_text(json.dumps(values))
  if scales == 1:  # as it is now
    same_run.compare(config.to_dict(), str(tmp_path))
    return
  with pytest.raises(UsageError, match='stem_multiplier was 3, now 0'):
    same_run.compare(config.to_dict(), str(tmp_path))
  for section in config.search, config.train:
    section.network.stem_multiplier = 3
  same_run.compare(config.to_dict(), str(tmp_path))
