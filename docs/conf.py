"""Sphinx settings of `make docs`: pages in Markdown, the API from docstrings."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import attn_kernels

project = "attn_kernels"
author = "The attn_kernels authors"
version = release = attn_kernels.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "alabaster"
html_theme_options = {"page_width": "68em", "fixed_sidebar": True}
html_copy_source = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature has them
napoleon_numpy_docstring = False
