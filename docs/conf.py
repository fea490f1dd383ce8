"""Configuration of Sphinx. `make docs` builds the site; every warning is an error."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from paddle_llm import __version__  # noqa: E402

project = "paddle_llm"
author = "the paddle_llm contributors"
copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "plain_markdown"]
exclude_patterns = ["_build", "_ext"]

html_theme = "furo"
html_title = f"paddle_llm {release}"
html_show_copyright = False

# Links such as configuration_files.md#paths need anchors of headings.
myst_heading_anchors = 3
# Quotes and dashes stay as written: `--flag` in a text is not a dash.
smartquotes = False
highlight_language = "text"
# For reference/python_api.md. Docstrings write code in single backticks.
default_role = "code"
autodoc_typehints = "description"
autodoc_member_order = "bysource"
