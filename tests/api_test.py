"""The package as others see it: names, docstrings, what an import costs."""

import ast
import configparser
import importlib
import importlib.util
import inspect
import json
import os
import pkgutil
import subprocess
import sys
import types

import pytest

import ms_ranas_jax

# What only some stages need, and a user of the functions does not.
_HEAVY = (
  'matplotlib',
  'orbax',
  'sklearn',
  'tensorboardX',
  'tensorflow',
  'tensorflow_datasets',
)
# What every user of the functions waits for, and nobody else.
_SLOW = ('flax', 'jax', 'numpy', 'optax')
# Imports everything and says what the first import brought with it, and what
# all public names do.
_IMPORTS = """
import importlib, json, pkgutil, sys
import ms_ranas_jax
bare = sorted(sys.modules)
for name in ms_ranas_jax.__all__:
  getattr(ms_ranas_jax, name)
first = sorted(sys.modules)
names = [
  module.name
  for module in pkgutil.walk_packages(ms_ranas_jax.__path__, 'ms_ranas_jax.')
  if module.name not in sys.argv[2:]
]
for name in names:
  importlib.import_module(name)
import jax
# Refused as soon as there is an array or a device has been asked for.
jax.config.update('jax_num_cpu_devices', 3)
with open(sys.argv[1], 'w') as file:
  json.dump([bare, first, sorted(sys.modules), names], file)
"""
# What cannot be imported where its libraries are not installed, see setup.cfg.
_ABSENT = (
  ()
  if importlib.util.find_spec('litert_converter')
  else ('ms_ranas_jax.export.litert',)
)
# What the package is made of, from the ground up: what stands on a floor may
# import from its own and from those below, and nothing else.
_FLOORS = (
  ('errors', 'version'),
  ('paths',),
  ('fields', 'importing', 'config_files'),
  ('kernels',),
  ('plain_form',),
  ('space',),
  ('costs', 'hypernetwork'),
  ('baselines',),
  ('plain_forms',),
  ('runtime',),
  ('data',),
  ('sections',),
  ('training',),
  ('anytime',),
  ('search',),
  ('families',),
  ('settings',),
  ('model',),
  ('default_config',),
  ('export',),
  ('text_tables',),
  ('report',),
  ('same_run',),
  ('stages', 'predict', 'convert'),
  ('studies', 'watch'),
  ('command',),
  ('main',),
)


def _modules():
  yield ms_ranas_jax
  for module in pkgutil.walk_packages(ms_ranas_jax.__path__, 'ms_ranas_jax.'):
    # It defines flags, which belong to a process, not to a test.
    if module.name != 'ms_ranas_jax.command' and module.name not in _ABSENT:
      yield importlib.import_module(module.name)


def _trees(repo_root):
  """Yields the name below the package, and the tree, of each source file."""
  root = repo_root / 'ms_ranas_jax'
  for path in sorted(root.rglob('*.py')):
    name = '.'.join(path.relative_to(root).with_suffix('').parts)
    yield name, ast.parse(path.read_text(encoding='utf-8'))


def _imported(tree):
  """Yields what of the project a tree imports, as 'space.grid'."""
  for node in ast.walk(tree):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, 'a relative import'
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    for name in names:
      if name.startswith('ms_ranas_jax.'):
        yield name.removeprefix('ms_ranas_jax.')


def test_all_is_sorted_and_complete():
  names = ms_ranas_jax.__all__
  assert list(names) == sorted(set(names))
  # Each is a variable of the package from its first use on.
  assert all(getattr(ms_ranas_jax, name) is not None for name in names)
  public = {
    name
    for name, value in vars(ms_ranas_jax).items()
    if not name.startswith('_') and not isinstance(value, types.ModuleType)
  }
  assert set(names) == public


def test_type_checkers_see_what_is_imported_at_its_first_use(repo_root):
  tree = dict(_trees(repo_root))['__init__']
  seen = {
    alias.asname or alias.name: (node.module, alias.name)
    for node in ast.walk(tree)
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
  }
  assert seen.pop('__version__') == ('ms_ranas_jax.version', '__version__')
  assert set(seen) == set(ms_ranas_jax.__all__)
  for name, (module, there) in seen.items():
    found = getattr(importlib.import_module(module), there)
    assert getattr(ms_ranas_jax, name) is found, name


def test_names_are_listed_and_modules_are_found(monkeypatch):
  assert set(ms_ranas_jax.__all__) <= set(dir(ms_ranas_jax))
  # Also where nobody has imported it before.
  name = 'text_tables'
  monkeypatch.delitem(sys.modules, f'ms_ranas_jax.{name}', raising=False)
  monkeypatch.delitem(vars(ms_ranas_jax), name, raising=False)
  assert ms_ranas_jax.text_tables.__name__ == 'ms_ranas_jax.text_tables'
  for name in 'no_such_name', '__wrapped__':
    assert not hasattr(ms_ranas_jax, name)
  with pytest.raises(ImportError, match='no_such_name'):
    from ms_ranas_jax import no_such_name  # noqa: F401


