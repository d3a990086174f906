"""Formulas as MathML, converted at build time by docutils, so that a page needs neither scripts nor a network."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

SYNONYMS = ((re.compile(r"\\([Bb]igg?)(?![A-Za-z])"), r"\\\1l"), (re.compile(r"\\dots(?![A-Za-z])"), r"\\ldots"))
"""Commands of LaTeX that docutils does not know, and those with the same effect that it knows."""


def setup(app: Sphinx) -> None:
    """Register the renderer `mathml`."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))


def converted(node: nodes.Element, is_block: bool) -> str:
    """The MathML of a formula; one that cannot be converted is a warning, and is shown as LaTeX."""
    text = node.astext()
    known = text
    for command, other in SYNONYMS:
        known = command.sub(other, known)
    try:
        return tex2mathml(known, as_block=is_block)
    except MathError as error:
        logger.warning("the formula %r cannot be converted to MathML: %s", text, error, location=node, type="mathml")
        return f"<code>{escape(text)}</code>"


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(f'<span class="math">{converted(node, is_block=False)}</span>')
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    number = f'<span class="eqno">({node["number"]})</span>' if node.get("number") else ""
    translator.body.append(
        translator.starttag(node, "div", CLASS="math-block") + number + converted(node, is_block=True) + "</div>"
    )
    raise nodes.SkipNode
