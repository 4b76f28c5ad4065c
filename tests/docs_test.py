"""The site of the documentation: it builds, and nothing is left out of it."""

import importlib.util
import re
import subprocess
import sys

import pytest

import ms_ranas_jax
from ms_ranas_jax import settings
from ms_ranas_jax.search import methods

pytest.importorskip('sphinx', reason='the extra docs is not installed')


@pytest.fixture(scope='module')
def docs(repo_root):
  return repo_root / 'docs'


@pytest.fixture(scope='module')
def reference(docs):
  """The extension that writes the tables of fields."""
  path = docs / '_ext' / 'config_reference.py'
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.slow
def test_the_site_builds_without_a_warning(docs, tmp_path):
  """Warnings are of links that lead nowhere, of pages that nobody lists."""
  site = tmp_path / 'site'
  command = [*(sys.executable, '-m', 'sphinx', '-E', '-W', '--keep-going')]
  command += ['-q', '-b', 'html', str(docs), str(site)]
  end = subprocess.run(command, capture_output=True, text=True, check=False)
  assert (end.returncode, end.stderr) == (0, '')
  for page in docs.glob('*.md'):
    assert (site / page.with_suffix('.html').name).is_file()
  fields = (site / 'config.html').read_text(encoding='utf-8')
  assert '<span class="pre">search.ghn.short_epochs</span>' in fields
  model = (site / 'api' / 'model.html').read_text(encoding='utf-8')
  assert 'id="ms_ranas_jax.load_model"' in model and 'packaged' in model


def test_every_public_name_is_on_one_page_of_the_api(docs):
  found = []
  for page in (docs / 'api').glob('*.md'):
    text = page.read_text(encoding='utf-8')
    found += re.findall(r'^\.\. auto\w+:: (\w+)$', text, re.MULTILINE)
    for row in re.findall(r'^\| (`\w+`(?:, `\w+`)*) \|', text, re.MULTILINE):
      found += re.findall(r'\w+', row)
  assert sorted(found) == sorted(ms_ranas_jax.__all__)


def test_every_field_is_on_the_page_of_fields(docs, reference):
  text = (docs / 'config.md').read_text(encoding='utf-8')
  tables = re.findall(r'^```\{config-fields\} ?(\S*)$', text, re.MULTILINE)
  assert len(set(tables)) == len(tables)
  shown = {
    entry.name for table in tables for entry in reference.entries_of(table)
  }
  assert shown == set(settings.known_fields())


def test_of_a_family_its_own_defaults_are_shown(reference):
  found = {
    kind: {e.name: e.default for e in reference.entries_of(kind)}
    for kind in ('train.network:resnet8', 'train.network:grid')
  }
  name = 'train.network.exits'
  assert [values[name] for values in found.values()] == [
    'last',
    'all_but_first',
  ]


def test_methods_without_fields_of_their_own_are_named(docs, reference):
  text = (docs / 'config.md').read_text(encoding='utf-8')
  for name in methods.METHODS:
    has = bool(reference.entries_of(f'search:{name}'))
    assert has == (f'{{config-fields}} search:{name}' in text)
    assert has or f'The method `{name}` has no fields of its own.' in text
