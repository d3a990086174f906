"""eda: one of four easy edits: replace words by synonyms, insert synonyms, swap words, delete words (Wei & Zou 2019).

Each copy is made by one of the paper's four operations (section 2), drawn at random. For a text of ℓ words, n = αℓ
words are replaced by a synonym, or n synonyms of words of the text are inserted at random places, or two words are
swapped n times; or every word is deleted with probability α. As in the authors' code (jasonwei20/eda_nlp), n is rounded
down but at least 1, and stop words have no synonyms. Unlike there, only synonyms of one word are used, and case,
punctuation and spaces stay. The list of synonyms is an English one, or your own; Chinese has none of its own. A
text without a word in it is swapped or deleted from.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator

from pefttools.augmentations._operations import deleted, inserted, replaced, swapped
from pefttools.augmentations.base import Context, WordAugmentation
from pefttools.data import synonym_lists
from pefttools.data.units import Piece, Units, split
from pefttools.errors import UserError
from pefttools.sources import absolute


class Eda(WordAugmentation):
    """Settings of eda: the share of words that change, and the synonyms."""

    alpha: float = Field(default=0.1, gt=0, lt=1)
    """α, the share of words that one operation changes; the paper's value."""
    synonyms: str | None = None
    """A file with one group of synonyms a line, separated by spaces or commas; when null, a list of English synonyms is
    downloaded from the package index (`pypi:synnamon`)."""

    @field_validator("synonyms")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return value and absolute(value)

    def bind(self, context: Context) -> Self:
        try:
            synonym_lists.load(context.texts, self.synonyms)
        except UserError as error:
            raise UserError(f"augmentations.eda.synonyms: {error}; or name a file of your own there") from error
        return self

    def remark(self, texts: Sequence[str]) -> str | None:
        without = sum(not self._has_synonyms(text) for text in texts)
        if not without:
            return None
        known = Path(self.synonyms).name if self.synonyms else "the English list"
        return f"{without} of {len(texts)} texts have no word with a synonym in {known}; theirs are swapped and deleted"

    def _has_synonyms(self, text: str) -> bool:
        units = split(text)[0]
        return bool(synonym_lists.replaceable(units, [True] * len(units), self.synonyms))

    def edit(self, units: Units, draw: random.Random) -> list[Piece] | None:
        number = max(1, int(self.alpha * len(units.texts)))
        words = synonym_lists.replaceable(units.texts, units.free, self.synonyms)
        operations = [partial(swapped, units, number), partial(deleted, units, self.alpha)]
        if words:
            operations += [partial(replaced, units, words, number), partial(inserted, units, words, number)]
        return draw.choice(operations)(draw)
