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
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

TRAIN = "train"
ALL = None
"""A pseudo-class that every text belongs to."""


def place(text: str, seed: int) -> float:
    """The position of a text's hash in [0, 1)."""
    digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def hash_split(texts: Mapping[str, Iterable[str]], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """The split of every text.

    Args:
        texts: text -> the classes of its rows; empty if the task has no classes.
        shares: split -> its share, in the order of the hash's range; the rest is for training.
    """
    places = {text: place(text, seed) for text in texts}
    assignment = _Assignment(
        {text: _by_hash(where, shares) for text, where in places.items()}, texts, places, [*shares, TRAIN]
    )
    for name in assignment.classes:
        if not assignment.number(name, TRAIN):
            assignment.move(name, max(shares, key=lambda split: assignment.number(name, split), default=TRAIN), TRAIN)
    for split, share in reversed(list(shares.items())):  # validation comes before test
        for name in assignment.classes:
            if not assignment.number(name, split) and share * assignment.total(name) >= 0.5:
                assignment.move(name, TRAIN, split)
    for split in reversed(list(shares)):
        for source in (TRAIN, *(other for other in shares if split == "validation" and other != split)):
            if texts and not assignment.number(ALL, split):
                assignment.move(ALL, source, split)
    return assignment.splits


def _by_hash(where: float, shares: Mapping[str, float]) -> str:
    edge = 0.0
    for split, share in shares.items():
        edge += share
        if where < edge:
            return split
    return TRAIN


@dataclass
class _Assignment:
    """Texts with their current splits, and counts of texts per class and split."""

    splits: dict[str, str]
    texts: Mapping[str, Iterable[str]]
    places: Mapping[str, float]
    order: Sequence[str]
    """The splits in the order of the hash's range."""
    numbers: Counter[tuple[str | None, str]] = field(default_factory=Counter)
    members: dict[str | None, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for text in self.texts:
            for name in self._names(text):
                self.members.setdefault(name, []).append(text)
                self.numbers[name, self.splits[text]] += 1

    @property
    def classes(self) -> list[str | None]:
        """All classes in order, the pseudo-class `ALL` last."""
        return sorted(self.members, key=lambda name: (name is ALL, name or ""))

    def number(self, name: str | None, split: str) -> int:
        return self.numbers[name, split]

    def total(self, name: str | None) -> int:
        return len(self.members[name])

    def move(self, name: str | None, source: str, target: str) -> None:
        """Move the text of this class with the nearest hash; nothing if training would lose its last text of a
        class."""
        found = [text for text in self.members[name] if self.splits[text] == source and self._may_move(text)]
        if not found:
            return
        upwards = self.order.index(source) < self.order.index(target)
        nearest = (max if upwards else min)(found, key=lambda text: (self.places[text], text))
        self.splits[nearest] = target
        for one in self._names(nearest):
            self.numbers[one, source] -= 1
            self.numbers[one, target] += 1

    def _names(self, text: str) -> Iterable[str | None]:
        return (*self.texts[text], ALL)

    def _may_move(self, text: str) -> bool:
        return self.splits[text] != TRAIN or all(self.numbers[name, TRAIN] > 1 for name in self._names(text))
