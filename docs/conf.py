"""How Sphinx makes the site: make docs."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import wals_gpu  # noqa: E402

project = "wals_gpu"
author = "The wals_gpu authors"
copyright = "The wals_gpu authors; Apache-2.0"
version = release = wals_gpu.__version__

# The source is the repository as it is, so that a link leads to the same file here and in a checkout.
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "examples/*.ipynb",
    "benchmarks/README.md",
    "wals_gpu/datasets/debian_packages.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
]
exclude_patterns = [".venv*", "build", "dist", "site", "**/.ipynb_checkpoints"]

extensions = [
    "myst_nb",  # pages in Markdown, and notebooks
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_copybutton",
    "site_reference",  # tools/site_reference.py
]
nb_execution_mode = "off"  # they are kept with their outputs; tests run them
myst_heading_anchors = 4
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

autosummary_generate = False  # tools/site_reference.py writes the pages
autodoc_typehints = "none"  # docstrings say types in words
numpydoc_show_class_members = False
default_role = "code"

# Every reference must be resolved; names of other packages are not linked, so that building needs no network.
nitpicky = True

html_theme = "pydata_sphinx_theme"  # its fonts and icons are its own files: pages ask nobody else for anything
html_title = "wals_gpu"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navbar_align": "left",
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "back_to_top_button": False,
}
