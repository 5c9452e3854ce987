"""Sphinx's settings: `make docs` builds a site of docs/, notebooks/ and the READMEs of configs/.

Sphinx reads the repository's root, so links between its Markdown files are the same here as on a
code forge. A link to any other file leads to a copy of that file.
"""

import pkgutil
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.ext import apidoc
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util import logging

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from hcformer_mm.version import __version__  # noqa: E402

logger = logging.getLogger(__name__)

project = "hcformer_mm"
release = __version__
copyright = "the authors of hcformer_mm, Apache License 2.0"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]

# Pages
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "docs/api/*.rst",
    "configs/*/README.md",
    "notebooks/*.ipynb",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
exclude_patterns = [".*", "data", "docs/templates", "hcformer_mm", "site", "tests", "work_dirs"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "force"  # the notebooks are kept without outputs
nb_execution_excludepatterns = ["your_own_data.ipynb"]  # it trains for minutes
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_output_stderr = "remove"

# API reference
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes would be described twice
# What stands before a colon in a constant's docstring is no type: types are annotated.
GoogleDocstring._consume_inline_attribute = lambda self: ("", self._dedent(self._consume_to_end()))
add_module_names = False
nitpicky = True

# Looks
html_theme = "furo"
html_title = f"hcformer_mm {release}"
html_theme_options = {"top_of_page_buttons": []}
html_copy_source = False
html_extra_path = ["redirect"]
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
copybutton_exclude = ".linenos, .gp, .go"


def write_stubs(app):
    """Write a page for each public module of the package into docs/api/."""
    options = ["-q", "--force", "--separate", "--remove-old", "--no-toc"]
    folders = ["--templatedir", ROOT / "docs/templates", "--output-dir", ROOT / "docs/api"]
    apidoc.main([*options, *map(str, folders), str(ROOT / "hcformer_mm")])


def list_exports(app, what, name, obj, options, lines):
    """Name at the head of a package's page what it exports."""
    exports = [each for each in getattr(obj, "__all__", ()) if not each.startswith("_")]
    if what == "module" and hasattr(obj, "__path__") and exports:
        links = ", ".join(f":py:obj:`~{name}.{each}`" for each in sorted(exports))
        lines += ["", f"Import from here: {links}."]


def resolve(app, env, node, content):
    """Resolve what a package exports (``hcformer_mm.ops.decode``) and what a library defines.

    What does not exist anywhere stays unresolved, which is an error.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"].lstrip("~.")
    module = node.get("py:module") or ""
    places = (f"{module}.{node.get('py:class')}", module, module.rpartition(".")[0], "")
    for place in places:
        try:
            found = pkgutil.resolve_name(f"{place}.{target}".lstrip("."))
        except (AttributeError, ImportError, ValueError):
            continue
        name = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
        domain, kind, page = env.domains.python_domain, node["reftype"], node["refdoc"]
        return domain.resolve_xref(env, page, app.builder, kind, name, node, content) or content
    return None


def link_modules(app, doctree):
    """Lead links to the package's files to the modules' pages."""
    for node in list(doctree.findall(addnodes.download_reference)):
        path = (ROOT / node["refdoc"]).parent.joinpath(node["reftarget"]).resolve()
        if path.suffix == ".py" and path.is_relative_to(ROOT / "hcformer_mm"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            page = app.builder.get_relative_uri(node["refdoc"], f"docs/api/{module}")
            node.replace_self(nodes.reference("", "", *node.children, refuri=page, internal=True))


def write_mathml(translator, node):
    """Write a formula as MathML, which browsers draw without a script."""
    try:
        formula = tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block))
    except MathError as error:
        logger.warning("%s", error, location=node)
        formula = node.astext()
    translator.body.append(formula)
    raise nodes.SkipNode


def setup(app):
    """Connect the functions above."""
    app.connect("builder-inited", write_stubs)
    app.connect("autodoc-process-docstring", list_exports)
    app.connect("missing-reference", resolve)
    app.connect("doctree-read", link_modules, priority=400)  # before files to copy are collected
    app.add_html_math_renderer("mathml", (write_mathml, None), (write_mathml, None))
