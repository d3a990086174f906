"""Settings of Sphinx that both sites share."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from generator.places import ROOT


def shared_settings() -> dict[str, Any]:
    """Name -> value, for a conf.py."""
    return {
        "project": "pefttools",
        "release": metadata.version("pefttools"),
        "extensions": ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generator"],
        "html_theme": "furo",
        "html_show_search_summary": False,  # from a disk, a browser refuses to read the pages for them
        "html_static_path": [str(ROOT / "docs" / "static")],
        "html_css_files": ["style.css"],
        "templates_path": [str(ROOT / "docs" / "templates")],
        "html_copy_source": False,
        "html_show_sphinx": False,
        "html_show_copyright": False,
        "html_math_renderer": "mathml",
        "html_permalinks_icon": "#",
        "highlight_language": "sh",
        "smartquotes": False,  # it would turn the dashes of --out into one
        "myst_enable_extensions": ["dollarmath"],
        "myst_dmath_allow_space": False,
        "myst_dmath_allow_digits": False,
        "myst_heading_anchors": 4,
    }
