"""Kernels are there for what XLA makes of them: they are compiled in full."""

import pytest


@pytest.fixture(scope='module', autouse=True)
def _one_lowering():
  """Nothing is said: each test says which way it is about."""


@pytest.fixture(autouse=True)
def _all_optimisations(as_users_compile):
  del as_users_compile
