"""Kernels are there for what XLA makes of them: they are compiled in full."""

import pytest


@pytest.fixture(autouse=True)
def _all_optimisations(as_users_compile):
  del as_users_compile
