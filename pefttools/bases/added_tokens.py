"""Tokens that a task adds to a base's vocabulary, and those of the tokenizer that have no embedding in the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pefttools.bases import vocabulary
from pefttools.errors import UserError
from pefttools.reporter import Reporter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def extended(
    model: PreTrainedModel, tokenizer: Any, tokens: Sequence[str], source: str, own_head: bool, reporter: Reporter
) -> list[str]:
    """Add embeddings for `tokens`, and for the tokenizer's tokens that have none in the model; returns their paths."""
    from pefttools.nn import new_tokens

    rows = vocabulary.num_rows(model)
    lacking = vocabulary.beyond(model, tokenizer, source, own_head)
    if lacking:
        shown = ", ".join(tokenizer.convert_ids_to_tokens(lacking[:3]))
        reporter.warn(
            f"the tokenizer of {source} has {len(lacking)} tokens without embeddings in the model, which has {rows}"
            f" ({shown}); embeddings for them are added, trained, and saved with the head"
        )
    if not tokens and not lacking:
        return []
    before = tokenizer.get_vocab() if tokens else {}
    _add(tokenizer, tokens)
    ids: list[int] = tokenizer.convert_tokens_to_ids(list(tokens))
    known = [i for token, i in zip(tokens, ids, strict=True) if token in before and i < rows]
    ids += [i for i in lacking if i not in ids]
    try:
        return new_tokens.extend(model, len(ids), ids=ids, known=known)
    except ValueError as error:
        raise UserError(f"base: {source} cannot take new tokens: {error}") from error


def _add(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Add tokens to the vocabulary that are recognized in any text, even where special tokens are not."""
    from transformers import AddedToken

    if tokens:
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
