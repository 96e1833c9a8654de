"""Sphinx settings; `make docs` builds with warnings as errors. Pages made from the code come from pages.py."""

from __future__ import annotations

import sys
from pathlib import Path

import nearfar

sys.path.insert(0, str(Path(__file__).parent))

project = "nearfar"
author = "the nearfar authors"
copyright = author
version = release = nearfar.__version__
language = "en_GB"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "pages",
]
exclude_patterns = ["_build"]
# A single backtick in a docstring is code, as it is in Markdown.
default_role = "code"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Relations"]

html_theme = "furo"
html_title = "nearfar"
html_copy_source = False
html_show_sphinx = False
