"""Select the target tokens of a text, and replace them by masks (Devlin et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pefttools.errors import UserError

if TYPE_CHECKING:
    from torch import Generator
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that is not a target."""
DRAW = "draw"
"""The column with the seed of what is drawn for a training row, where rows have one."""


class Vocabulary(NamedTuple):
    """The tokenizer's vocabulary, as far as masking needs it."""

    size: int
    mask: int
    """The mask token."""
    special: frozenset[int]
    """Tokens that are never masked and never replace another one; the unknown token is among them."""


class Shares(NamedTuple):
    """Shares of targets and of their replacements."""

    targets: float
    """Share of targets among the tokens that are not special."""
    replaced: float
    """Share of the targets that become the mask token."""
    random: float
    """Share of the targets that become a random token."""


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """The vocabulary of a tokenizer. Raises UserError if it has no mask token."""
    if not isinstance(tokenizer.mask_token_id, int):
        raise UserError("base: its tokenizer has no mask token; masked language modelling needs one")
    return Vocabulary(len(tokenizer), tokenizer.mask_token_id, frozenset(tokenizer.all_special_ids))


def draws(columns: Mapping[str, Sequence[Any]], number: int) -> Iterator[Generator | None]:
    """Yield the source of randomness of each row: its own if rows have a seed, else None for torch's global state."""
    import torch

    for seed in columns.get(DRAW, [None] * number):
        yield None if seed is None else torch.Generator().manual_seed(seed)


def num_targets(ids: Sequence[int], known: Vocabulary, shares: Shares) -> int:
    """Number of target tokens of a text: at least one, if it has any that is not special."""
    number = sum(token not in known.special for token in ids)
    return max(1, round(shares.targets * number)) if number else 0


def masked(
    ids: Sequence[int],
    known: Vocabulary,
    shares: Shares,
    words: Sequence[int] | None,
    draw: Generator | None = None,
    number: int | None = None,
) -> tuple[list[int], list[int]]:
    """Token ids with masks, and labels, which are `IGNORED` except for the targets.

    Args:
        words: index of the word that each token belongs to, to mask whole words; None to mask single tokens.
        draw: source of randomness; torch's global state by default.
        number: number of targets, at most that of tokens that are not special; `num_targets` by default.
    """
    import torch

    free = [place for place, token in enumerate(ids) if token not in known.special]
    order = [free[i] for i in torch.randperm(len(free), generator=draw).tolist()]
    number = num_targets(ids, known, shares) if number is None else number
    chosen = (_by_words(order, words, number) if words else order)[:number]
    draws = torch.rand(number, generator=draw).tolist()
    others = torch.randint(known.size - len(known.special), (number,), generator=draw).tolist()
    masked_ids, labels = list(ids), [IGNORED] * len(ids)
    for place, kind, other in zip(chosen, draws, others, strict=True):
        labels[place] = ids[place]
        if kind < shares.replaced:
            masked_ids[place] = known.mask
        elif kind < shares.replaced + shares.random:
            masked_ids[place] = _ordinary(other, known)
    return masked_ids, labels


def _ordinary(number: int, known: Vocabulary) -> int:
    """The token with that index when special tokens are not counted."""
    for token in sorted(known.special):
        number += token <= number
    return number


def _by_words(order: Sequence[int], words: Sequence[int], number: int) -> list[int]:
    """Positions grouped by whole words, in the order of each word's first position; words that exceed `number` come
    last.

    So the first `number` positions are whole words, except for the last word if none is short enough.
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
