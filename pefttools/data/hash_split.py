"""Assign rows to splits by a seeded hash of their text, so that adding rows does not move others.

A text is in test if its hash is in the first `test` share of the hash's range, in validation if it is in the next
share, else in training; so all rows of one text are in one split. By chance, a small class or a small file may have no
row in a split. Then the fewest possible texts move, those with the nearest hashes, so that:

1. training has a text of every class;
2. validation and test have a text of every class whose expected number of rows there is at least half a row;
3. validation, then test, have any text at all.

No move takes the last text of a class from training. So a text stays where its hash puts it unless it is one of these
few; with ten expected rows of a class in a split, the chance that one moves is 1 in 20,000. When rows are added, a text
may become one of the few, or stop being one; no other text moves, and the order of rows has no effect.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

TRAIN = "train"
ALL = -1
"""The group of all texts, after those of the classes."""
RANGE = 2**64
"""Number of different positions of a text's hash."""


def place(text: str, seed: int) -> float:
    """The position of a text's hash in [0, 1)."""
    return position(text, seed) / RANGE


def position(text: str, seed: int) -> int:
    """The position of a text's hash in [0, 2**64). Texts with the same position count as the same text."""
    digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def hash_split(
    positions: NDArray[Any], labels: Iterable[Iterable[str]], shares: Mapping[str, float]
) -> dict[str, NDArray[Any]]:
    """Split -> the indices of its rows, in their order.

    Args:
        positions: of the rows' texts; shape (rows), uint64.
        labels: the classes of every row; none if the task has no classes.
        shares: split -> its share, in the order of the hash's range; the rest is for training.
    """
    import numpy

    names = [*shares, TRAIN]
    texts, text_of_row = numpy.unique(positions, return_inverse=True)
    edges = numpy.cumsum([*shares.values()])
    text_of_row = text_of_row.astype(numpy.uint32 if len(texts) < 2**32 else numpy.uint64)
    by_hash = numpy.searchsorted(edges, texts.astype(numpy.float64) / RANGE, side="right").astype(numpy.int8)
    assignment = _Assignment(by_hash, _members(labels, text_of_row, len(texts)), len(names))
    numbers, train = assignment.numbers, len(shares)
    for group in range(len(numbers)):
        if not numbers[group, train]:
            assignment.move(group, max(range(train), key=lambda split: numbers[group, split], default=train), train)
    for split, share in reversed([*enumerate(shares.values())]):  # validation comes before test
        for group in range(len(numbers)):
            if not numbers[group, split] and share * numbers[group].sum() >= 0.5:
                assignment.move(group, train, split)
    for split in reversed(range(train)):
        for source in (train, *(other for other in range(train) if names[split] == "validation" and other != split)):
            if len(texts) and not numbers[ALL, split]:
                assignment.move(ALL, source, split)
    split_of_row = assignment.splits[text_of_row]
    return {name: (split_of_row == number).nonzero()[0] for number, name in enumerate(names)}


def _members(labels: Iterable[Iterable[str]], text_of_row: NDArray[Any], num_texts: int) -> list[NDArray[Any]]:
    """For every class, in the order of their names, the texts of its rows in the order of their positions; last, all
    texts."""
    import numpy

    rows_of: dict[str, array[int]] = {}
    for row, names in enumerate(labels):
        for name in names:
            rows_of.setdefault(name, array("I")).append(row)
    found = []
    for name in sorted(rows_of):
        rows = rows_of.pop(name)
        found.append(numpy.unique(text_of_row[numpy.frombuffer(rows, f"u{rows.itemsize}")]))
    return [*found, numpy.arange(num_texts, dtype=text_of_row.dtype)]


class _Assignment:
    """The current splits of the texts, which are in the order of their positions, and the number of texts that every
    group (a class, or all texts) has in every split; the last split is training."""

    def __init__(self, splits: NDArray[Any], members: Sequence[NDArray[Any]], num_splits: int) -> None:
        import numpy

        self.splits, self.members = splits, members
        self.numbers = numpy.array([numpy.bincount(splits[texts], minlength=num_splits) for texts in members])

    def move(self, group: int, source: int, target: int) -> None:
        """Move the text of this group with the nearest hash; nothing if training would lose its last text of a
        class."""
        texts = self.members[group]
        found = texts[self.splits[texts] == source]
        for text in found[::-1] if source < target else found:
            groups = self._groups(text)
            if source != self.numbers.shape[1] - 1 or (self.numbers[groups, source] > 1).all():
                self.splits[text] = target
                self.numbers[groups, source] -= 1
                self.numbers[groups, target] += 1
                return

    def _groups(self, text: int) -> list[int]:
        places = [int(texts.searchsorted(text)) for texts in self.members]
        pairs = enumerate(zip(self.members, places, strict=True))
        return [group for group, (texts, i) in pairs if i < len(texts) and texts[i] == text]
