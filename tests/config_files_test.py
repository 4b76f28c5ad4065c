"""Configs by path and by name."""

import pytest

from ms_ranas_jax import config_files


@pytest.fixture
def here(tmp_path, monkeypatch):
  """An empty current folder, which is the home folder too."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  return tmp_path


def test_all_configs_are_brought(repo_root):
  assert config_files.brought() == {
    path.stem: str(path) for path in (repo_root / 'configs').glob('*.py')
  }
  assert 'digits' in config_files.brought()


@pytest.mark.parametrize(
  'name', ['digits', 'digits.py', 'configs/digits', 'configs/digits.py']
)
@pytest.mark.parametrize('argument', ['', ':a.b', ':a:b'])
def test_a_config_is_found_from_anywhere(here, repo_root, name, argument):
  found = config_files.find(name + argument)
  assert found == str(repo_root / 'configs/digits.py') + argument


@pytest.mark.parametrize(
  ('file', 'name'),
  [
    ('digits', 'digits'),
    ('digits.py', 'digits'),
    ('digits.py', 'digits.py'),
    ('configs/digits.py', 'configs/digits.py'),
    ('configs/digits.py', 'configs/digits'),
  ],
)
def test_what_is_here_comes_first(here, file, name):
  (here / file).parent.mkdir(exist_ok=True)
  (here / file).touch()
  assert config_files.find(name) == file
  assert config_files.find(f'{name}:x') == f'{file}:x'


def test_a_folder_is_no_config(here, repo_root):
  (here / 'digits').mkdir()
  assert config_files.find('digits') == str(repo_root / 'configs/digits.py')


def test_a_home_folder_is_expanded(here):
  (here / 'mine.py').touch()
  assert config_files.find('~/mine.py:x') == f'{here}/mine.py:x'
  assert config_files.find('~/mine') == f'{here}/mine.py'


@pytest.mark.parametrize(
  'name', ['', 'none', 'other/digits.py', '/digits.py', '~/configs/digits.py']
)
def test_what_is_nowhere_stays_as_it_is(here, name):
  assert config_files.find(name) == name
