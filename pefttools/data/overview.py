"""A summary of the rows before training: how many, of which classes, and what is not read or left out."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pefttools.data.fields import listed, natural
from pefttools.data.rows import Row, Splits, labels_of

SHOWN = 12
"""Classes that are listed with their counts; of more, the most and the least frequent."""


def overview(splits: Splits) -> str:
    """One line on the rows that will be trained on and scored."""
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
    """Class, or tag, -> how many rows, or words, have it; empty where the task has none."""
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
    """Warnings on the classes: names that differ in writing only, and classes that are never scored."""
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
            told = ", ".join(f"{name!r} ({counts[name]})" for name in names)
            most = max(names, key=lambda name: counts[name])
            others = ", ".join(f"{name!r}: {most!r}" for name in names if name != most)
            yield (
                f"some class names differ only in case, spaces or Unicode form, and are learnt as different classes:"
                f" {told}; data.labels={{{others}}} merges them"
            )


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _absent(splits: Splits) -> Iterator[str]:
    """Classes without a row to score: means over classes leave them out."""
    if any(isinstance(row.get("tags"), list) for row in splits.train[:1]):
        return  # a tag inside an entity is no class of its own
    known = class_counts(splits.train)
    yield from (told for name in ("validation", "test") for told in absent(name, splits.named()[name], known))


def absent(name: str, rows: Sequence[Row], known: Iterable[str]) -> list[str]:
    """The warning on classes that no row to score has, if there are such classes."""
    missing = sorted({*known} - {*class_counts(rows)}, key=natural)
    if not rows or not missing:
        return []
    return [f"data.{name}: no row of {listed(missing)}; means over classes (macro-F1) leave these out"]
