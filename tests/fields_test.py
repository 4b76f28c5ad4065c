"""Fields as they are written on a command line; settings_test has the rest."""

import pytest

from ms_ranas_jax import fields


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('search,train', ('search', 'train')),
    ("('search','train')", ('search', 'train')),
    ('["search", "train"]', ('search', 'train')),
    ('(search, train)', ('search', 'train')),
    ("'search', train", ('search', 'train')),
    ('search', ('search',)),
    ('search,', ('search',)),
    ("('search',)", ('search',)),
    ('', ()),
    (' ', ()),
    ('()', ()),
    ('[]', ()),
    ('0,1e6', (0, 1e6)),
    ('(0, 1e6)', (0, 1e6)),
    ('-1.5', (-1.5,)),
    ('3', (3,)),
    ('none,sep_conv_3x3', ('none', 'sep_conv_3x3')),
    ('my_module:my_operation', ('my_module:my_operation',)),
    ('None,True', ('None', 'True')),
    ('a,,b', ('a', '', 'b')),
  ],
)
def test_a_tuple_is_read_as_it_is_meant(text, expected):
  found = fields.parse_tuple(text)
  assert found == expected
  assert list(map(type, found)) == list(map(type, expected))


def test_messages_name_a_file_that_is_there(repo_root):
  assert (repo_root / fields.PLACE).is_file()
