"""random_swap: swap two random words, several times (Wei & Zou 2019, EDA, section 2).

In the paper the number of swaps is a share α of the sentence's length; here it is fixed, because rounding the share
would leave short texts unchanged. Case, punctuation and spaces are kept, and Chinese and Japanese characters are words.
"""

from __future__ import annotations

import random

from pydantic import Field

from pefttools.augmentations import _units
from pefttools.augmentations.base import Augmentation


class RandomSwap(Augmentation):
    """Settings of random_swap: the number of swaps."""

    num_swaps: int = Field(default=1, ge=1)
    """Number of swaps of two words, one after the other."""

    def rewrite(self, text: str, draw: random.Random) -> str | None:
        units, gaps = _units.split(text)
        if len(units) < 2:
            return None
        for _ in range(self.num_swaps):
            first, second = draw.sample(range(len(units)), 2)
            units[first], units[second] = units[second], units[first]
        found = _units.join(units, gaps)
        return None if found == text else found
