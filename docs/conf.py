"""The documentation site: ``python -m sphinx -W --keep-going -b html docs build/site``."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])  # of kernels

from mfac_linalg import __version__  # noqa: E402 (the one of this folder)

project = "mfac_linalg"
author = "The mfac_linalg developers"
version = release = __version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_nb",  # pages in Markdown; those with a kernel in their first lines are notebooks, and are executed
    "sphinx_design",
    "sphinx_copybutton",
    "site_extension",  # beside this file
]
exclude_patterns = ["**/_*.md"]
default_role = "py:obj"  # of `name` in docstrings
smartquotes = False  # "mean" is an argument

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 4

nb_execution_mode = "cache"  # in .jupyter_cache beside the folder that is built
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True

autodoc_typehints = "none"  # numpydoc's sections say more: shapes
autodoc_member_order = "bysource"
add_module_names = False
toc_object_entries_show_parents = "hide"
autosummary_generate = False
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = "mfac_linalg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/logo.svg"
html_copy_source = False
html_show_sourcelink = False
WITHOUT_SUBPAGES = ["index", "start", "theory", "performance", "search", "genindex", "py-modindex"]
html_sidebars = {name: [] for name in WITHOUT_SUBPAGES}
html_theme_options = {
    "logo": {"text": "mfac_linalg", "image_light": "_static/logo.svg", "image_dark": "_static/logo.svg"},
    "header_links_before_dropdown": 7,
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "navigation_depth": 2,
    "show_nav_level": 2,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": True,
}
copyright = author
