"""random_deletion: each word is left out with the same probability (Wei & Zou 2019, EDA, section 2).

Where all words would go, one of them stays, as in the authors' code (jasonwei20/eda_nlp). Unlike there, case and
punctuation stay, the spaces before what stays are kept, and characters of Chinese and Japanese are words.
"""

from __future__ import annotations

import random

from pydantic import Field

from pefttools.augmentations import _units
from pefttools.augmentations.base import Augmentation


class RandomDeletion(Augmentation):
    """How many words go."""

    probability: float = Field(default=0.1, gt=0, lt=1)
    """Of each word to be left out; the paper's α, 0.1 by default as there."""

    def rewrite(self, text: str, draw: random.Random) -> str | None:
        units, gaps = _units.split(text)
        if len(units) < 2:
            return None
        stay = [place for place in range(len(units)) if draw.random() >= self.probability]
        stay = stay or [draw.randrange(len(units))]
        if len(stay) == len(units):
            return None
        # the text begins and ends as it did, whichever words are its first and its last
        return _units.join([units[i] for i in stay], [gaps[0], *(gaps[i] for i in stay[1:]), gaps[-1]])
