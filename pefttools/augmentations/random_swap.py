"""random_swap: two words that are drawn change places, several times (Wei & Zou 2019, EDA, section 2).

The paper swaps a share α of the sentence's length; here it is a number, so that a short text is not scrambled less than
a long one by rounding alone. Case, punctuation and spaces stay, and characters of Chinese and Japanese are words.
"""

from __future__ import annotations

import random

from pydantic import Field

from pefttools.augmentations import _units
from pefttools.augmentations.base import Augmentation


class RandomSwap(Augmentation):
    """How many words move."""

    num_swaps: int = Field(default=1, ge=1)
    """Pairs of words that change places, one pair after the other."""

    def rewrite(self, text: str, draw: random.Random) -> str | None:
        units, gaps = _units.split(text)
        if len(units) < 2:
            return None
        for _ in range(self.num_swaps):
            first, second = draw.sample(range(len(units)), 2)
            units[first], units[second] = units[second], units[first]
        found = _units.join(units, gaps)
        return None if found == text else found
