"""The YAML files that come with the package, recipes and suites, and their one-line descriptions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

Kind = Literal["recipes", "suites"]
DESCRIPTION = re.compile(r"^description:.*\n?(?:[ \t]+.*\n?)*", re.MULTILINE)
"""The key with its value, which may continue on indented lines."""


def folder(kind: Kind) -> Path:
    """The folder of the files: in the installed package, or in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / kind
    return inside if inside.is_dir() else package.parent / {"recipes": "recipes", "suites": "benchmarks/suites"}[kind]


def files(kind: Kind) -> dict[str, Path]:
    """Name -> file, sorted by name."""
    found = {file.stem: file for file in folder(kind).rglob("*.yaml")}
    assert found, f"no {kind} in {folder(kind)}"
    return {name: found[name] for name in sorted(found)}


def descriptions(kind: Kind) -> dict[str, str]:
    """Name -> one-line description; the rest of the files is not parsed."""
    return {name: _description(file.read_text("utf-8")) for name, file in files(kind).items()}


def _description(text: str) -> str:
    import yaml

    match = DESCRIPTION.search(text)
    return str(yaml.safe_load(match[0])["description"]) if match else ""
