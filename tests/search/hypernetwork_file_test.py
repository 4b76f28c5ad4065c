"""A hypernetwork that was written is the one that is read."""

import chex
import jax
import pytest

import ms_ranas_jax as mr
from ms_ranas_jax.hypernetwork import hypernetwork as hypernetwork_lib
from ms_ranas_jax.search import hypernetwork_file


@pytest.fixture(scope='module')
def trained():
  hypernetwork = mr.Hypernetwork(
    mr.NetworkSpec(channels=2, layers=1, nodes=1, image_shape=(4, 4, 1)),
    {'skip_connect': mr.PRIMITIVES['skip_connect']},
    rounds=1,
    width=3,
    hidden=5,
    tile=2,
  )
  return hypernetwork, hypernetwork_lib.init_params(
    hypernetwork, jax.random.key(0)
  )


def test_it_comes_back(trained, tmp_path):
  hypernetwork, params = trained
  path = tmp_path / 'search' / hypernetwork_file.name()
  path.parent.mkdir()
  hypernetwork_file.save(str(path), hypernetwork, params)
  for place in path, tmp_path:
    found, read = mr.load_hypernetwork(str(place))
    assert found.spec == hypernetwork.spec
    assert found.primitives == hypernetwork.primitives
    assert (found.rounds, found.width, found.hidden, found.tile) == (1, 3, 5, 2)
    chex.assert_trees_all_equal(read, jax.device_get(params))


def test_seeds_have_files_of_their_own():
  assert hypernetwork_file.name(3) != hypernetwork_file.name()


def test_what_is_no_hypernetwork_is_refused(trained, tmp_path):
  hypernetwork, params = trained
  with pytest.raises(mr.UsageError, match='is missing; name a work directory'):
    mr.load_hypernetwork(str(tmp_path))
  path = tmp_path / 'some.safetensors'
  hypernetwork_file.save(str(path), hypernetwork, params)
  data = path.read_bytes()
  path.write_bytes(data[:-9])
  with pytest.raises(mr.UsageError, match='or damaged'):
    mr.load_hypernetwork(str(path))
  path.write_bytes(data.replace(b'hypernetwork', b'hypernetwerk'))
  with pytest.raises(mr.UsageError, match='no hypernetwork of this program'):
    mr.load_hypernetwork(str(path))
  few = {name: value for name, value in params.items() if name != 'gru'}
  hypernetwork_file.save(str(path), hypernetwork, few)
  with pytest.raises(mr.UsageError, match='holds other params'):
    mr.load_hypernetwork(str(path))
