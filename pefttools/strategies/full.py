"""full: train every weight.

Learning rate: 2e-5 to 5e-5 for BERT with batches of 16 and 32 (Devlin et al. 2019, appendix A.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pefttools.nn.shape import Shape
from pefttools.strategies.base import Strategy, train_only

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from pefttools.bases.loading import Base


class Full(Strategy):
    """This strategy has no settings."""

    default_lr: ClassVar[float] = 5e-5
    lr_range: ClassVar[tuple[float, float]] = (1e-5, 5e-4)
    shardable: ClassVar[bool] = True
    head_lr_scale: ClassVar[float] = 20.0
    default_warmup: ClassVar[float] = 0.1
    mergeable: ClassVar[bool] = True
    exact_start: ClassVar[bool] = True

    def wrap(self, base: Base) -> nn.Module:
        train_only(base, ("",))
        return base.model

    def num_trainable(self, config: PretrainedConfig) -> int | None:
        shape = Shape.of(config)
        return None if shape is None else shape.backbone

    def merge(self, model: PreTrainedModel) -> PreTrainedModel:  # type: ignore[override]
        return model
