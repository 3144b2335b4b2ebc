"""The site: `uv run --group docs sphinx-build -W -b html docs build/site`."""

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

project = "pl_losses"
author = "the pl_losses authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "pydata_sphinx_theme"
html_title = "pl_losses"
html_theme_options = {"header_links_before_dropdown": 5, "secondary_sidebar_items": ["page-toc"]}
# Only the papers' pages have others beside them; elsewhere an empty column would cost the code its width.
PAPERS = [path.parent.name for path in Path(__file__).parents[1].glob("pl_losses/papers/*/__init__.py")]
html_sidebars = {"**": [], **{page: ["sidebar-nav-bs"] for page in ("papers", *PAPERS)}}
html_sidebars |= {f"{paper}-choices": ["sidebar-nav-bs"] for paper in PAPERS}
html_show_sourcelink = False
html_extra_path = ["explore-losses.html"]  # A page of its own, shown within losses.md.

# Headings get GitHub's anchors, so that links work on both.
myst_heading_anchors = 3
# Notebooks are saved without outputs; the published site runs them: `-D nb_execution_mode=force`.
nb_execution_mode, nb_execution_timeout, nb_execution_raise_on_error = "off", 600, True
nb_output_stderr = "remove"  # Warnings of other packages.
myst_enable_extensions = ["colon_fence", "dollarmath"]
# MathJax comes with the site. Of its builds this is the one that draws without font files, so that a single
# file of 2 MB is copied out of the package's 24. Its menu would load what is not there.
MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
html_static_path = [str(MATHJAX / "tex-svg.js")]
mathjax_path = "tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}}
autodoc_typehints = "signature"
autodoc_typehints_format, autodoc_preserve_defaults = "short", True
python_maximum_signature_line_length = 100
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_rtype, napoleon_use_ivar = False, True


# A formula, literal code, what is escaped already, and, when none of these, a bar.
BAR = re.compile(r":math:`[^`]*`|``.*?``|\\\||\|", re.S)
# "C." for the number of channels would begin a list.
LETTER = re.compile(r"^(\s*(?:[\w, ]+: )?[A-Za-z])\.(?= |$)", re.M)


def escape(app, what, name, obj, options, lines):
    """In docstrings |W| is an absolute value, in reStructuredText a substitution; and so on."""
    paragraphs = "\n".join(lines).split("\n\n")
    for index, paragraph in enumerate(paragraphs):
        if not paragraph.lstrip().startswith(".. math::") and ">>>" not in paragraph:
            paragraph = BAR.sub(lambda bar: "\\|" if bar[0] == "|" else bar[0], paragraph)
            paragraphs[index] = LETTER.sub(r"\1\.", paragraph)
    lines[:] = "\n\n".join(paragraphs).split("\n")


FACES = ["pl_losses", *(f"pl_losses.{name}" for name in ("losses", "callbacks", "data"))]
FACES += [f"pl_losses.papers.{paper}" for paper in PAPERS]
SOURCE = re.compile(r"\[`([\w.]+)`\]\(\.\./(pl_losses/[\w/]+\.py)\)")


def to_reference(link):
    """Turn a function's link to its source, which GitHub has, into one to its entry in the reference."""
    name, first = link[1], link[1].split(".")[0]
    face = next((face for face in FACES if first in import_module(face).__all__), None)
    return f"{{py:obj}}`{name} <{face}.{name}>`" if face else link[0]


def link_to_site(app, docname, source):
    """Pages link to the files of the repository, where the site has pages of its own."""
    source[0] = SOURCE.sub(to_reference, source[0].replace("../benchmarks/RESULTS.md", "results.md"))


def setup(app):
    """Before docstrings and pages are parsed."""
    app.connect("source-read", link_to_site)
    app.connect("autodoc-process-docstring", escape, priority=1)
