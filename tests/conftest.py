"""What every test shares: two CPU devices, strict broadcasting, fixtures."""

import os
import pathlib

import jax
import pytest

from ms_ranas_jax.runtime import interruption

_ROOT = pathlib.Path(__file__).resolve().parent.parent

# Read when the first array is made, so they are set before any test module.
if not jax.config.jax_platforms:
  jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 2)
# An array that is broadcast by accident is an error, not a wrong number.
jax.config.update('jax_numpy_rank_promotion', 'raise')
# The launchers set the same folder; this serves a bare `python -m pytest`.
if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
  jax.config.update('jax_compilation_cache_dir', str(_ROOT / '.cache/jax'))


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
