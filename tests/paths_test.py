"""Paths as users write them."""

import os
import pathlib

import pytest

import ms_ranas_jax
from ms_ranas_jax import paths
from ms_ranas_jax.errors import UsageError


@pytest.mark.parametrize(
  ('path', 'expected'),
  [
    ('~/x', '/home/me/x'),
    ('~', '/home/me'),
    (pathlib.Path('~/x'), '/home/me/x'),
    ('x/~', 'x/~'),
    ('./~/x', './~/x'),
    ('/x', '/x'),
    ('', ''),
    ('gs://mine/~/x', 'gs://mine/~/x'),
  ],
)
def test_a_tilde_is_the_home_folder(monkeypatch, path, expected):
  monkeypatch.setenv('HOME', '/home/me')
  assert paths.expand(path) == expected


def test_a_user_who_is_not_there_makes_no_folder():
  with pytest.raises(UsageError, match='no such home folder; .* ./~nobody-x/y'):
    paths.expand('~nobody-x/y')


def test_a_file_of_the_package_is_shown_from_here(
  repo_root, tmp_path, monkeypatch
):
  monkeypatch.chdir(repo_root)
  expected = os.path.join('ms_ranas_jax', 'sections.py')
  assert paths.of_module('sections.py') == expected
  monkeypatch.chdir(tmp_path)
  found = paths.of_module('sections.py')
  assert found == os.path.join(
    os.path.dirname(ms_ranas_jax.__file__), 'sections.py'
  )
  assert os.path.isfile(found)
