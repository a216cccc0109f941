"""Configuration of Sphinx: `python -m sphinx -W -b html docs docs/_build/html`.

Builds the pages from Markdown, runs the tutorial and collects the docstrings.
"""

import os
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# The tutorial's kernel is another process.
paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

project = "bdjax"
author = "bdjax authors"
copyright = "bdjax authors, MIT licence"  # noqa: A001, Sphinx's word
text = (ROOT / "bdjax" / "__init__.py").read_text()
release = re.search(r'__version__ = "([^"]+)"', text)[1]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "sphinx_book_theme"
html_title = f"bdjax {release}"
html_show_sourcelink = False
html_copy_source = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_output_stderr = "remove"

# A single backtick in a docstring is code.
default_role = "code"
autodoc_default_options = {"members": True, "imported-members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
# The fields of a NamedTuple are described under Attributes, with their shapes.
napoleon_attr_annotations = False


def skip_field(app, what, name, member, skip, options):
  """Leave out the entries "Alias for field number 0" of a NamedTuple."""
  del app, what, name, options
  return True if type(member).__name__ == "_tuplegetter" else skip


def setup(app):
  """Connect the handler above; called by Sphinx."""
  app.connect("autodoc-skip-member", skip_field)
