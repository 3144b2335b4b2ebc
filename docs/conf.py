"""The site: `uv run --group docs sphinx-build -W -b html docs build/site`."""

from pathlib import Path

project = "pl_losses"
author = "the pl_losses authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "pydata_sphinx_theme"
html_title = "pl_losses"
html_theme_options = {"header_links_before_dropdown": 5, "secondary_sidebar_items": ["page-toc"]}
# Only the papers' pages have others beside them; elsewhere an empty column would cost the code its width.
PAPERS = [path.parent.name for path in Path(__file__).parents[1].glob("pl_losses/papers/*/__init__.py")]
html_sidebars = {"**": [], **{page: ["sidebar-nav-bs"] for page in ("papers", *PAPERS)}}
html_show_sourcelink = False
html_extra_path = ["explore-losses.html"]  # A page of its own, shown within losses.md.

# Headings get GitHub's anchors, so that links work on both.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
autodoc_typehints = "signature"
autodoc_typehints_format, autodoc_preserve_defaults = "short", True
python_maximum_signature_line_length = 100
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_rtype, napoleon_use_ivar = False, True


def escape_bars(app, what, name, obj, options, lines):
    """In docstrings |W| is an absolute value, in reStructuredText a substitution."""
    lines[:] = [line if ">>>" in line or "``" in line else line.replace("|", "\\|") for line in lines]


def link_to_site(app, docname, source):
    """Pages link to the files of the repository, where the site has pages of its own."""
    source[0] = source[0].replace("../benchmarks/RESULTS.md", "results.md")


def setup(app):
    """Before docstrings and pages are parsed."""
    app.connect("source-read", link_to_site)
    app.connect("autodoc-process-docstring", escape_bars, priority=1)
