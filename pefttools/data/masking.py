"""Which tokens of a text are to be guessed, and what stands in their place (Devlin et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pefttools.errors import UserError

if TYPE_CHECKING:
    from torch import Generator
    from transformers import PreTrainedTokenizerBase

NOT_ASKED = -100
"""The label of a token that is not to be guessed."""


class Vocabulary(NamedTuple):
    """What masking must know of a tokenizer."""

    size: int
    mask: int
    """The mask token."""
    special: frozenset[int]
    """Tokens that are never masked nor put in another's place, the unknown token among them."""


class Shares(NamedTuple):
    """How many tokens are masked, and how."""

    asked: float
    """Of the tokens that are not special."""
    replaced: float
    """Of the asked ones: by the mask token."""
    random: float
    """Of the asked ones: by any other token."""


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """Raises UserError when there is no mask token."""
    if not isinstance(tokenizer.mask_token_id, int):
        raise UserError("base: its tokenizer has no mask token, so nothing can be masked")
    return Vocabulary(len(tokenizer), tokenizer.mask_token_id, frozenset(tokenizer.all_special_ids))


def num_asked(ids: Sequence[int], known: Vocabulary, shares: Shares) -> int:
    """How many tokens of a text are to be guessed: at least one where there is any."""
    number = sum(token not in known.special for token in ids)
    return max(1, round(shares.asked * number)) if number else 0


def masked(
    ids: Sequence[int], known: Vocabulary, shares: Shares, words: Sequence[int] | None, draw: Generator | None = None
) -> tuple[list[int], list[int]]:
    """Token ids with masks, and labels: the tokens that are to be guessed, exactly `num_asked` of them.

    Args:
        words: the number of the word each token belongs to, to mask words whole; null to mask token by token.
        draw: where the randomness comes from; torch's own state by default.
    """
    import torch

    free = [place for place, token in enumerate(ids) if token not in known.special]
    order = [free[i] for i in torch.randperm(len(free), generator=draw).tolist()]
    number = num_asked(ids, known, shares)
    chosen = (_by_words(order, words, number) if words else order)[:number]
    kinds = torch.rand(number, generator=draw).tolist()
    others = torch.randint(known.size - len(known.special), (number,), generator=draw).tolist()
    said, labels = list(ids), [NOT_ASKED] * len(ids)
    for place, kind, other in zip(chosen, kinds, others, strict=True):
        labels[place] = ids[place]
        if kind < shares.replaced:
            said[place] = known.mask
        elif kind < shares.replaced + shares.random:
            said[place] = _ordinary(other, known)
    return said, labels


def _ordinary(number: int, known: Vocabulary) -> int:
    """The token of that number when the special ones are not counted."""
    for token in sorted(known.special):
        number += token <= number
    return number


def _by_words(order: Sequence[int], words: Sequence[int], number: int) -> list[int]:
    """Places by whole words, the words in the order of their first place; words beyond `number` come last.

    So the first `number` places are whole words, but for the last one where no word is short enough.
    """
    groups: dict[int, list[int]] = {}
    for place in order:
        alone = -2 - place
        groups.setdefault(words[place] if words[place] >= 0 else alone, []).append(place)
    taken: list[int] = []
    rest: list[int] = []
    for group in groups.values():
        (taken if len(taken) + len(group) <= number else rest).extend(sorted(group))
    return [*taken, *rest]
