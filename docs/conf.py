"""Configure the site: `pip install -e '.[all]' --group docs && sphinx-build -W -n -b html docs docs/_build/html`."""

import sys
from importlib.util import find_spec
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_extensions"), str(DOCS / "_generate"), str(DOCS.parent)]

import lowrank_core  # noqa: E402 - the folders above come first

project = "lowrank_core"
author = "the lowrank_core developers"
project_copyright = author
version = release = lowrank_core.__version__

# The notebook is run by myst-nb, beside PyTorch and PEFT: without these the site is built without it.
NOTEBOOKS = all(find_spec(name) for name in ("myst_nb", "pandas", "peft"))
extensions = [
    *("sphinx.ext.autodoc", "numpydoc", "myst_nb" if NOTEBOOKS else "myst_parser"),
    *("generated", "mathml", "run", "line_breaks"),
]
exclude_patterns = ["_build", "_generated", *([] if NOTEBOOKS else ["guides/notebook.md"])]
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
myst_enable_extensions = ["amsmath", "attrs_block", "deflist", "dollarmath"]
myst_heading_anchors = 3
nitpicky = True
suppress_warnings = ["config.cache", *([] if NOTEBOOKS else ["toc.not_readable"])]

# MathML, so that the pages load nothing from the network.
html_math_renderer = "mathml"

# The docstrings have the types in words, and annotations in signatures would repeat them.
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

html_theme = "furo"
html_title = "lowrank_core"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
