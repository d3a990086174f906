"""Pages in one file that need no network: a template, its data, and Vega to draw the charts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pefttools.bench import vega

HERE = Path(__file__).parent
SHARED = "page.js"
"""The script that all pages share; it draws the charts."""
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def page(
    template: str,
    title: str,
    data: Any,
    scripts: Sequence[str],
    folder: Path = HERE,
    styles: Sequence[Path] = (),
    **values: Any,
) -> str:
    """The HTML page of a template; texts are escaped.

    Args:
        data: what the scripts read from the element `data`; a page without any has no charts.
        scripts: files that share one script element, after `SHARED`.
        folder: of the template and the scripts.
        styles: style sheets to add to the shared one.
        values: what the template writes besides.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, HERE]), autoescape=True, undefined=jinja2.StrictUndefined
    )
    files = [HERE / SHARED, *(folder / name for name in scripts)]
    return environment.get_template(template).render(
        title=title, data=embedded(data), vega=vega.javascript() if data else "",
        style="".join(file.read_text("utf-8") for file in (HERE / "report.css", *styles)),
        script="".join(file.read_text("utf-8") for file in files), **values,
    )  # fmt: skip


def embedded(value: Any) -> str:
    """A value as JSON, escaped so that no text in it can end the script element that it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign, code in ESCAPES.items():
        text = text.replace(sign, code)
    return text
