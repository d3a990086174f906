"""CoNLL files to rows: a token a line with its columns, a blank line after each sentence.

Columns are separated by tabs where every line has one, else by white space of any kind. Without a header the first
column is `tokens`, the last `tags`, and those between are `column2`, `column3` …; of a single column there are only
`tokens`. Where the first column holds tags like B-PER and O and the last does not, they are taken the other way round.
A first column that numbers the words of each sentence is `index`, and the second `tokens`.
CoNLL-U's ten columns have their own names, of which `tags` are the universal parts of speech; lines of several words
(1-2) are left out. A row is a sentence and holds a list a column. Lines that open with -DOCSTART- end a sentence and
are left out; comments, which open with # and have other columns than the rest, are left out too.
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
    """One row a sentence, column -> one value a token.

    Raises:
        UserError: lines with more or fewer columns than the others, or with an empty one.
    """
    lines = [line.removeprefix("\ufeff") for line in lines]  # the mark of a file that was appended to another
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
            continue  # 1-2: what the words 1 and 2 are written as; 1.1: a word that is not there
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


def _names(lines: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """What the columns are called, by what is in them."""
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
        places = max(others, key=lambda i: len(columns[i])), 0  # of several columns the words differ most
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
    """Whether a column is of entity tags: O and others with a prefix."""
    of_tags = {value: number for value, number in values.items() if TAG.fullmatch(value)}
    return len(of_tags) > 1 and sum(of_tags.values()) >= 0.95 * values.total()


def _fields(line: str, tabs: bool) -> list[str]:
    """A line's columns. U+3000 may be a token of a Chinese text: it parts nothing."""
    return [field.strip(" ") for field in line.split("\t")] if tabs else SPACE.split(line.strip(" \t\u00a0"))
