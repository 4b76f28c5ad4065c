"""What every test shares: two CPU devices, strict broadcasting, fixtures."""

import gc
import importlib.util
import os
import pathlib

import jax
import numpy as np
import pytest

from ms_ranas_jax.baselines import torch_places
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import interruption

# The plain forms that tests compare with are fixtures too.
pytest_plugins = ['tests.numpy_reference']

_ROOT = pathlib.Path(__file__).resolve().parent.parent

# Read when the first array is made, so they are set before any test module.
if not jax.config.jax_platforms:
  jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 2)
# An array that is broadcast by accident is an error, not a wrong number.
jax.config.update('jax_numpy_rank_promotion', 'raise')
# What is compiled here runs a few times, so it is optimised little: programs of
# cells compile about four times as fast. Processes that tests start inherit it.
# To compile a program in one piece takes less time in all than in many at once,
# as tests run on all processors already.
# XLA ends with an error at a flag that it does not know, so these go only to
# the release that is known to have them.
jax.config.update('jax_disable_most_optimizations', True)
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
_QUICK_FLAGS = (
  '--xla_cpu_use_fusion_emitters=false',
  '--xla_cpu_parallel_codegen_split_count=1',
)
if jax.__version_info__[:2] == (0, 10):
  _flags = os.environ.get('XLA_FLAGS', '').split()
  _flags += [flag for flag in _QUICK_FLAGS if flag not in _flags]
  os.environ['XLA_FLAGS'] = ' '.join(_flags)
# Programs are large trees of objects that live as long as their test: looking
# for cycles among them took a sixth of the time.
gc.set_threshold(200_000, 100, 100)
# The launchers set the same folder; this serves a bare `python -m pytest`.
if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
  jax.config.update('jax_compilation_cache_dir', str(_ROOT / '.cache/jax'))


# Files that take longest go first: nobody waits for one of them at the end.
_LONGEST = (
  *('processes_test.py', 'benchmarks_test.py', 'x64_test.py'),
  *('open_points_test.py', 'stages_test.py', 'runner_test.py'),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Puts the longest files first, and leaves the rest as it is."""
  items.sort(
    key=lambda item: (
      _LONGEST.index(item.path.name)
      if item.path.name in _LONGEST
      else len(_LONGEST)
    )
  )


class StopAtCall(interruption.Interruption):
  """Asks to stop once it has been asked in so many calls of a loop."""

  def __init__(self, call: int):
    super().__init__()
    # A loop asks before and after a call.
    self._questions = 2 * call - 1

  @property
  def requested(self) -> bool:
    """Whether to stop."""
    self._questions -= 1
    return self._questions < 0


@pytest.fixture(scope='session')
def stop_at_call() -> type[StopAtCall]:
  """Makes an interruption that asks to stop in a loop's n-th call."""
  return StopAtCall


@pytest.fixture(scope='module', autouse=True)
def _one_lowering():
  """The way of CPUs, as the program says it: tracing all ways takes longer."""
  with lowering.using(lowering.resolve()):
    yield


@pytest.fixture
def as_users_compile():
  """All optimisations, for what is about the programs that XLA makes."""
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', True)


@pytest.fixture
def plain_figures(monkeypatch):
  """Figures are made and not rendered, which is most of a report's time.

  For what is about the words of a page, or about which figures it has.
  """

  def save(figure, directory, name):
    for kind in 'svg', 'png':
      path = os.path.join(directory, f'{name}.{kind}')
      files.write_text(path, f'{figure.get_figwidth()} inches')
    return '<svg xmlns="http://www.w3.org/2000/svg"/>'

  # By its name, as few tests need matplotlib.
  monkeypatch.setattr('ms_ranas_jax.report.style.save', save)


@pytest.fixture(scope='session')
def repo_root() -> pathlib.Path:
  """The folder that holds setup.cfg."""
  return _ROOT


@pytest.fixture(scope='session')
def shared_cifar10(repo_root: pathlib.Path) -> pathlib.Path:
  """The folder of the local CIFAR-10 copy; the test is skipped without it."""
  path = repo_root.parent / 'shared/data/cifar10'
  if not path.is_dir():
    pytest.skip('no local copy of CIFAR-10 in ../shared/data/cifar10')
  return path


def random_variables(module, *args, seed=0, **kwargs):
  """Variables of a module, every one of them random, without compiling.

  Scales and variances are positive; nothing is 0 or 1, so that a variable that
  is not read, or read in the wrong place, shows.
  """
  shapes = jax.eval_shape(
    lambda *a: module.init({'params': jax.random.key(0)}, *a, **kwargs), *args
  )
  rng = np.random.default_rng(seed)

  def leaf(path, shape):
    name = path[-1].key
    if name.endswith(('scale', 'var')):
      return rng.uniform(0.5, 1.5, shape.shape).astype(np.float32)
    return (0.4 * rng.normal(size=shape.shape)).astype(np.float32)

  return jax.tree_util.tree_map_with_path(leaf, dict(shapes))


@pytest.fixture(scope='session')
def fill():
  """`random_variables`: (module, *call arguments, seed) -> variables."""
  return random_variables


@pytest.fixture(scope='session')
def drawn(repo_root):
  """`benchmarks/drawn.py`: numbers that belong to a name."""
  path = repo_root / 'benchmarks/drawn.py'
  spec = importlib.util.spec_from_file_location('drawn', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='session')
def draw_state(drawn):
  """(network, places) -> a state dict of PyTorch, drawn by name."""

  def draw(network, places):
    shapes = torch_places.variable_shapes(network)
    return {
      name: drawn.tensor(name, place.shape(shapes[place.path]))
      for name, place in places.items()
    }

  return draw


def _nested(value):
  """Yields the jaxprs in a parameter of an equation."""
  if isinstance(value, (tuple, list)):
    for entry in value:
      yield from _nested(entry)
  elif hasattr(value, 'eqns'):
    yield value
  elif hasattr(value, 'jaxpr'):
    yield value.jaxpr


def _jaxpr_macs(jaxpr):
  total = 0
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    if name == 'conv_general_dilated':
      kernel = equation.invars[1].aval.shape
      spec = equation.params['dimension_numbers'].rhs_spec
      per_output = np.prod(kernel) // kernel[spec[0]]
      total += int(equation.outvars[0].aval.size * per_output)
    elif name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      shape = equation.invars[0].aval.shape
      per_output = np.prod([shape[axis] for axis in contracted])
      total += int(equation.outvars[0].aval.size * per_output)
    elif name in ('while', 'scan', 'cond'):
      raise NotImplementedError(name)
    else:
      for value in equation.params.values():
        total += sum(map(_jaxpr_macs, _nested(value)))
  return total


@pytest.fixture(scope='session')
def count_macs():
  """(function, *arguments) -> multiply-adds of its convolutions and products.

  Counted in its jaxpr. A padded pixel counts, as it does in the cost model.
  """
  return lambda function, *args: _jaxpr_macs(
    jax.make_jaxpr(function)(*args).jaxpr
  )


@pytest.fixture(scope='session')
def params_count():
  """(variables) -> the number of params in them."""

  def count(variables):
    leaves = jax.tree.leaves(variables.get('params', {}))
    return sum(int(np.prod(leaf.shape)) for leaf in leaves)

  return count
