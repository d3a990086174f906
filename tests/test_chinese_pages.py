"""The Chinese pages: each English guide has one and the other way round, and what they measure is what it measures."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
ENGLISH_ONLY = {"tree.md", "benchmarks.md"}
"""Pages for those who work on pefttools, and lists of English tables."""
GENERATED = ("reference/",)
"""Folders of pages that are made from the code."""
ENTRANCES = {"how-to.md", "index.md", "start.md", "your-rows.md"}
"""Pages that lead to others: they may be in Chinese alone, and may quote the README and every English page."""
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`[^`\n]+`|\$[^$\n]+\$")
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?%?")
MEASURED = re.compile(r"[.e%]")
"""What distinguishes a measured number from one of things that are counted, which may be written as a word."""
LINK = re.compile(r"\]\(([^)#]+\.md)(?:#[^)]*)?\)")
HAN = r"[\u4e00-\u9fff]"


def pages(folder: Path) -> dict[str, Path]:
    """The guides of a language by their path below its folder."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.md"))}
    return {name: path for name, path in found.items() if not name.startswith(("zh/", *GENERATED))}


ENGLISH, CHINESE = pages(DOCS), pages(DOCS / "zh")


def measured(text: str) -> set[str]:
    """The numbers of prose and tables with a decimal point, an exponent or a percent sign, without that sign."""
    prose = INLINE.sub(" ", FENCED.sub("", text))
    return {found.rstrip("%") for found in NUMBER.findall(prose) if MEASURED.search(found)}


def numbers(text: str) -> set[str]:
    """All numbers of a text: English may have one sign for two numbers, as in "93 to 98%"."""
    return {found.rstrip("%").rstrip(",") for found in NUMBER.findall(text)}


def rows(text: str) -> dict[str, str]:
    """Table rows by their first cell; those of several tables with the same first cell are joined."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("| "):
            first, _, rest = line.removeprefix("| ").partition(" |")
            found[first] = f"{found.get(first, '')} {rest}"
    return found


def code(text: str) -> list[str]:
    """The syntax trees of a page's Python in any order, with all texts the same."""
    trees = [ast.parse(block) for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return sorted(map(ast.dump, trees))


def sources(name: str) -> str:
    """The English text that a Chinese page may take its numbers from."""
    if name not in ENTRANCES:
        return ENGLISH[name].read_text("utf-8")
    return "\n".join(path.read_text("utf-8") for path in (DOCS.parent / "README.md", *ENGLISH.values()))


def test_every_guide_has_a_page_in_both_languages() -> None:
    assert CHINESE
    missing, extra = ENGLISH.keys() - CHINESE.keys() - ENGLISH_ONLY, CHINESE.keys() - ENGLISH.keys() - ENTRANCES
    assert not missing
    assert not extra


@pytest.mark.parametrize("name", [name for name in CHINESE if name in ENTRANCES | ENGLISH.keys()])
def test_measured_numbers_are_those_of_the_english_page(name: str) -> None:
    other = measured(CHINESE[name].read_text("utf-8")) - numbers(sources(name))
    assert not other


@pytest.mark.parametrize("name", [name for name in CHINESE if name in ENGLISH])
def test_rows_of_tables_have_the_numbers_of_the_same_rows_in_english(name: str) -> None:
    english = rows(ENGLISH[name].read_text("utf-8"))
    found = {first: row for first, row in rows(CHINESE[name].read_text("utf-8")).items() if first in english}
    other = {first: measured(row) - numbers(english[first]) for first, row in found.items()}
    assert not {first: strange for first, strange in other.items() if strange}


def test_numbers_rows_and_code_are_found() -> None:
    text = "LoRA 0.944，全量 94%，差 −0.3；`alpha=0.5`，4.8e-7，22,715,526 个，1/N，$T=2.5$\n```\nx 0.7\n```\n"
    assert measured(text) == {"0.944", "94", "0.3", "4.8e-7"}
    assert numbers("in 93 to 98% of 1,024, and 0.5") == {"93", "98", "1,024", "0.5"}
    assert code('```python\nf("a")  # b\n```\n') == code('```python\nf("c")\n```\n') != code("```python\nf(1)\n```\n")
    assert rows("| a | 1 |\n|---|\n| b | 2 |\n\n| a | 3 |\n") == {"a": "  1 |  3 |", "b": "  2 |"}


@pytest.mark.parametrize("name", [name for name in CHINESE if name in ENGLISH])
def test_python_is_that_of_the_english_page_but_for_texts_and_comments(name: str) -> None:
    assert code(CHINESE[name].read_text("utf-8")) == code(ENGLISH[name].read_text("utf-8"))


@pytest.mark.parametrize("name", CHINESE)
def test_paragraphs_are_one_line_and_marks_are_full_width(name: str) -> None:
    """Browsers show a line break between two Chinese characters as a space."""
    lines = INLINE.sub("", FENCED.sub("", CHINESE[name].read_text("utf-8"))).splitlines()
    starts = re.compile(rf"{HAN}|[，。；：、“（]")
    assert not [below for above, below in pairwise(lines) if starts.match(below) and starts.search(above[-1:])]
    assert not [line for line in lines if re.search(rf"{HAN}[,;:?!]|[,;:?!]{HAN}", line)]
    assert not [line for line in lines if re.search(rf"{HAN}[A-Za-z]{{2}}|[A-Za-z]{{2}}{HAN}", line)]


@pytest.mark.parametrize("name", CHINESE)
def test_links_go_to_the_chinese_page_where_there_is_one(name: str) -> None:
    path = CHINESE[name]
    targets = [(path.parent / target).resolve() for target in LINK.findall(path.read_text("utf-8"))]
    english = {target.relative_to(DOCS).as_posix() for target in targets if target.is_relative_to(DOCS)}
    assert not english & CHINESE.keys()
