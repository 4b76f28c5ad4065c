"""The default config; ms_ranas_jax/sections.py says what the fields are.

./launch/local.sh --config=configs/default.py
"""

from ml_collections import ConfigDict

from ms_ranas_jax import default_config


def get_config() -> ConfigDict:
  """Returns the default config, locked."""
  return default_config.get_config()
