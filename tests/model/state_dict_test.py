"""State dicts from files, and files that are none."""

import json
import struct

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.model import state_dict

_ARRAYS = {
  'stem.0.weight': np.arange(6, dtype=np.float32).reshape(1, 2, 3),
  'stem.1.num_batches_tracked': np.asarray(7, np.int64),
}


def _write(path, arrays):
  if path.suffix == '.npz':
    np.savez(path, **arrays)
  else:
    safetensors_numpy.save_file(arrays, path)
  return path


@pytest.mark.parametrize('name', ['a.npz', 'a.safetensors'])
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_both_kinds_of_files_are_read(tmp_path, name, prefix):
  arrays = {f'{prefix}{n}': array for n, array in _ARRAYS.items()}
  found = state_dict.read(_write(tmp_path / name, arrays))
  assert list(found) == list(_ARRAYS)
  for key, array in _ARRAYS.items():
    np.testing.assert_array_equal(found[key], array)


def test_a_prefix_of_some_names_is_left(tmp_path):
  arrays = {'module.a': np.zeros(1), 'b': np.zeros(1)}
  found = state_dict.read(_write(tmp_path / 'a.npz', arrays))
  assert list(found) == ['b', 'module.a']


def _bfloat16(path):
  entry = {'dtype': 'BF16', 'shape': [1], 'data_offsets': [0, 2]}
  head = json.dumps({'a': entry}).encode()
  path.write_bytes(struct.pack('<Q', len(head)) + head + b'\x80?')


@pytest.mark.parametrize(
  ('name', 'write', 'said'),
  [
    ('a.npz', None, 'is no file; correct the path'),
    ('a.pth', None, 'is a pickle of PyTorch, and .safetensors and .npz files'),
    ('a.onnx', None, 'is of another kind'),
    ('a.npz', lambda p: p.write_text('x'), 'cannot be read'),
    ('a.safetensors', lambda p: p.write_text('x'), 'copy it again, or write'),
    ('a.npz', lambda p: _write(p, {}), 'holds no tensor'),
    ('a.npz', lambda p: _write(p, {'a': np.array([{}])}), 'cannot be read'),
    ('a.safetensors', _bfloat16, 'of the type BF16; write them as float32'),
  ],
)
def test_other_files_are_refused(tmp_path, name, write, said):
  path = tmp_path / name
  if write:
    write(path)
  with pytest.raises(UsageError) as refusal:
    state_dict.read(path)
  assert str(refusal.value).startswith(str(path)) and said in str(refusal.value)
