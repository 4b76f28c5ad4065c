"""The examples in docstrings: every public name has one, and all run."""

import doctest
import importlib
import inspect
import pkgutil

import jax
import pytest

import ms_ranas_jax
from ms_ranas_jax.kernels import lowering

_FLAGS = doctest.NORMALIZE_WHITESPACE


def _modules():
  """Yields the names of modules with examples; others need no import."""
  for module in pkgutil.walk_packages(ms_ranas_jax.__path__, 'ms_ranas_jax.'):
    source = importlib.util.find_spec(module.name).origin
    with open(source, encoding='utf-8') as file:
      if '>>> ' in file.read():
        yield module.name


def _failures(module_or_test):
  """Returns what went wrong in examples, as a text."""
  found = module_or_test
  if not isinstance(found, list):
    found = doctest.DocTestFinder(exclude_empty=True).find(found)
  runner = doctest.DocTestRunner(verbose=False, optionflags=_FLAGS)
  texts = []
  count = 0
  for test in found:
    count += len(test.examples)
    runner.run(test, out=texts.append)
  assert count
  return ''.join(texts)


@pytest.fixture(autouse=True)
def as_users_have_it():
  """Examples are read by people whose JAX is set up in no special way."""
  with jax.numpy_rank_promotion('allow'), lowering.using('auto'):
    yield


@pytest.mark.parametrize('name', list(_modules()))
def test_examples_say_what_comes_out(name):
  assert _failures(importlib.import_module(name)) == ''


@pytest.mark.parametrize('name', ms_ranas_jax.__all__)
def test_every_public_name_has_an_example(name):
  value = getattr(ms_ranas_jax, name)
  if callable(value):
    text = inspect.getdoc(value)
  else:  # data, which the docstring of its module shows
    place = ms_ranas_jax._PLACES[name]
    text = importlib.import_module(f'ms_ranas_jax.{place}').__doc__
    text = text if f'mr.{name}' in text else ''
  assert '>>> ' in text


def test_a_broken_example_is_found():
  test = doctest.DocTestParser().get_doctest(
    '>>> 1 + 1\n3\n', {}, 'broken', None, 0
  )
  assert 'Expected:\n    3\nGot:\n    2' in _failures([test])
