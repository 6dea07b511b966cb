"""Configuration of sphinx: ``python -m sphinx -W _doc _doc/_build/html``."""

import logging
import os
import pydoc
import re
import sys
from pathlib import Path

import click

import onnxcustom

# A package of furo's turns on all messages at level INFO.
for name in ("onnx_ir", "onnxcustom"):
    logging.getLogger(name).setLevel(logging.WARNING)

project = "onnxcustom"
author = "The onnxcustom developers"
project_copyright = f"2026, {author}"
release = onnxcustom.__version__
version = release

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "examples"]
html_theme = "furo"
html_title = f"onnxcustom {release}"
html_copy_source = False

# Each object is documented once, by the module that defines it.
autodoc_default_options = {"members": True, "ignore-module-all": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = False
napoleon_use_ivar = True
# Types are prose ("ndarray of shape (rows,)"): their words are no references.
napoleon_use_param = False
napoleon_use_rtype = False
suppress_warnings = ["ref.python"]

# One example takes a model from a wheel: where it cannot be downloaded, the example is shown and not run.
sys.path.insert(0, str(Path(__file__).parents[1] / "_unittests" / "ut_gradient" / "rules"))
# Where the gallery finds graph_scraper.
sys.path.insert(0, str(Path(__file__).parent))
from model_cache import fetch

member = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
found = fetch("rapidocr-onnxruntime", "1.4.4", member)
if isinstance(found, Path):
    os.environ["ONNXCUSTOM_MODELS"] = str(found.parents[1])

# Stories take minutes each and are shown with what they printed; ONNXCUSTOM_STORIES=1 runs them.
stories = r"|story_" if os.environ.get("ONNXCUSTOM_STORIES") else ""

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": (r"plot_" if isinstance(found, Path) else r"plot_(?!finetune_text_direction)")
    + stories,
    "abort_on_example_error": True,
    "download_all_examples": False,
    "image_scrapers": ("matplotlib", "graph_scraper"),
    "show_memory": False,
}


def skip_metadata_routing(app, what, name, obj, skip, options):
    """scikit-learn's own set_fit_request and the like, which refer to its glossary."""
    return True if name.startswith("set_") and name.endswith("_request") else None


def show_formulas(app, what, name, obj, options, lines):
    """The docstring of a rule is its formula, that of a command its help: neither is markup."""
    if isinstance(obj, click.Command):
        lines[:] = ["See :doc:`/command_line`.", ""]
    if name.startswith("onnxcustom.gradient.rules.") and what == "function":
        lines[:] = ["::", "", *(f"   {line}" for line in lines), ""]


def link_pages(app, relative_path, parent, content):
    """README.rst names pages as files: in the documentation they are pages."""
    content[0] = re.sub(r"`([^`<]+?)\s+<_doc/(\w+)\.rst>`__", r":doc:`\1 <\2>`", content[0])


def resolve_public_name(app, env, node, contnode):
    """A name that a package passes on, as onnxcustom.optim does Adam: documented where it is defined."""
    if node.get("refdomain") != "py":
        return None
    target, module = node["reftarget"], node.get("py:module") or ""
    for path in (target, f"{module}.{target}", f"{module.rpartition('.')[0]}.{target}"):
        found = pydoc.locate(path) if path.startswith("onnxcustom.") else None
        name = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
        if found is not None and name != path:
            domain = env.get_domain("py")
            return domain.resolve_xref(
                env, node["refdoc"], app.builder, node["reftype"], name, node, contnode
            )
    return None


def setup(app):
    app.connect("autodoc-skip-member", skip_metadata_routing)
    app.connect("autodoc-process-docstring", show_formulas)
    app.connect("include-read", link_pages)
    app.connect("missing-reference", resolve_public_name)
