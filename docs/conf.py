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

SECTIONS = ("Args:", "Attributes:", "Returns:", "Raises:", "Yields:", "Example:")


def plain_to_rst(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text: an indented block is a formula, an asterisk an asterisk."""
    written: list[str] = []
    heading, formula = "", False
    for line in lines:
        indented = line.startswith("    ")
        if line.strip() and not indented:
            heading, formula = line.strip(), False
        starts_block = indented and written and not written[-1].strip()
        if starts_block and not formula and heading not in SECTIONS:
            written += ["::", ""]
            formula = True
        code = formula or (indented and heading == "Example:")
        written.append(line if code else line.replace("*", r"\*"))
    lines[:] = written


def setup(app) -> None:
    """Read docstrings as they are meant, before napoleon reads their sections."""
    app.connect("autodoc-process-docstring", plain_to_rst, priority=100)
