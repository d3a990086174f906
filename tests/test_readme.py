"""The README and the guides: linked files exist, and the generated table is up to date (their blocks: test_docs.py)."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from pefttools.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LONGEST = 140
"""Lines of the README at most: it says what this is and where to read on."""


def benchmark(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]


def test_the_readme_is_short_and_names_every_guide() -> None:
    text = PAGES[0].read_text("utf-8")
    assert len(text.splitlines()) <= LONGEST
    guides = [page.name for page in PAGES[1:] if page.parent == ROOT / "docs"]  # others are in their contents
    assert not [name for name in guides if f"(docs/{name})" not in text]


def test_every_command_is_in_the_guide_of_commands() -> None:
    text = (ROOT / "docs/commands.md").read_text("utf-8")
    assert not [name for name in app if not name.startswith("-") and f"pefttools {name}" not in text]


def test_table_equals_the_results() -> None:
    page = (ROOT / "docs/comparing.md").read_text("utf-8")
    assert benchmark("readme").updated(page) == page
