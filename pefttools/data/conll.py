"""Read CoNLL files as rows: one token per line with its columns, and a blank line after each sentence.

Columns are separated by tabs if every line has one, else by white space of any kind. Without a header, the first column
is `tokens`, the last `tags`, and those between are `column2`, `column3` …; a single column is `tokens`. If the first
column contains tags like B-PER and O and the last does not, the two are swapped. If the first column numbers the words
of each sentence, it is `index`, and the second is `tokens`.

CoNLL-U's ten columns have their own names; `tags` are the universal parts of speech, and lines of multi-word tokens
(1-2) are skipped. A row is a sentence with one list per column. Lines that start with -DOCSTART- end a sentence and are
skipped; so are comments, which start with # and have another number of columns than the other lines.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from pefttools.errors import UserError

DOCUMENT = "-DOCSTART-"
UNIVERSAL = ("index", "tokens", "lemma", "tags", "xpos", "feats", "head", "deprel", "deps", "misc")
"""The columns of CoNLL-U."""
TAG = re.compile(r"O|[BIMESULW][-_]\S+|\S+[-_][BIMESULW]")
SPACE = re.compile("[ \t\u00a0\u2000-\u200a\u202f]+")


def rows(lines: Sequence[str], header: Sequence[str] | None, source: str) -> list[dict[str, list[str]]]:
    """One row per sentence: column -> one value per token.

    Raises:
        UserError: a line has more or fewer columns than the others, or an empty column.
    """
    lines = [line.removeprefix("\ufeff") for line in lines]  # a byte-order mark of an appended file
    content = [line for line in lines if line.strip() and not line.startswith((DOCUMENT, "#"))]
    content = content or [line for line in lines if line.strip() and not line.startswith(DOCUMENT)]
    tabs = all("\t" in line for line in content) and any("\t" in line.strip("\t \r") for line in content)
    names = header or _names([_fields(line, tabs) for line in content])
    ranges = tuple(names) == UNIVERSAL
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
        if ranges and len(fields) == len(names) and not fields[0].isdigit():
            continue  # 1-2: spelling of the words 1 and 2 together; 1.1: an omitted word
        if len(fields) != len(names):
            bad.append(f"line {number} has {len(fields)} columns instead of {len(names)}: {line[:60]!r}")
        elif not all(fields):
            empty = names[fields.index("")]
            bad.append(f"line {number} has an empty column {empty!r}: {line[:60]!r}")
        else:
            for name, value in zip(names, fields, strict=True):
                found[-1][name].append(value)
    if bad:
        more = f" (and {len(bad) - 3} more lines)" if len(bad) > 3 else ""
        raise UserError(f"{source}: {'; '.join(bad[:3])}{more}. Columns: {', '.join(names)}; set `header` to name them")
    return found if any(found[-1].values()) else found[:-1]


def _names(lines: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The columns' names, derived from their content."""
    number = len(lines[0]) if lines else 1
    if number == 1:
        return ("tokens",)
    if number == len(UNIVERSAL) and all(re.fullmatch(r"\d+([-.]\d+)?", line[0]) for line in lines):
        return UNIVERSAL
    columns = [Counter(line[i] for line in lines if len(line) == number) for i in range(number)]
    names = [f"column{i}" for i in range(1, number + 1)]
    counted = number > 2 and _counts([line[0] for line in lines])
    if _are_tags(columns[0]) and not _are_tags(columns[-1]):
        others = range(1, number)
        places = max(others, key=lambda i: len(columns[i])), 0  # the column of words has the most distinct values
    else:
        places = int(counted), number - 1
    names[places[0]], names[places[1]] = "tokens", "tags"
    if counted:
        names[0] = "index"
    return tuple(names)


def _counts(values: Sequence[str]) -> bool:
    """Whether a column numbers the words of each sentence."""
    if not all(value.isdecimal() for value in values):
        return False
    found = [int(value) for value in values]
    return all(b == a + 1 or b in (0, 1) for a, b in pairwise(found)) and found[:1] in ([0], [1]) and max(found) > 1


def _are_tags(values: Counter[str]) -> bool:
    """Whether a column contains entity tags: O and tags with a prefix."""
    of_tags = {value: number for value, number in values.items() if TAG.fullmatch(value)}
    return len(of_tags) > 1 and sum(of_tags.values()) >= 0.95 * values.total()


def _fields(line: str, tabs: bool) -> list[str]:
    """A line's columns. U+3000 may be a token of a Chinese text, so it is not a separator."""
    return [field.strip(" ") for field in line.split("\t")] if tabs else SPACE.split(line.strip(" \t\u00a0"))
