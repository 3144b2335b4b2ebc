"""The site: `uv run --group docs sphinx-build -W -b html docs build/site`."""

import inspect
import os
import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from lightning.pytorch import LightningModule
from sphinx import addnodes
from sphinx.ext import autosummary
from sphinx.transforms import SphinxTransform

from pl_losses.papers.style.vgg import find_oxford

project = "pl_losses"
author = "the pl_losses authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
extensions += ["sphinx.ext.viewcode"]
templates_path = ["_templates"]
html_theme = "pydata_sphinx_theme"
html_title = "pl_losses"
autosummary_imported_members = True
# Where the first sentence of a docstring does not end.
autosummary.WELL_KNOWN_ABBREVIATIONS += ("eq.", "eqs.", "Fig.", "Sec.")
html_theme_options = {"header_links_before_dropdown": 4, "secondary_sidebar_items": ["page-toc"]}
# Only the papers' pages have others beside them; elsewhere an empty column would cost the code its width.
PAPERS = [path.parent.name for path in Path(__file__).parents[1].glob("pl_losses/papers/*/__init__.py")]
html_sidebars = {"**": [], **{page: ["sidebar-nav-bs"] for page in ("papers", *PAPERS)}}
html_sidebars |= {f"{paper}-choices": ["sidebar-nav-bs"] for paper in PAPERS}
html_show_sourcelink = False
# The menu of versions; docs/build_versions.py says where they are.
if site := os.environ.get("PL_LOSSES_SITE"):
    shown = {"json_url": f"{site}/switcher.json", "version_match": os.environ["PL_LOSSES_SITE_VERSION"]}
    html_theme_options |= {"switcher": shown, "check_switcher": False}
    html_theme_options["navbar_end"] = ["version-switcher", "theme-switcher", "navbar-icon-links"]
linkcheck_retries, linkcheck_timeout = 2, 20
# What GitHub draws by script has no anchors in its pages.
linkcheck_anchors_ignore_for_url = [r"https://github\.com/.*"]
html_extra_path = ["explore-losses.html"]  # A page of its own, shown within losses.md.

# Headings get GitHub's anchors, so that links work on both.
myst_heading_anchors = 3
# Notebooks are saved without outputs. A build runs those that it has not run before, and keeps their outputs.
nb_execution_mode, nb_execution_timeout, nb_execution_raise_on_error = "cache", 600, True
nb_execution_cache_path = str(Path(__file__).parents[1] / "build" / "notebooks")
# Without the weights of VGG-19 (the extra `style`) that notebook is shown without outputs.
nb_execution_excludepatterns = [] if find_oxford() else ["notebooks/style.ipynb"]
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

# The reference has a page for each name, under the first of these modules that shows it.
LISTED = re.findall(r"^   (pl_losses[\w.]*)$", (Path(__file__).parent / "api.md").read_text(), re.M)
SEEN: set[int] = set()


def own_names(module):
    """Return the public names of a module that no earlier one shows."""
    here = import_module(module)
    defined = [name for name, one in vars(here).items() if getattr(one, "__module__", None) == module]
    names = [name for name in getattr(here, "__all__", defined) if not name.startswith("_")]
    shown = [name for name in names if id(getattr(here, name)) not in SEEN]
    SEEN.update(id(getattr(here, name)) for name in shown)
    found = {name: getattr(here, name) for name in shown}
    return [name for name, one in found.items() if inspect.isclass(one) or inspect.isroutine(one)]


autosummary_context = {"own": {module: own_names(module) for module in LISTED}}
PAGES = {name: f"{module}.{name}" for module, names in autosummary_context["own"].items() for name in names}


@cache
def methods(paper):
    """Return the methods of a paper's modules, without Lightning's: its page leaves out their class."""
    package = import_module("pl_losses")
    public = [getattr(package, name) for name, page in PAGES.items() if page.count(".") == 1]
    bases = [base for one in public if f".papers.{paper}." in one.__module__ for base in one.__mro__]
    shown = [(base, name) for base in bases if base.__name__ in PAGES for name in vars(base)]
    return {
        name: f"{PAGES[base.__name__]}.{name}"
        for base, name in reversed(shown)
        if inspect.isfunction(vars(base)[name]) and name[0] != "_" and not hasattr(LightningModule, name)
    }


class LinkNames(SphinxTransform):
    """Names of the suite in backticks lead to their page of the reference."""

    default_priority = 400

    def apply(self, **options):
        """Put a reference around each literal that is a public name, with or without its brackets."""
        for literal in list(self.document.findall(nodes.literal)):
            name = re.sub(r"\(.*\)$", "", literal.astext())
            target = PAGES.get(name) or methods(self.env.docname).get(name)
            inside = (nodes.reference, nodes.title, addnodes.pending_xref, addnodes.desc_signature)
            if target is None or any(isinstance(one, inside) for one in parents(literal)):
                continue
            link = addnodes.pending_xref(
                "", refdomain="py", reftype="obj", reftarget=target, refexplicit=True, refwarn=True
            )
            link["refdoc"] = self.env.docname
            literal.replace_self(link)
            link += literal


def parents(node):
    """Yield the nodes around a node."""
    while (node := node.parent) is not None:
        yield node


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


SOURCE = re.compile(r"\[`([\w.]+)`\]\(\.\./(pl_losses/[\w/]+\.py)\)")


def to_reference(link):
    """Turn a function's link to its source, which GitHub has, into one to its entry in the reference."""
    first, *rest = link[1].split(".")
    target = ".".join([PAGES.get(first, ""), *rest])
    return f"{{py:obj}}`{link[1]} <{target}>`" if first in PAGES else link[0]


def link_to_site(app, docname, source):
    """Pages link to the files of the repository, where the site has pages of its own."""
    source[0] = SOURCE.sub(to_reference, source[0].replace("../benchmarks/RESULTS.md", "results.md"))


# A link from a source page to a page of the reference, and to the name there.
BACK = re.compile(r"(api/([\w.]+\.)(\w+)\.html)#[\w.]+?\.\3\b")


def link_back(app, page, template, context, doctree):
    """Source pages link to the names of one module; the reference shows some under another one."""
    if page.startswith("_modules/") and "body" in context:
        context["body"] = BACK.sub(r"\1#\2\3", context["body"])


def find_elsewhere(app, env, node, contnode):
    """Lead a name to its page, by whatever module it is named, and a method to the base class that has it."""
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"].rpartition(".")[2]
    target = PAGES.get(name)
    if target is None and (inside := PAGES.get((node.get("py:class") or "").rpartition(".")[2])):
        module, _, own = inside.rpartition(".")
        bases = (one for one in getattr(import_module(module), own).__mro__ if name in vars(one))
        target = next((f"{PAGES[one.__name__]}.{name}" for one in bases if one.__name__ in PAGES), None)
    if target is None:
        return None
    return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, contnode)


def setup(app):
    """Before docstrings and pages are parsed."""
    app.connect("source-read", link_to_site)
    app.connect("missing-reference", find_elsewhere)
    app.connect("html-page-context", link_back)
    app.add_transform(LinkNames)
    app.connect("autodoc-process-docstring", escape, priority=1)
