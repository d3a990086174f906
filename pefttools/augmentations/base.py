"""What every augmentation offers, and the copies that several of them add to the rows to train on.

Copies are made of training rows alone, after the split, and each augmentation copies the user's own rows, not another
one's copies. What is drawn for a copy depends on the recipe's seed, the augmentation's name, the copy's number and the
texts of its row: no other row changes it, and raising `copies` keeps those that were there. A copy with the same texts
as its row or as another copy of it is left out.
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
    """How a text is rewritten, and how often."""

    copies: int = Field(default=1, ge=1)
    """Rewritten copies of each training row, at most."""

    @abstractmethod
    def rewrite(self, text: str, draw: random.Random) -> str | None:
        """Another text that means about the same and is not blank; None where this one cannot be rewritten.

        Args:
            draw: the only source of chance; equal states give equal texts.
        """

    def problem(self, task: Task) -> str | None:
        """Why this augmentation does not fit the task; None where it does."""
        if task.rewritable:
            return None
        return f"task={task.name} has no field that can be rewritten without changing what is to be learnt from the row"

    def copies_of(self, row: Row, fields: Sequence[str], seed: int) -> Iterator[Row]:
        """`copies` copies of a row with these of its fields rewritten; some may say the same."""
        texts = json.dumps([row[name] for name in fields], ensure_ascii=False)
        for number in range(self.copies):
            draw = random.Random(f"{seed}\n{self.name}\n{number}\n{texts}")
            found = {name: self.rewrite(row[name], draw) for name in fields}
            yield {**row, **{name: text for name, text in found.items() if text is not None}}


def copies(chosen: Mapping[str, Augmentation], rows: Sequence[Row], task: Task, seed: int) -> dict[str, list[Row]]:
    """Augmentation -> the copies that it adds to these rows, in their order."""
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
    """The sha256 of added rows; None where no augmentation was chosen."""
    if not added:
        return None
    text = json.dumps(list(added.items()), ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def unfit_augmentations(chosen: Mapping[str, Augmentation], task: Task, strategy: Strategy) -> list[str]:
    """One sentence on every augmentation that does not fit the task or the strategy."""
    if chosen and not strategy.trains:
        reason = f"strategy={strategy.name} trains nothing, so no rows to train on are needed"
        return [f"augmentations.{name}: {reason}" for name in chosen]
    return [f"augmentations.{name}: {reason}" for name, one in chosen.items() if (reason := one.problem(task))]
