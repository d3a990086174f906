"""Summarise the rows before training: their number, their classes, unread columns and skipped rows."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pefttools.data.fields import listed, natural
from pefttools.data.rows import Row, Splits, labels_of

SHOWN = 12
"""Number of classes to list with counts; of more classes, the most and least frequent are listed."""


def overview(splits: Splits) -> str:
    """One line about the rows of training and evaluation."""
    rows = ", ".join(
        f"{len(part)} {purpose}"
        for part, purpose in zip(splits.named().values(), ("rows to train on", "to validate", "to test"), strict=True)
    )
    parts = [rows]
    if counts := class_counts(splits.train):
        parts.append(f"classes in training: {_counted(counts)}")
    columns = dict.fromkeys(column for names in splits.unread.values() for column in names)
    if columns:
        parts.append(f"columns that are not read: {listed(list(columns))}")
    if splits.left_out:
        parts.append("left out: " + ", ".join(f"{number} ({reason})" for reason, number in splits.left_out.items()))
    return "; ".join(parts)


def class_counts(rows: Sequence[Row]) -> Counter[str]:
    """Class (or tag) -> number of its rows (or words); empty for tasks without classes."""
    return Counter(
        name
        for row in rows
        for name in (row["tags"] if isinstance(row.get("tags"), list) else labels_of(row))
        if isinstance(name, str)
    )


def _counted(counts: Mapping[str, int]) -> str:
    if len(counts) <= SHOWN:
        return ", ".join(f"{name} {counts[name]}" for name in sorted(counts, key=natural))
    ranked = sorted(counts, key=lambda name: (-counts[name], natural(name)))
    first, last = ranked[: SHOWN // 2], ranked[-2:]
    shown = [f"{name} {counts[name]}" for name in first] + ["…"] + [f"{name} {counts[name]}" for name in last]
    return f"{', '.join(shown)} ({len(counts)} in all)"


def remarks(splits: Splits) -> list[str]:
    """Warnings about classes: names that differ only in spelling, and classes without rows in validation or test."""
    counts = Counter[str]()
    for rows in (*splits.named().values(), splits.spare):
        counts.update(class_counts(rows))
    return [*_alike(counts), *_absent(splits)]


def _alike(counts: Mapping[str, int]) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for name in sorted(counts, key=natural):
        groups.setdefault(_plain(name), []).append(name)
    for names in groups.values():
        if len(names) > 1:
            spellings = ", ".join(f"{name!r} ({counts[name]})" for name in names)
            most = max(names, key=lambda name: counts[name])
            others = ", ".join(f"{name!r}: {most!r}" for name in names if name != most)
            yield (
                f"some class names differ only in case, spaces or Unicode form, but count as different classes:"
                f" {spellings}; data.labels={{{others}}} merges them"
            )


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _absent(splits: Splits) -> Iterator[str]:
    """Warnings about classes without a row in validation or test."""
    if any(isinstance(row.get("tags"), list) for row in splits.train[:1]):
        return  # tags inside entities are not classes of their own
    known = class_counts(splits.train)
    yield from (warning for name in ("validation", "test") for warning in absent(name, splits.named()[name], known))


def absent(name: str, rows: Sequence[Row], known: Iterable[str]) -> list[str]:
    """One warning if no row of a split has some classes, else none."""
    missing = sorted({*known} - {*class_counts(rows)}, key=natural)
    if not rows or not missing:
        return []
    return [f"data.{name}: no row has the class {listed(missing)}; means over classes (macro-F1) ignore these classes"]
