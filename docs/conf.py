"""Configuration of the documentation site.

From the repository's root, which is the source folder, so that every page lies and links where it does on a code host:

    sphinx-build -W --keep-going -b html -c docs . build/site
"""

from pathlib import Path

import ssmctb_monai

project = "ssmctb_monai"
author = "The ssmctb_monai developers"
copyright = f"{author}, Apache-2.0"
release = ssmctb_monai.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "docs/api/*.rst", "bundles/*/docs/*.md", "notebooks/*", "benchmarks/**.md"]
exclude_patterns = [".*", "build", "runs", "bundles/sources"]
templates_path = [str(Path(__file__).parent / "_templates")]

myst_heading_anchors = 4
nb_execution_mode = "off"

default_role = "py:obj"  # a name in backticks leads to its entry, where it has one
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "fully-qualified"  # the short one leaves its marks in unions
python_use_unqualified_type_names = True
autosummary_ignore_module_all = False  # what a package exports is what it has
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "to_first_page.html"}
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"
