"""top_layers: train the last k blocks, the modules above them, and the head; k = 0 trains only the head.

k = 0 is linear probing: only modules that the checkpoint lacks or never trained are trained. With k >= 1, the modules
above the last block (final norm, pooler) are trained, too. Learning rate: on validation rows of question types, 1e-2
was best for the head alone and 1e-3 for the last two blocks; with more blocks it falls as 1/k toward that of `full`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pefttools.errors import UserError
from pefttools.nn import module_paths
from pefttools.nn.shape import Shape
from pefttools.strategies.base import Strategy, train_only

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from pefttools.bases.loading import Base


class TopLayers(Strategy):
    """Settings of top_layers: how many blocks are trained."""

    default_lr: ClassVar[float] = 1e-3
    lr_range: ClassVar[tuple[float, float]] = (1e-4, 1e-2)
    shardable: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    exact_start: ClassVar[bool] = True

    variants: ClassVar[Any] = {"last_one": {"layers": 1}}

    layers: int = Field(default=0, ge=0)
    """How many blocks, counted from the top, are trained in addition to the head."""

    def start_lr(self) -> float:
        if not self.layers:
            return 10 * self.default_lr  # a head alone needs a larger rate
        return min(1, 2 / self.layers) * self.default_lr

    def wrap(self, base: Base) -> nn.Module:
        blocks = module_paths.blocks(base.model)
        if self.layers > len(blocks):
            raise UserError(f"strategy.layers: {self.layers} is more than the {len(blocks)} blocks of {base.source}")
        if not self.layers and not base.head:
            raise UserError(
                f"strategy.layers: 0 trains only a new head, but {base.source} needs none for this task;"
                " set it to 1 or more"
            )
        above = module_paths.above_blocks(base.model) if self.layers else ()
        train_only(base, [*blocks[len(blocks) - self.layers :], *above])
        return base.model

    def num_trainable(self, config: PretrainedConfig) -> int | None:
        if (shape := Shape.of(config)) is None:
            return None
        return self.layers * shape.block + (shape.pooler if self.layers else 0)

    def merge(self, model: PreTrainedModel) -> PreTrainedModel:  # type: ignore[override]
        return model
