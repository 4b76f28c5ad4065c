import collections
import datetime
import os
import pickle

import numpy as np
import pytest

from ms_ranas_jax.data import plain_pickle
from ms_ranas_jax.errors import UsageError

# {'labels': [3, 7], 'data': array([[1, 2]], uint8)} as Python 2 and numpy 1
# write it in protocol 2: text is raw bytes, numpy's names are the old ones.
_PYTHON2 = (
  b'\x80\x02}(U\x06labels](K\x03K\x07eU\x04datacnumpy.core.multiarray\n'
  b'_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01K\x02\x86'
  b'cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff'
  b'J\xff\xff\xff\xffK\x00tb\x89U\x02\x01\x02tbu.'
)


class _MakesFolder:
  """Makes a folder when it is unpickled in the ordinary way."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (self.path,)


def _write(path, value, protocol=2):
  path.write_bytes(pickle.dumps(value, protocol=protocol))
  return path


def test_reads_what_python_2_wrote(tmp_path):
  path = tmp_path / 'batch'
  path.write_bytes(_PYTHON2)
  # The ordinary unpickler agrees that this is such a file.
  expected = pickle.loads(_PYTHON2, encoding='bytes')
  content = plain_pickle.load(path)
  assert content['labels'] == expected[b'labels'] == [3, 7]
  np.testing.assert_array_equal(content['data'], expected[b'data'])
  assert content['data'].dtype == np.uint8
  assert content['data'].shape == (1, 2)


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
  'array',
  [
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    np.asfortranarray(np.arange(6, dtype='>i4').reshape(2, 3)),
    np.linspace(0, 1, 5),
    np.array([True, False]),
    np.zeros((0, 3), np.uint8),
  ],
  ids=['uint8', 'big_endian_fortran', 'float64', 'bool', 'empty'],
)
def test_reads_arrays_of_every_protocol(tmp_path, protocol, array):
  path = _write(
    tmp_path / 'batch', {b'data': array, 'text': b'\xff', 'n': (1,)}, protocol
  )
  content = plain_pickle.load(path)
  np.testing.assert_array_equal(content['data'], array)
  assert content['data'].dtype == array.dtype
  assert content['text'] == b'\xff'
  assert content['n'] == (1,)


@pytest.mark.parametrize('protocol', [2, pickle.HIGHEST_PROTOCOL])
def test_reads_scalars_of_numpy(tmp_path, protocol):
  path = _write(tmp_path / 'batch', {'labels': [np.int64(7)]}, protocol)
  assert plain_pickle.load(path)['labels'] == [7]


def test_malicious_pickle_is_refused_and_not_run(tmp_path):
  mark = tmp_path / 'mark'
  path = _write(tmp_path / 'batch', {'data': _MakesFolder(mark)})
  with pytest.raises(UsageError, match=r'batch is refused.*\.mkdir,'):
    plain_pickle.load(path)
  assert not mark.exists()
  with path.open('rb') as file:
    pickle.load(file)  # It would have been run.
  assert mark.exists()


@pytest.mark.parametrize(
  'value',
  [
    collections.OrderedDict(a=1),
    {'when': datetime.date(2000, 1, 1)},
    {'call': print},
    {'data': np.ma.array([1])},
  ],
  ids=['ordered_dict', 'date', 'function', 'masked_array'],
)
def test_anything_but_plain_values_is_refused(tmp_path, value):
  with pytest.raises(UsageError, match='is refused: it is a pickle that asks'):
    plain_pickle.load(_write(tmp_path / 'batch', value))


@pytest.mark.parametrize(
  'array',
  [
    np.array([{}], dtype=object),
    np.zeros(2, dtype=[('a', 'u1')]),
    np.array(['text']),
  ],
  ids=['objects', 'records', 'text'],
)
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, array):
  with pytest.raises(UsageError, match='not of numbers'):
    plain_pickle.load(_write(tmp_path / 'batch', {'data': array}))


@pytest.mark.parametrize(
  'program',
  [
    # A state set on a stand-in itself, not on an instance of it.
    b'\x80\x02cnumpy\nndarray\n}b.',
    # An array built with no array as its class.
    b'\x80\x02cnumpy.core.multiarray\n_reconstruct\nK\x00K\x00K\x00\x87R.',
    # Bytes by a codec that does more than spell them.
    b'\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.',
    # An array larger than its bytes.
    b'\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n'
    b'K\x00\x85U\x01b\x87R(K\x01K\x09\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R'
    b'\x89U\x02\x01\x02tb.',
    b'not a pickle',
    b'',
  ],
)
def test_broken_programs_are_refused(tmp_path, program):
  path = tmp_path / 'batch'
  path.write_bytes(program)
  with pytest.raises(UsageError, match='batch is not a whole pickle'):
    plain_pickle.load(path)


@pytest.mark.parametrize('length', range(0, len(_PYTHON2), 7))
def test_truncated_pickle_is_refused(tmp_path, length):
  path = tmp_path / 'batch'
  path.write_bytes(_PYTHON2[:length])
  with pytest.raises(UsageError, match='batch is not a whole pickle'):
    plain_pickle.load(path)


def test_a_list_is_no_batch(tmp_path):
  with pytest.raises(UsageError, match='holds a list'):
    plain_pickle.load(_write(tmp_path / 'batch', [1]))


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(UsageError, match='absent cannot be read'):
    plain_pickle.load(tmp_path / 'absent')
