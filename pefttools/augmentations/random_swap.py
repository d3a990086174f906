"""random_swap: swap two random words, several times (Wei & Zou 2019, EDA, section 2).

In the paper the number of swaps is a share α of the sentence's length; here it is fixed, because rounding the share
would leave short texts unchanged. Case, punctuation and spaces are kept, and Chinese and Japanese characters are words.
"""

from __future__ import annotations

import random

from pydantic import Field

from pefttools.augmentations._operations import swapped
from pefttools.augmentations.base import WordAugmentation
from pefttools.data.units import Piece, Units


class RandomSwap(WordAugmentation):
    """Settings of random_swap: the number of swaps."""

    num_swaps: int = Field(default=1, ge=1)
    """Number of swaps of two words, one after the other."""

    def edit(self, units: Units, draw: random.Random) -> list[Piece] | None:
        return swapped(units, self.num_swaps, draw)
