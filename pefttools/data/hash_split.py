"""Where rows fall: by a seeded hash of their text, so that no row moves when others are added.

A text falls into test below `test` shares of the hash's range, into validation below the next, else into training; so
all rows of one text are in one split. Chance may leave a small class or a small file with nothing somewhere. Then the
texts whose hashes are nearest move, and as few of them as can be:

1. training gets a text of every class;
2. validation and test get a text of every class whose share of it is half a row or more;
3. validation, then test, get a text at all.

What is taken from training leaves a text of each class there. So a text stays where its hash puts it unless it is one
of these few; with ten expected rows of a class in a split, the chance that one moves is 1 in 20,000. When others are
added, a text may become one of the few, or be one no longer; no other moves, and the order of rows decides nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

TRAIN = "train"
ALL = None
"""Stands for the class that every text is of."""


def place(text: str, seed: int) -> float:
    """Where in [0, 1) a text falls."""
    digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def hash_split(texts: Mapping[str, Iterable[str]], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """The split of every text.

    Args:
        texts: text -> the classes of its rows; none where the task has no classes.
        shares: split -> its share, in the order of the hash's range; the rest trains.
    """
    places = {text: place(text, seed) for text in texts}
    drawn = _Drawn({text: _by_hash(where, shares) for text, where in places.items()}, texts, places, [*shares, TRAIN])
    for name in drawn.classes:
        if not drawn.number(name, TRAIN):
            drawn.move(name, max(shares, key=lambda split: drawn.number(name, split), default=TRAIN), TRAIN)
    for split, share in reversed(list(shares.items())):  # validation comes before test
        for name in drawn.classes:
            if not drawn.number(name, split) and share * drawn.total(name) >= 0.5:
                drawn.move(name, TRAIN, split)
    for split in reversed(list(shares)):
        for source in (TRAIN, *(other for other in shares if split == "validation" and other != split)):
            if texts and not drawn.number(ALL, split):
                drawn.move(ALL, source, split)
    return drawn.splits


def _by_hash(where: float, shares: Mapping[str, float]) -> str:
    edge = 0.0
    for split, share in shares.items():
        edge += share
        if where < edge:
            return split
    return TRAIN


@dataclass
class _Drawn:
    """Texts in their splits."""

    splits: dict[str, str]
    texts: Mapping[str, Iterable[str]]
    places: Mapping[str, float]
    order: Sequence[str]
    """The splits as they follow each other in the hash's range."""
    numbers: Counter[tuple[str | None, str]] = field(default_factory=Counter)
    members: dict[str | None, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for text in self.texts:
            for name in self._names(text):
                self.members.setdefault(name, []).append(text)
                self.numbers[name, self.splits[text]] += 1

    @property
    def classes(self) -> list[str | None]:
        """All of them, the one of every text last."""
        return sorted(self.members, key=lambda name: (name is ALL, name or ""))

    def number(self, name: str | None, split: str) -> int:
        return self.numbers[name, split]

    def total(self, name: str | None) -> int:
        return len(self.members[name])

    def move(self, name: str | None, source: str, target: str) -> None:
        """Move the text of this class whose hash is nearest; none where training would lose its last of a class."""
        found = [text for text in self.members[name] if self.splits[text] == source and self._spared(text)]
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

    def _spared(self, text: str) -> bool:
        return self.splits[text] != TRAIN or all(self.numbers[name, TRAIN] > 1 for name in self._names(text))
