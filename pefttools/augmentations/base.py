"""The interface of every augmentation, and the copies that several augmentations add to the training rows.

Only training rows are copied, after the split, and each augmentation copies the original rows, not the copies of
another one. The random draws for a copy depend only on the recipe's seed, the augmentation's name, the copy's number
and the texts of its row: other rows have no effect, and a larger `copies` adds copies without changing the first ones.
A copy with the same texts as its row or as another copy of it is dropped.
"""

from __future__ import annotations

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from pefttools.data.rows import Row
from pefttools.settings import Choice

if TYPE_CHECKING:
    from pefttools.strategies.base import Strategy
    from pefttools.tasks.base import Task


class Augmentation(Choice, ABC):
    """An augmentation: how to rewrite a text, and how often."""

    copies: int = Field(default=1, ge=1)
    """Maximum number of rewritten copies of each training row."""

    @abstractmethod
    def rewrite(self, text: str, draw: random.Random) -> str | None:
        """A rewritten text with about the same meaning, which is not blank; None if the text cannot be rewritten.

        Args:
            draw: the only source of randomness; equal states give equal texts.
        """

    def problem(self, task: Task) -> str | None:
        """The reason why this augmentation does not fit the task; None if it does."""
        if task.rewritable:
            return None
        return f"task={task.name} has no field that can be rewritten without changing the row's label"

    def copies_of(self, row: Row, fields: Sequence[str], seed: int) -> Iterator[Row]:
        """Yield `copies` copies of a row with rewritten fields; some may be equal."""
        texts = json.dumps([row[name] for name in fields], ensure_ascii=False)
        for number in range(self.copies):
            draw = random.Random(f"{seed}\n{self.name}\n{number}\n{texts}")
            found = {name: self.rewrite(row[name], draw) for name in fields}
            yield {**row, **{name: text for name, text in found.items() if text is not None}}


def copies(chosen: Mapping[str, Augmentation], rows: Sequence[Row], task: Task, seed: int) -> dict[str, list[Row]]:
    """Augmentation -> the copies of the rows that it adds, in the rows' order."""
    fields = [[name for name in task.rewritable if name in row] for row in rows]
    seen = [{_texts(row, names)} for row, names in zip(rows, fields, strict=True)]
    added: dict[str, list[Row]] = {name: [] for name in chosen}
    for name, one in chosen.items():
        for row, names, known in zip(rows, fields, seen, strict=True):
            for copy in one.copies_of(row, names, seed):
                if (texts := _texts(copy, names)) not in known:
                    known.add(texts)
                    added[name].append(copy)
    return added


def _texts(row: Row, fields: Sequence[str]) -> tuple[str, ...]:
    return tuple(row[name] for name in fields)


def added_digest(added: Mapping[str, Sequence[Row]]) -> str | None:
    """The sha256 of added rows; None without augmentations."""
    if not added:
        return None
    text = json.dumps(list(added.items()), ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def unfit_augmentations(chosen: Mapping[str, Augmentation], task: Task, strategy: Strategy) -> list[str]:
    """One message for every augmentation that does not fit the task or the strategy."""
    if chosen and not strategy.trains:
        reason = f"strategy={strategy.name} trains nothing, so augmentations have no effect; remove them"
        return [f"augmentations.{name}: {reason}" for name in chosen]
    return [f"augmentations.{name}: {reason}" for name, one in chosen.items() if (reason := one.problem(task))]
