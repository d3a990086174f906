"""The sizes of a BERT-like encoder, for the closed forms of parameter counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Sizes of an encoder whose blocks have four d×d matrices and two d×f ones, with biases and two norms."""

    layers: int
    hidden: int
    inner: int
    embeddings: int
    """Rows of the embedding tables."""
    has_pooler: bool

    @classmethod
    def of(cls, config: Any) -> Shape | None:
        """The sizes of a BERT-like model; None for other model types."""
        if config.model_type not in ("bert", "roberta", "xlm-roberta", "camembert"):
            return None
        rows = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
        return cls(
            config.num_hidden_layers, config.hidden_size, config.intermediate_size, rows, config.model_type == "bert"
        )

    @property
    def block(self) -> int:
        """Parameters of one block."""
        d, f = self.hidden, self.inner
        return 4 * d * d + 2 * d * f + 9 * d + f

    @property
    def pooler(self) -> int:
        """Parameters of the pooler; 0 if the classification model has none."""
        return (self.hidden**2 + self.hidden) if self.has_pooler else 0

    @property
    def backbone(self) -> int:
        """Parameters of everything except the head."""
        return (self.embeddings + 2) * self.hidden + self.layers * self.block + self.pooler

    def sides(self, path: str) -> tuple[int, int]:
        """(in, out) of a block's matrix by its name."""
        d, f = self.hidden, self.inner
        if path.endswith("intermediate.dense"):
            return d, f
        return (d, d) if "attention" in path else (f, d)
