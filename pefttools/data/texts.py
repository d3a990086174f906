"""Read, check and tokenise a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pefttools.data.fields import text
from pefttools.data.splitting import Row, Splits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIELDS = ("text", "text_pair")


def read_texts(values: Mapping[str, Any], pair: bool | None) -> Row:
    """The texts of a row, and its `id` if it has one.

    Args:
        pair: whether a row has two texts; None reads the texts that the row has.

    Raises:
        ValueError: a text is missing, or not a text.
    """
    if pair and "text_pair" not in values:
        raise ValueError("has no text_pair")
    row: Row = {name: text(values[name], name) for name in FIELDS[: 1 if pair is False else 2] if name in values}
    if values.get("id") is not None:
        row["id"] = str(values["id"])
    return row


def is_pair(splits: Splits) -> bool:
    """Whether the rows are pairs, judged by the first training row."""
    return "text_pair" in splits.train[0]


def mixed(splits: Splits) -> list[str]:
    """One problem for every split that mixes texts and pairs, or differs from the training rows."""
    pair = is_pair(splits)
    return [
        f"data.{name}: some rows are pairs of texts and some are not; make all rows alike"
        for name, rows in splits.named().items()
        if any(("text_pair" in row) != pair for row in rows)
    ]


def encode_texts(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int, pair: bool
) -> dict[str, list[Any]]:
    """Columns `input_ids`, `token_type_ids` if the tokenizer has them, and `cut`."""
    return encode_pairs(
        [r["text"] for r in rows], [r["text_pair"] for r in rows] if pair else None, tokenizer, max_length
    )


def encode_pairs(
    first: list[str], second: list[str] | None, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, list[Any]]:
    """The columns of `encode_texts` for lists of texts; truncation shortens the longer text of a pair."""
    limit = min(max_length, tokenizer.model_max_length)
    whole = tokenizer(first, second, truncation=False, verbose=False)
    columns: dict[str, list[Any]] = {name: whole[name] for name in ("input_ids", "token_type_ids") if name in whole}
    cut = [len(ids) > limit for ids in columns["input_ids"]]
    if long := [i for i, is_cut in enumerate(cut) if is_cut]:
        texts, pairs = ([column[i] for i in long] if column else None for column in (first, second))
        encoded = tokenizer(texts, pairs, truncation=True, max_length=limit)
        for name, values in columns.items():
            for i, ids in zip(long, encoded[name], strict=True):
                values[i] = ids
    return {**columns, "cut": cut}
