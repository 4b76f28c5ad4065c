"""How Sphinx builds the site: launch/docs.sh."""

import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent / '_ext'))

from ms_ranas_jax.version import __version__  # noqa: E402

project = 'ms_ranas_jax'
author = 'the authors of ms_ranas_jax'
release = __version__
extensions = [
  'config_reference',
  'myst_parser',
  'sphinx.ext.autodoc',
  'sphinx.ext.mathjax',
  'sphinx.ext.napoleon',
  'sphinx_copybutton',
]
exclude_patterns = ['_ext', '_build']
html_theme = 'furo'
html_title = f'ms_ranas_jax {release}'
html_show_sourcelink = False
# Without a copyright, which the licence has.
html_show_copyright = False

myst_enable_extensions = ['colon_fence', 'deflist', 'dollarmath']
myst_heading_anchors = 4
# Indented blocks are commands.
highlight_language = 'none'

autodoc_typehints = 'none'
autodoc_member_order = 'bysource'
# A module of Flax has fields of every module, which say nothing here.
autodoc_default_options = {'exclude-members': 'parent, name'}
autodoc_class_signature = 'mixed'
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def _of_the_site(app: Any, name: str, source: list[str]) -> None:
  """Leads links to READMEs, as a repository shows them, to pages here."""
  del app, name
  source[0] = source[0].replace('](../benchmarks/README.md', '](benchmarks.md')


def setup(app: Any) -> None:
  """Adds the hook."""
  app.connect('source-read', _of_the_site)
