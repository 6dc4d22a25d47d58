"""Sphinx: one site for the five packages; its pages run as it is built."""

from braintrace import __version__

project = "braintrace"
author = "The braintrace authors"
release = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
myst_enable_extensions = ["dollarmath"]

napoleon_google_docstring = False
napoleon_use_ivar = True  # attributes of several classes have one name: as targets they would be ambiguous
autodoc_typehints = "description"
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = "braintrace"
