"""Configuration of the user guide; CONTRIBUTING.md has the command that builds it."""

import re
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx_gallery.sorting import ExplicitOrder

import sklearn_moe
from sklearn_moe import encoders, experts, gates, regularizers
from sklearn_moe.documentation import address_of_guide

logger = logging.getLogger(__name__)

project = "sklearn_moe"
author = "the sklearn_moe developers"
version = release = sklearn_moe.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["templates"]
exclude_patterns = ["_build", "templates"]

# The class template lists the methods, so that each has one description only.
numpydoc_show_class_members = False
autodoc_typehints = "none"  # the docstrings have the types, with their shapes
maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    # Folders below examples/ hold long studies, which a build must not run.
    "filename_pattern": r"examples[\\/]plot_\w+\.py$",
    "ignore_pattern": r"^(?!plot_)",
    "nested_sections": False,
    # First steps, how the work is divided, searches, smaller and cheaper mixtures.
    "within_subsection_order": ExplicitOrder(
        [
            f"plot_{name}.py"
            for name in (
                "quickstart",
                "table",
                "regimes",
                "reading",
                "images",
                "collapse",
                "attentive_gate",
                "kmeans_gate",
                "dynamical_systems",
                "mixing",
                "grid_search",
                "optuna",
                "distillation",
                "pruning",
                "complexity_experts",
                "zero_computation_experts",
                "mpo_experts",
                "orthogonal_experts",
            )
        ]
    ),
    "capture_repr": (),  # what is printed is enough
    "thumbnail_size": (640, 448),
    "image_scrapers": ("matplotlib",),
    "only_warn_on_example_error": False,
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
}

html_baseurl = address_of_guide()
html_theme = "pydata_sphinx_theme"
html_title = f"sklearn_moe {version}"
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["guide.css"]
html_js_files = ["sortable.js"]
html_sidebars = {"*": []}  # the top level is in the header
html_theme_options = {
    "header_links_before_dropdown": 7,
    "navbar_persistent": ["search-button"],
    # The table of all methods needs the width.
    "secondary_sidebar_items": {"**": ["page-toc"], "methods": []},
}
# Browsers draw MathML themselves: the built guide needs no network.
html_math_renderer = "mathml"


def visit_math(translator, node):
    as_block = isinstance(node, nodes.math_block)
    tex = node.astext()
    try:
        formula = tex2mathml(tex, as_block=as_block)
    except MathError as error:
        logger.warning("%s in the formula %s", error, tex, location=node)
        formula = translator.encode(tex)
    translator.body.append(f"<p>{formula}</p>" if as_block else formula)
    raise nodes.SkipNode


def write_api():
    """Write api.rst, which lists what each room offers."""
    here = Path(__file__).parent
    text = (here / "templates" / "api.rst").read_text()
    for room in (encoders, experts, gates, regularizers):
        names = "\n   ".join(name for name in sorted(room.__all__) if not name.isupper())
        text = text.replace(f"{{{{ {room.__name__.rpartition('.')[2]} }}}}", names)
    (here / "api.rst").write_text(text)


write_api()  # before Sphinx looks for pages


def check_api(app):
    listed = re.findall(r"^   [\w.~]*?(\w+)$", Path(app.srcdir, "api.rst").read_text(), re.M)
    if missing := set(sklearn_moe.__all__).difference(listed):
        raise ExtensionError(f"api.rst lacks {sorted(missing)}.")


def setup(app):
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("builder-inited", check_api)
