"""CoNLL files to rows: a token a line with its columns, a blank line after each sentence.

Columns are separated by tabs where the file has any, else by spaces. Without a header the first column is `tokens`,
the last `tags`, and those between are `column2`, `column3` …; of a single column there are only `tokens`. A row is a
sentence and holds a list a column. Lines that open with -DOCSTART- end a sentence and are left out; comments, which
open with # and have other columns than the rest, are left out too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pefttools.errors import UserError

DOCUMENT = "-DOCSTART-"


def rows(lines: Sequence[str], header: Sequence[str] | None, source: str) -> list[dict[str, list[str]]]:
    """One row a sentence, column -> one value a token.

    Raises:
        UserError: lines with more or fewer columns than the others, or with an empty one.
    """
    lines = [line.removeprefix("\ufeff") for line in lines]  # the mark of a file that was appended to another
    content = [line for line in lines if line.strip() and not line.startswith((DOCUMENT, "#"))]
    content = content or [line for line in lines if line.strip() and not line.startswith(DOCUMENT)]
    tabs = any("\t" in line.strip("\t \r") for line in content)
    names = header or _names(len(_fields(content[0], tabs)) if content else 1)
    found: list[dict[str, list[str]]] = [{name: [] for name in names}]
    bad = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith(DOCUMENT):
            if any(found[-1].values()):
                found.append({name: [] for name in names})
            continue
        fields = _fields(line, tabs)
        if line.startswith("#") and (len(fields) != len(names) or (not tabs and "\t" in line)):
            continue
        if len(fields) != len(names):
            bad.append(f"line {number} has {len(fields)} columns instead of {len(names)}: {line[:60]!r}")
        elif not all(fields):
            empty = names[fields.index("")]
            bad.append(f"line {number} has nothing in its column {empty!r}: {line[:60]!r}")
        else:
            for name, value in zip(names, fields, strict=True):
                found[-1][name].append(value)
    if bad:
        more = f" (and {len(bad) - 3} lines more)" if len(bad) > 3 else ""
        raise UserError(f"{source}: {'; '.join(bad[:3])}{more}. Columns: {', '.join(names)}; `header` names them")
    return found if any(found[-1].values()) else found[:-1]


def _names(number: int) -> tuple[str, ...]:
    if number == 1:
        return ("tokens",)
    return ("tokens", *(f"column{i}" for i in range(2, number)), "tags")


def _fields(line: str, tabs: bool) -> list[str]:
    """Only spaces and tabs part columns: other white space (U+3000) may be a token of a Chinese text."""
    return [field.strip(" ") for field in line.split("\t")] if tabs else re.split(r"[ \t]+", line.strip(" \t"))
