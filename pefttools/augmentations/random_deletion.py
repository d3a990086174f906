"""random_deletion: delete each word with the same probability (Wei & Zou 2019, EDA, section 2).

If all words would be deleted, one of them stays, as in the authors' code (jasonwei20/eda_nlp). Unlike that code, this
keeps case, punctuation and the spaces before remaining words, and treats Chinese and Japanese characters as words.
"""

from __future__ import annotations

import random

from pydantic import Field

from pefttools.augmentations._operations import deleted
from pefttools.augmentations.base import WordAugmentation
from pefttools.data.units import Piece, Units


class RandomDeletion(WordAugmentation):
    """Settings of random_deletion: the probability of deletion."""

    probability: float = Field(default=0.1, gt=0, lt=1)
    """Probability of deleting a word: the paper's α, with the paper's default."""

    def edit(self, units: Units, draw: random.Random) -> list[Piece] | None:
        return deleted(units, self.probability, draw)
