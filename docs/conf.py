"""The documentation site: `sphinx-build -W --keep-going -n -b html docs build/site` (pip install '.[docs]')."""

import re

from sphinx.application import Sphinx

import kdcache

project = "kdcache"
copyright = "the kdcache developers"
version = release = kdcache.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc", "sphinx_copybutton"]

myst_heading_anchors = 4
smartquotes = False  # x' is a name, and -- begins an option

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's sections state the types, with shapes
numpydoc_show_class_members = False

html_theme = "furo"
html_theme_options = {"top_of_page_buttons": []}
html_title = f"kdcache {version}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]

LISTED = re.compile(r"\[[^]]+\]\((?!https?:|\.\./)([\w./-]+)\.(?:md|rst)\)")
INDEXES = ("index", "results/index")


def add_toctrees(app: Sphinx, name: str, source: list[str]) -> None:
    """Make each section of an index, whose lists are links that GitHub shows too, a part of the navigation."""
    if name not in INDEXES:
        return
    for section in re.split(r"^## ", source[0], flags=re.MULTILINE)[1:]:
        caption, pages = section.splitlines()[0], "\n".join(dict.fromkeys(LISTED.findall(section)))
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"


def setup(app: Sphinx) -> None:
    """Connect to Sphinx."""
    app.connect("source-read", add_toctrees)
