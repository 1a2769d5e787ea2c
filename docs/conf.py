"""The docs site: `make docs` builds it into site/, warnings are errors, no network is used."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

DOCS: Final = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]  # this checkout's ncmonitor; site_pages.py

from ncmonitor import __version__  # noqa: E402 - the path comes first

project = "ncmonitor"
author = "The ncmonitor authors"
copyright = f"{author}, MIT licence"
release = __version__
language = "en"

extensions = [
    "myst_parser",  # the pages are Markdown, so that they also read well in the repository
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",  # Google-style docstrings
    "sphinx.ext.viewcode",
    "site_pages",  # ours: the catalogue, and files from outside docs/
]
exclude_patterns = ["_build"]
nitpicky = False  # docstrings name torch and numpy types, which an offline build cannot look up

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3  # links to sections, spelt as GitHub spells them

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"  # the signature and the Args section say it already
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes are listed, not objects of their own
python_maximum_signature_line_length = 88
add_module_names = False

html_theme = (
    "furo"  # light, dark and phone; brings its files along and loads nothing from elsewhere
)
html_title = f"ncmonitor {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "monokai"
