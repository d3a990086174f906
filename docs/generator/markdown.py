"""Markdown of the generated pages: headings, tables, and docstrings as prose."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

CODE = re.compile(r"(`[^`]+`)")
SPECIAL = re.compile(r"([\\*_\[\]<>$|#{}~])")
ITEM = re.compile(r"^(- |\d+\. )(.*)", re.DOTALL)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, without the columns that are empty in all rows; "" without rows."""
    found = [[cell(value) for value in row] for row in rows]
    columns = [i for i in range(len(header)) if any(row[i] for row in found)]
    lines = [[header[i] for i in columns], ["---"] * len(columns), *([row[i] for i in columns] for row in found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n" if found else ""


def cell(text: str) -> str:
    """Markdown on one line, in which no character ends a table's cell."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


def code(value: object) -> str:
    return f"`{value}`"


def escaped(text: str) -> str:
    """Plain text with `code` as Markdown: outside of code no character has a meaning."""
    return "".join(part if part.startswith("`") else SPECIAL.sub(r"\\\1", part) for part in CODE.split(text))


def prose(docstring: str) -> str:
    """A docstring as Markdown: paragraphs, lists, and indented lines (formulas, commands) as blocks."""
    return "\n\n".join(_blocks(docstring))


def _blocks(docstring: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", docstring.strip("\n")):
        if block.startswith("    "):
            yield f"```text\n{textwrap.dedent(block)}\n```"
        elif ITEM.match(block):
            yield "\n".join(_item(item) for item in re.split(r"\n(?=- |\d+\. )", block))
        else:
            yield escaped(" ".join(block.split()))


def _item(item: str) -> str:
    match = ITEM.match(item)
    assert match is not None
    return match[1] + escaped(" ".join(match[2].split()))


def listed(words: Iterable[str], last: str) -> str:
    """`a, b or c`, with `last` before the last word."""
    *first, final = words
    return f"{', '.join(first)} {last} {final}" if first else final
