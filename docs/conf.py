"""Settings of Sphinx, which makes the documentation site: `nox -s docs`.

The source directory is the whole repository, ``sphinx-build -c docs . build/site``, so that a link
from a document to another one, or to a figure, leads there on GitHub and in the site alike.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import bnbx

if TYPE_CHECKING:
    from sphinx.application import Sphinx


project = "bnbx"
author = "bnbx contributors"
project_copyright = author
version = release = bnbx.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
include_patterns = ["docs/**.md", "*.md"]
root_doc = "docs/index"

# Markdown as GitHub reads it: the same anchors, one for each heading.
myst_heading_anchors = 4

# The docstrings are in NumPy's style; a class has one, for itself and its constructor.
napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_default_options = {"members": True}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"bnbx {release}"
html_show_sourcelink = False
html_copy_source = False
# The site's first page is docs/index.html; its address should not have to say so.
templates_path = ["_templates"]
html_additional_pages = {"index": "redirect.html"}


def without_links_to_folders(app: Sphinx, document: str, source: list[str]) -> None:
    """Leave the text of links to folders, which GitHub shows and a site does not."""
    folder = Path(app.env.doc2path(document)).parent

    def text(link: re.Match[str]) -> str:
        return link[1] if (folder / link[2]).is_dir() else link[0]

    source[0] = re.sub(r"\[([^\]]*)\]\(([^)\s#:]+)\)", text, source[0])


def setup(app: Sphinx) -> None:
    """Connect the above."""
    app.connect("source-read", without_links_to_folders)
