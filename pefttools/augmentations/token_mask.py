"""token_mask: replace each word with the same probability by the base's mask token.

The mask hides a word from the model, as dropping whole words does (Iyyer et al. 2015, word dropout), but keeps its
place. In the tokens it is the mask token itself, not its spelling. A base whose tokenizer has no mask token (most
language models) is refused, unless `mask` names another text. Punctuation around a word stays. A row whose text already
spells a special token is not copied.
"""

from __future__ import annotations

import random
from typing import ClassVar, Self

from pydantic import Field

from pefttools.augmentations.base import Context, WordAugmentation
from pefttools.data.units import Piece, Units, core
from pefttools.errors import UserError

MASK = "[MASK]"


class TokenMask(WordAugmentation):
    """Settings of token_mask: the probability and the mask."""

    spells_tokens: ClassVar[bool] = True

    probability: float = Field(default=0.1, gt=0, lt=1)
    """Probability of replacing a word."""
    mask: str | None = Field(default=None, min_length=1)
    """The text that replaces a word; when null, the mask token of the base's tokenizer."""

    def bind(self, context: Context) -> Self:
        if self.mask or context.tokenizer is None:
            return self
        if not (token := context.tokenizer.mask_token):
            raise UserError(
                "augmentations.token_mask: the base's tokenizer has no mask token; set augmentations.token_mask.mask to"
                " a text that replaces words, or use random_deletion"
            )
        return self.with_values(mask=token)

    def edit(self, units: Units, draw: random.Random) -> list[Piece] | None:
        pieces, num_masked = [], 0
        for place, (unit, is_free) in enumerate(zip(units.texts, units.free, strict=True)):
            before, word, after = core(unit)
            is_masked = draw.random() < self.probability and is_free and any(map(str.isalnum, word))
            pieces.append(Piece(f"{before}{self.mask or MASK}{after}" if is_masked else unit, place))
            num_masked += is_masked
        return pieces if num_masked else None
