"""The site: ``make docs``. Its sources are the Markdown pages of the repository, wherever they lie."""

import re
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("extract", "object-localization", "object-segmentation", "semantic-segmentation", "eagle", "docs")
sys.path[:0] = [str(ROOT / room) for room in ROOMS]

project, root_doc, smartquotes = "spectralseg", "docs/index", False
include_patterns = ["*.md", "docs/**", "data/README.md", "data/samples/README.md", "tests/benchmarks/README.md"]
exclude_patterns = ["docs/_build", ".*", "outputs", "**/conf.py"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions, myst_heading_anchors = ["dollarmath"], 4
autodoc_member_order, napoleon_google_docstring, napoleon_use_ivar = "bysource", False, True
nb_execution_mode, nb_execution_raise_on_error, nb_execution_timeout = "force", True, 300
nb_output_stderr = "remove"  # tqdm asks for widgets
html_theme, html_title, html_show_copyright = "furo", "spectralseg", False
html_math_renderer = "mathml"  # MathJax would be fetched from elsewhere


def _math(translator: nodes.NodeVisitor, node: nodes.math | nodes.math_block) -> None:
    block = isinstance(node, nodes.math_block)
    shown = convert(node.astext(), display="block" if block else "inline")
    translator.body.append(f'<div style="overflow-x: auto">{shown}</div>' if block else shown)
    raise nodes.SkipNode


def _link_functions(app: Sphinx, page: str, source: list[str]) -> None:
    """``](../room/package/module.py#name)`` leads to the file on GitHub, and here to the function's page."""
    link = re.compile(r"\]\((?:\.\./)+[\w-]+/((?:\w+/)+\w+)\.py#(\w+)\)")
    source[0] = link.sub(lambda match: f"](#{match[1].replace('/', '.')}.{match[2]})", source[0])


def _escape_bars(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """``|x|`` in a docstring is an absolute value, not a substitution of reStructuredText."""
    lines[:] = [re.sub(r"(``.*?``)|\|", lambda match: match[1] or r"\|", line) for line in lines]


def setup(app: Sphinx) -> None:
    """Write the pages that are made from the code, before sources are looked for."""
    from pages import write_pages

    write_pages(ROOT / "docs")
    app.add_html_math_renderer("mathml", (_math, None), (_math, None))
    app.connect("source-read", _link_functions)
    app.connect("autodoc-process-docstring", _escape_bars)
