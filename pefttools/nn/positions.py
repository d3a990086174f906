"""Determine the number of positions of a model from its tables of position embeddings.

A table may have more rows than positions: OPT and BART skip the first two rows, RoBERTa and related models start after
the padding token's row. Models with other position encodings (rotary, relative, ALiBi) have no table; then the
configuration gives the length of pretraining texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

ENDLESS = 10**9
"""The limit for models without one."""
NAMES = ("position_embeddings", "embed_positions", "positions_embed", "char_position_embeddings", "wpe")
"""transformers' names of tables of absolute positions."""
LONGEST = ("max_position_embeddings", "max_seq_len", "max_encoder_position_embeddings")
"""Names of the number of positions in configurations."""


def limit(model: nn.Module, both: bool = True) -> int:
    """Maximum number of tokens of a text.

    Args:
        both: whether the decoder of an encoder-decoder also reads the text.
    """
    config: Any = getattr(model, "config", None)
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    configured = [getattr(one, name, None) for one in (config, inner) for name in LONGEST]
    tables = [_usable(table) for path, table in _tables(model) if both or ".decoder." not in f".{path}"]
    return min([n for n in (*configured, *tables) if isinstance(n, int) and n > 0], default=ENDLESS)


def count_from_padding(model: nn.Module) -> bool:
    """Whether positions start after the padding token's id, so that another padding token would change the model."""
    return any(_padding(table) is not None for _, table in _tables(model))


def _tables(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield path and module of the tables of text positions."""
    for path, module in model.named_modules():
        parent, _, name = path.rpartition(".")
        if name in NAMES and "entity" not in parent:
            yield path, module


def _rows(table: Any) -> int:
    """The number of rows; 0 if rows are computed on demand (M2M-100's sinusoids)."""
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
