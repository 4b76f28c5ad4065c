"""The version of the package, that of `setup.cfg`."""

__version__ = '0.1.0'
