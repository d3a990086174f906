"""What the documentation site needs besides Sphinx, as one extension: the generated reference, formulas as MathML,
links between the two languages, and search in Chinese."""

from __future__ import annotations

from typing import Any

from sphinx import search
from sphinx.application import Sphinx

from generator import chinese_search, languages, mathml


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything with Sphinx."""
    mathml.setup(app)
    languages.setup(app)
    search.languages["zh"] = chinese_search.Chinese
    app.connect("builder-inited", _write_reference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _write_reference(app: Sphinx) -> None:
    if app.config.language == "en":
        from generator import pages  # it imports pefttools

        pages.write()
