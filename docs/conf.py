"""Builds the documentation site: python -m sphinx -W -b html docs docs/_build"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from math_core import LatexToMathML

# python -m puts the repository root on the path, whose source folder would hide the installed package
ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]

import stableloss  # noqa: E402

project = "stableloss"
author = "The stableloss developers"
project_copyright = "The stableloss developers"
version = release = stableloss.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
# An adapter imports its library, which the site can be built without. Those that are installed are
# imported before the others are mocked: thinc looks at the version of torch.
LIBRARIES = ("autograd", "dask", "lightgbm", "sklearn", "thinc", "torch", "xgboost")
autodoc_mock_imports = [name for name in LIBRARIES if find_spec(name) is None]
for name in LIBRARIES:
    if name not in autodoc_mock_imports:
        import_module(name)
numpydoc_show_class_members = False
# forward(), below its class, and not Class.forward(), which is cut off there
toc_object_entries_show_parents = "hide"

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

pygments_dark_style = "github-dark"

html_theme = "furo"
html_title = f"stableloss {version}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_copy_source = False
html_show_sphinx = False


math = LatexToMathML()


def visit_inline_math(self, node):
    self.body.append(math.convert_with_local_state(node.astext(), displaystyle=False))
    raise nodes.SkipNode


def visit_display_math(self, node):
    formula = math.convert_with_local_state(node.astext(), displaystyle=True)
    self.body.append(f'<div class="math">{formula}</div>\n')
    raise nodes.SkipNode


def setup(app):
    # browsers draw MathML themselves: no script, and nothing to fetch when reading offline
    app.add_html_math_renderer(
        "mathml", inline_renderers=(visit_inline_math, None), block_renderers=(visit_display_math, None)
    )
