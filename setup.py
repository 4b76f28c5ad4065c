"""What setup.cfg cannot say: `configs/` is a package of what is installed."""

import setuptools

setuptools.setup(
  packages=[
    *setuptools.find_packages(include=('ms_ranas_jax', 'ms_ranas_jax.*')),
    'ms_ranas_jax.configs',
  ],
  package_dir={'ms_ranas_jax.configs': 'configs'},
)
