"""The documentation site: `sh tests/run` builds it into `build/docs`, and warnings are errors."""

import trioswitch

project = "trioswitch"
copyright = "the authors of trioswitch"
release = version = trioswitch.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"trioswitch {version}"
source_suffix = {".md": "markdown"}
myst_heading_anchors = 4
# Links to files outside of docs/ (README, tests, examples) lead to the repository.
suppress_warnings = [
    "myst.xref_missing",
    "ref.python",  # a field that is called `bytes` is not the type
]
# Example configurations of nginx, and messages, are not highlighted by their language.
highlight_language = "none"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_class_signature = "separated"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": True}
exclude_patterns = ["build"]
