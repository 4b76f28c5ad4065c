"""What the tests of the search share."""

import jax
import pytest


@pytest.fixture(scope='module')
def quick_compilation():
  """Compiles with few optimisations what runs a few times only."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
