"""random_deletion: delete each word with the same probability (Wei & Zou 2019, EDA, section 2).

If all words would be deleted, one of them stays, as in the authors' code (jasonwei20/eda_nlp). Unlike that code, this
keeps case, punctuation and the spaces before remaining words, and treats Chinese and Japanese characters as words.
"""

from __future__ import annotations

import random

from pydantic import Field

from pefttools.augmentations import _units
from pefttools.augmentations.base import Augmentation


class RandomDeletion(Augmentation):
    """Settings of random_deletion: the probability of deletion."""

    probability: float = Field(default=0.1, gt=0, lt=1)
    """Probability of deleting a word: the paper's α, with the paper's default."""

    def rewrite(self, text: str, draw: random.Random) -> str | None:
        units, gaps = _units.split(text)
        if len(units) < 2:
            return None
        remaining = [place for place in range(len(units)) if draw.random() >= self.probability]
        remaining = remaining or [draw.randrange(len(units))]
        if len(remaining) == len(units):
            return None
        # keep the space at the text's start and end, whichever words come first and last
        return _units.join([units[i] for i in remaining], [gaps[0], *(gaps[i] for i in remaining[1:]), gaps[-1]])
