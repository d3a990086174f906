"""How many tokens a model has positions for, asked of its own tables of positions.

A table may have more rows than positions: OPT and BART leave two free in front, RoBERTa and its kin begin behind the
padding token's own row. Models that count positions otherwise (rotary, relative, ALiBi) have no table; then their
configuration says how long their texts were.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

ENDLESS = 10**9
"""The limit of a model that has none."""
NAMES = ("position_embeddings", "embed_positions", "positions_embed", "char_position_embeddings", "wpe")
"""What transformers calls a table of absolute positions."""
LONGEST = ("max_position_embeddings", "max_seq_len", "max_encoder_position_embeddings")
"""What configurations call the number of positions."""


def limit(model: nn.Module, both: bool = True) -> int:
    """Tokens that a text may have.

    Args:
        both: whether an encoder-decoder's decoder reads the text, too.
    """
    config: Any = getattr(model, "config", None)
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    named = [getattr(one, name, None) for one in (config, inner) for name in LONGEST]
    tables = [_usable(table) for path, table in _tables(model) if both or ".decoder." not in f".{path}"]
    return min([n for n in (*named, *tables) if isinstance(n, int) and n > 0], default=ENDLESS)


def count_from_padding(model: nn.Module) -> bool:
    """Whether positions are counted from the padding token's id, so that the model is another with another one."""
    return any(_padding(table) is not None for _, table in _tables(model))


def _tables(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Path and module of the tables of the text's positions."""
    for path, module in model.named_modules():
        parent, _, name = path.rpartition(".")
        if name in NAMES and "entity" not in parent:
            yield path, module


def _rows(table: Any) -> int:
    """0 where rows are made as they are needed (M2M-100's sines)."""
    weight = getattr(table, "weight", None)
    return len(weight) if weight is not None and weight.ndim == 2 else 0


def _padding(table: Any) -> int | None:
    place = getattr(table, "padding_idx", None)
    return place if isinstance(place, int) else None


def _usable(table: Any) -> int:
    if not _rows(table):
        return 0
    if isinstance(offset := getattr(table, "offset", None), int):
        return _rows(table) - offset
    padding = _padding(table)
    return _rows(table) if padding is None else _rows(table) - padding - 1
