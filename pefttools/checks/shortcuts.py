"""Shortcuts in the text: a single word that predicts the label, or a column with the same text in every row.

A word predicts a class if nearly all rows with the word have the class (purity), nearly all rows of the class have the
word (coverage), and nearly no row of the other classes has it, even if these are few. Such a word is often a leak, like
the name of the file that the row comes from, and then the model learns the word and nothing else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from pefttools.data.rows import Row, labels_of
from pefttools.recipe.recipe import Recipe
from pefttools.reporter import Finding

SAMPLE = 1000
"""Number of training rows to read; both shares below are estimated from them."""
ENDS = 500
"""Number of characters to read at the beginning and at the end of a longer text."""
LEAST = 20
"""Rows that a class, or a file, must have for its words to be counted."""
SURE = 0.97
"""Least purity and coverage, and least share of the other classes' rows without the word."""
SHOWN = 3
HAN = "\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(rf"[{HAN}]+|(?:(?![{HAN}])\w)+|[^\w\s]")


def shortcuts(recipe: Recipe, rows: Sequence[Row]) -> Iterator[Finding]:
    """Findings for words that predict a class, and for inputs that are the same in every row.

    Only rows with one class each are checked; other tasks may well have one context or one prompt for all rows.
    """
    if len(rows) < LEAST or any(len(labels_of(row)) != 1 for row in rows[:LEAST]):
        return
    if not isinstance(labels_of(rows[0])[0], str):
        return
    some = rows[:: -(-len(rows) // SAMPLE)]
    labels = [labels_of(row)[0] for row in some]
    sizes = Counter(labels)
    for field in recipe.task.inputs:
        texts = [row[field] for row in some if isinstance(row.get(field), str)]
        if len(texts) != len(some):
            continue
        if len({*texts}) == 1 and len({row[field] for row in rows}) == 1:
            yield _constant(field, texts[0], len(rows))
        elif found := _telling(texts, labels, sizes):
            yield _leak(field, found, sizes, len(some))


def _telling(texts: Sequence[str], labels: Sequence[str], sizes: Counter[str]) -> list[tuple[float, str, str, int]]:
    """(coverage, word, class, number of rows with both) of words that predict a class, the surest first."""
    words: Counter[str] = Counter()
    joint: Counter[tuple[str, str]] = Counter()
    for text, label in zip(texts, labels, strict=True):
        short = text if len(text) <= 2 * ENDS else f"{text[:ENDS]} {text[-ENDS:]}"
        for word in {*_words(short.lower())}:
            words[word] += 1
            joint[word, label] += 1
    found = [
        (number / sizes[label], word, label, number)
        for (word, label), number in joint.items()
        if sizes[label] >= LEAST
        and number >= SURE * max(sizes[label], words[word])
        and words[word] - number <= (1 - SURE) * (len(labels) - sizes[label])
    ]
    best: dict[str, tuple[float, str, str, int]] = {}
    for one in sorted(found, reverse=True):
        best.setdefault(one[2], one)
    return list(best.values()) if len(sizes) > 1 else []


def _words(text: str) -> Iterator[str]:
    """The words of a text. Chinese has no spaces between words, so every pair of characters counts as one."""
    for word in WORD.findall(text):
        is_chinese = len(word) > 2 and "\u3400" <= word[0] <= "\u9fff"
        yield from map("".join, pairwise(word)) if is_chinese else (word,)


def _leak(field: str, found: Sequence[tuple[float, str, str, int]], sizes: Counter[str], number: int) -> Finding:
    shown = "; ".join(f"{word!r} is in {n} of {sizes[label]} rows of {label!r}" for _, word, label, n in found[:SHOWN])
    return Finding(
        "leaking column",
        f"data.train: a single word of {field} predicts the label of {len(found)} of {len(sizes)} classes",
        f"{shown}, and in hardly any other of {number} rows read",
        "pefttools show RECIPE --sample 20",
    )


def _constant(field: str, text: str, number: int) -> Finding:
    short = text if len(text) <= 40 else f"{text[:40]}…"
    return Finding(
        "constant column",
        f"data.train: {field} is the same text in every row, so nothing can be learnt from it",
        f"{short!r} in all {number} rows",
        f"pefttools train RECIPE data.columns.{field}=COLUMN",
    )
