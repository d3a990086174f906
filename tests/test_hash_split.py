"""Splits by the hash of a text: stable when rows are added, and independent of the order of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from pefttools.data.hash_split import hash_split, place, position

SHARES = {"test": 0.15, "validation": 0.1}


def split(texts: Mapping[str, Iterable[str]], seed: int) -> dict[str, str]:
    """Text -> its split, where the texts have these classes."""
    positions = numpy.array([position(text, seed) for text in texts], numpy.uint64)
    indices = hash_split(positions, texts.values(), SHARES)
    names = [*texts]
    return {names[i]: name for name, found in indices.items() for i in found}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200)), min_size=3, max_size=60),
    st.lists(st.tuples(st.integers(0, 3), st.integers(201, 400)), max_size=30),
    st.integers(0, 3),
)
def test_texts_leave_their_hashed_split_only_to_fill_a_gap(some: Any, more: Any, seed: int) -> None:
    """A text in its hashed split stays there in a larger file, except for the few that fill gaps."""

    def texts_of(pairs: Any) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for name, text in pairs:
            found.setdefault(f"t{text}", set()).add(f"c{name}")
        return found

    def by_hash(text: str) -> str:
        where = place(text, seed)
        return "test" if where < 0.15 else "validation" if where < 0.25 else "train"

    few: list[set[str]] = []
    small, large = texts_of(some), texts_of([*some, *more])
    for texts in (small, large):
        found = split(texts, seed)
        numbers = Counter((name, split) for text, split in found.items() for name in (*texts[text], None))
        classes = {name for names in texts.values() for name in names}
        assert all(numbers[name, "train"] for name in classes)
        few.append({text for text in texts if found[text] != by_hash(text)})
        assert len(few[-1]) <= 3 * (len(classes) + 1)
        if len(texts) > len(classes) + 1:
            assert numbers[None, "validation"]
    before, after = split(small, seed), split(large, seed)
    assert {text for text in small if before[text] != after[text]} <= few[0] | few[1]


def test_texts_of_frequent_classes_are_in_their_hashed_split() -> None:
    texts = {f"text {i}": {"abc"[i % 3]} for i in range(300)}
    texts |= {f"seldom {i}": {"d"} for i in range(2)}
    found = split(texts, 0)
    edges = {text: place(text, 0) for text in texts if not text.startswith("seldom")}
    assert all((found[text] == "test") == (edges[text] < 0.15) for text in edges)
    assert all((found[text] == "train") == (edges[text] >= 0.25) for text in edges)


def test_split_independent_of_row_order() -> None:
    texts = {f"text {i}": {"ab"[i % 2]} for i in range(30)}
    assert split(texts, 0) == split(dict(reversed(texts.items())), 0)