def test_the_version_is_that_of_the_distribution(repo_root):
  setup = configparser.ConfigParser()
  setup.read(repo_root / 'setup.cfg')
  assert ms_ranas_jax.__version__ == setup['metadata']['version']


def _undocumented(value, name):
  """Yields the names of public things without a docstring of their own."""
  doc = vars(value).get('__doc__') if inspect.isclass(value) else value.__doc__
  # dataclasses makes one up where there is none: the signature.
  if not doc or doc.startswith(f'{value.__name__}('):
    yield name
  if not inspect.isclass(value):
    return
  for field, member in vars(value).items():
    function = member.fget if isinstance(member, property) else member
    function = getattr(function, '__func__', function)
    if (
      not field.startswith('_')
      and inspect.isfunction(function)
      # Not what dataclasses and Flax add.
      and function.__module__ == value.__module__
      and function.__qualname__.startswith(value.__qualname__)
      and not function.__doc__
    ):
      yield f'{name}.{field}'


def test_everything_public_has_a_docstring():
  missing = []
  for module in _modules():
    if not module.__doc__:
      missing.append(module.__name__)
    for name, value in vars(module).items():
      if (
        not name.startswith('_')
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
      ):
        missing += _undocumented(value, f'{module.__name__}.{name}')
  assert missing == []


@pytest.fixture(scope='module')
def imports(tmp_path_factory, repo_root):
  """The result of a process that imports all modules."""
  path = tmp_path_factory.mktemp('imports') / 'modules.json'
  process = subprocess.run(
    [sys.executable, '-c', _IMPORTS, str(path), *_ABSENT],
    capture_output=True,
    check=False,
    cwd=repo_root,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    text=True,
    timeout=120,
  )
  return process, *json.loads(path.read_text() or 'null')


def test_an_import_says_nothing_and_starts_no_device(imports):
  process, _, _, every, names = imports
  assert (process.returncode, process.stdout, process.stderr) == (0, '', '')
  assert len(names) > 30 and set(names) <= set(every)


def test_nothing_is_imported_before_it_is_asked_for(imports):
  _, bare, first, _, _ = imports
  assert [name for name in _SLOW if name in bare] == []
  assert [name for name in _SLOW if name not in first] == []


def test_the_api_needs_no_heavy_library(imports):
  _, _, first, _, _ = imports
  assert [name for name in _HEAVY if name in first] == []


def test_nothing_imports_tensorflow(imports):
  _, _, _, every, _ = imports
  assert 'tensorflow' not in every


def test_imports_only_go_down(repo_root):
  floor = {name: n for n, names in enumerate(_FLOORS) for name in names}
  root = repo_root / 'ms_ranas_jax'
  # All that there is stands on some floor, and nothing else does.
  parts = {path.stem for path in root.glob('*.py')} - {'__init__'}
  parts |= {path.parent.name for path in root.glob('*/__init__.py')}
  assert parts == set(floor)
  wrong, seen = [], 0
  for name, tree in _trees(repo_root):
    part = name.split('.')[0]
    if part == '__init__':  # the public names, of all floors
      continue
    for other in _imported(tree):
      below = other.split('.')[0]
      seen += 1
      if below != part and floor[below] >= floor[part]:
        wrong.append(f'{name} imports {other}')
  assert wrong == []
  assert seen > 500  # The walk has seen them.


def test_kernels_know_no_flax(repo_root):
  for name, tree in _trees(repo_root):
    if not name.startswith('kernels.'):
      continue
    for node in ast.walk(tree):
      if isinstance(node, ast.Import | ast.ImportFrom):
        modules = [a.name for a in node.names] + [getattr(node, 'module', '')]
        assert not any(m.split('.')[0] == 'flax' for m in modules), name


def test_space_knows_no_file_format_or_loop_library(repo_root):
  """Nothing in it knows of a loop, a file or a device, beside genotypes."""
  for name, tree in _trees(repo_root):
    if not name.startswith('space.'):
      continue
    for node in ast.walk(tree):
      modules = []
      if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        modules = [node.module]
      for module in modules:
        assert module.split('.')[0] not in {'optax', 'orbax', 'tqdm'}, name
        assert module != 'os' or name == 'space.genotype', name


def test_one_module_pmaps(repo_root):
  def mentions(tree):
    return any(
      getattr(node, 'attr', getattr(node, 'id', None)) == 'pmap'
      or (isinstance(node, ast.alias) and node.name.endswith('pmap'))
      for node in ast.walk(tree)
    )

  assert [n for n, tree in _trees(repo_root) if mentions(tree)] == [
    'runtime.parallel'
  ]
