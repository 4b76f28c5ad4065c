"""Lets older tools install the project; everything is said in setup.cfg."""

import setuptools

setuptools.setup()
