"""The sizes of models and rows: those of the benchmark, and tiny ones that check that it works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """Training of one model on rows of one length."""

    family: str
    """`bert` for classification, `llama` for a language model."""
    model: Mapping[str, int]
    """Values of its configuration."""
    strategy: Mapping[str, Any]
    rows: int
    tokens: int
    """Number of tokens of the longest row; rows of language models are shorter and packed."""
    batch_size: int


@dataclass(frozen=True)
class Sizes:
    """All sizes of a run of the benchmark."""

    cases: Mapping[str, Case]
    """The most important ones first."""
    product_side: int
    """Rows and columns of the square matrices whose product is timed."""
    golden_seconds: float
    """Time for the comparison with the recorded losses; cases that have not begun by then are left out."""
    golden_cases: str
    """Text in the names of the compared cases."""


_MINILM = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}
_SMALL = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
          "num_key_value_heads": 3}  # fmt: skip
_LARGE = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
          "num_key_value_heads": 4}  # fmt: skip
_TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_LORA = {"name": "lora", "rank": 8, "targets": ["all"]}
_FULL = {"name": "full"}

FULL = Sizes(
    {
        "encoder": Case("bert", _MINILM, _LORA, 8192, 128, 64),
        "decoder-1.1b": Case("llama", _LARGE, _LORA, 512, 2048, 16),
        "decoder-1.1b-full": Case("llama", _LARGE, _FULL, 256, 2048, 16),
        "decoder-0.1b": Case("llama", _SMALL, _LORA, 1024, 512, 32),
        "encoder-512": Case("bert", _MINILM, _LORA, 2048, 512, 32),
        "decoder-1.1b-4096": Case("llama", _LARGE, _LORA, 128, 4096, 8),
    },
    8192, 60.0, "llama",
)  # fmt: skip
SMOKE = Sizes(
    {"encoder": Case("bert", _TINY, _LORA, 64, 16, 16), "decoder-1.1b": Case("llama", _TINY, _LORA, 32, 32, 8)},
    128, 3.0, "llama lora",
)  # fmt: skip
