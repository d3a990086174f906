"""The interface of every augmentation, and the copies that several augmentations add to the training rows.

Only training rows are copied, after the split, and each augmentation copies the original rows, not the copies of
another one. The random draws for a copy depend only on the recipe's seed, the augmentation's name, the copy's number
and the texts of its row: other rows have no effect, and a larger `copies` adds copies without changing the first ones.
A copy with the same texts as its row or as another copy of it is dropped.

An augmentation rewrites whole texts (`Augmentation`) or edits words (`WordAugmentation`). Tasks whose targets are
positions in the text (tags, answers, marked entities) take only edits of words, which they apply to the targets, too.
"""

from __future__ import annotations

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field

from pefttools.data.encoding import SPELLED
from pefttools.data.rows import Row
from pefttools.data.units import Piece, SplitText, Units, unchanged
from pefttools.reporter import SILENT, Reporter
from pefttools.settings import Choice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pefttools.strategies.base import Strategy
    from pefttools.tasks.base import Task


@dataclass(frozen=True)
class Context:
    """The rows that an augmentation copies, and the model that reads them."""

    texts: Sequence[str]
    """All texts of the rows."""
    tokenizer: PreTrainedTokenizerBase | None = None
    reporter: Reporter = SILENT


class Augmentation(Choice, ABC):
    """An augmentation: how to rewrite a text, and how often."""

    spells_tokens: ClassVar[bool] = False
    """Whether rewritten texts contain special tokens of the tokenizer, such as `[MASK]`, which are not plain text."""

    copies: int = Field(default=1, ge=1)
    """Maximum number of rewritten copies of each training row."""

    @abstractmethod
    def rewrite(self, text: str, draw: random.Random) -> str | None:
        """A rewritten text with about the same meaning; None if the text cannot be rewritten.

        Args:
            draw: the only source of randomness; equal states give equal texts.
        """

    def bind(self, context: Context) -> Self:
        """The augmentation as it is used on some rows, with settings that depend on them or on the tokenizer.

        Raises:
            UserError: it cannot be used here; a file or model that it needs is missing.
        """
        del context
        return self

    def remark(self, texts: Sequence[str]) -> str | None:
        """A note on texts that this augmentation can only partly rewrite; None if there is nothing to report."""
        del texts
        return None

    def problem(self, task: Task) -> str | None:
        """The reason why this augmentation does not fit the task; None if it does."""
        if task.rewritable:
            return None
        if not task.has_editable_words:
            return f"task={task.name} has no field that can be rewritten without changing the row's label"
        if not isinstance(self, WordAugmentation):
            return (
                f"task={task.name} has targets at positions of the text, which are lost when a whole text is rewritten;"
                " use an augmentation that edits words"
            )
        return None

    def copies_of(self, row: Row, task: Task, seed: int) -> Iterator[Row]:
        """Yield `copies` copies of a row with rewritten texts; some may be equal to it or have empty texts."""
        texts = json.dumps([row[name] for name in copied_fields(task, row)], ensure_ascii=False)
        for number in range(self.copies):
            yield self.rewritten(row, task, random.Random(f"{seed}\n{self.name}\n{number}\n{texts}"))

    def rewritten(self, row: Row, task: Task, draw: random.Random) -> Row:
        """The row with rewritten texts."""
        found = {name: self.rewrite(row[name], draw) for name in copied_fields(task, row)}
        return {**row, **{name: text for name, text in found.items() if text is not None}}


class WordAugmentation(Augmentation):
    """An augmentation that replaces, inserts, moves or deletes words."""

    @abstractmethod
    def edit(self, units: Units, draw: random.Random) -> list[Piece] | None:
        """The pieces of the edited text; None if nothing changes.

        Units that are not free must stay as and where they are, relative to one another.
        """

    def rewrite(self, text: str, draw: random.Random) -> str | None:
        split = SplitText.of(text)
        if (pieces := self.edit(split.units, draw)) is None:
            return None
        found = split.edited(pieces)[0]
        return None if found == text else found

    def rewritten(self, row: Row, task: Task, draw: random.Random) -> Row:
        if task.rewritable:
            return super().rewritten(row, task, draw)
        words = task.editable_words(row)
        edits = [self.edit(units, draw) for units in words]
        if all(pieces is None for pieces in edits):
            return row
        whole = zip(edits, words, strict=True)
        return task.with_edits(row, [unchanged(units) if pieces is None else pieces for pieces, units in whole])


def copied_fields(task: Task, row: Row) -> tuple[str, ...]:
    """The fields of a row that augmentations rewrite or whose words they edit."""
    return tuple(name for name in task.rewritable or task.inputs if name in row)


def copies(
    chosen: Mapping[str, Augmentation],
    rows: Sequence[Row],
    task: Task,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, list[Row]]:
    """Augmentation -> the copies of the rows that it adds, in the rows' order.

    Raises:
        UserError: an augmentation cannot be used with this tokenizer, or a file or model that it needs is missing.
    """
    if not chosen:
        return {}
    texts = [text for row in rows for text in _texts(row, task)]
    seen = [{_key(row, task)} for row in rows]
    added: dict[str, list[Row]] = {name: [] for name in chosen}
    for name, setting in chosen.items():
        one, num_empty = setting.bind(Context(texts, tokenizer, reporter)), 0
        if remark := one.remark(texts):
            reporter.note(f"augmentations.{name}: {remark}")
        for row, known in zip(rows, seen, strict=True):
            if one.spells_tokens and _spells(row, tokenizer):
                continue
            for copy in one.copies_of(row, task, seed):
                if not all(text.strip() for text in _texts(copy, task)) and all(map(str.strip, _texts(row, task))):
                    num_empty += 1
                elif (key := _key(copy, task)) not in known:
                    known.add(key)
                    added[name].append({**copy, SPELLED: True} if one.spells_tokens else copy)
        if num_empty:
            reporter.note(f"augmentations.{name}: {num_empty} copies would have an empty text, and were not added")
    return added


def _texts(row: Row, task: Task) -> list[str]:
    """The texts of a row that are rewritten; a list of tokens counts as one text."""
    values = [row[name] for name in copied_fields(task, row)]
    return [value if isinstance(value, str) else " ".join(value) for value in values]


def _key(row: Row, task: Task) -> str:
    return json.dumps([row[name] for name in copied_fields(task, row)])


def _spells(row: Row, tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """Whether a text of the row, its targets included, contains the spelling of a special token."""
    text = json.dumps(row, ensure_ascii=False)
    return tokenizer is not None and any(token in text for token in tokenizer.all_special_tokens)


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
