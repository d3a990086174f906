"""frozen: train nothing. This is the baseline for all other strategies.

The model predicts as it was loaded. A head that the checkpoint lacks stays random; it is saved, so that the run always
returns the same predictions. Language models use only their pretrained knowledge.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pefttools.strategies.base import Strategy, read, restore, train_only, write

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from pefttools.bases.loading import Base


class Frozen(Strategy):
    """This strategy has no settings."""

    default_lr: ClassVar[float] = 1e-3
    lr_range: ClassVar[tuple[float, float]] = (1e-3, 1e-3)
    mergeable: ClassVar[bool] = True
    exact_start: ClassVar[bool] = True
    trains: ClassVar[bool] = False

    def wrap(self, base: Base) -> nn.Module:
        model = base.model.requires_grad_(False)
        model.heads = tuple(f"{path}." for path in base.head)  # type: ignore[assignment]  # what `save` writes
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        write(self, {name: p for name, p in model.named_parameters() if name.startswith(model.heads)}, folder)  # type: ignore

    def load(self, base: Base, folder: Path) -> nn.Module:
        train_only(base, ())
        restore(base.model, read(folder), str(folder))
        return self.wrap(base)

    def num_trainable(self, config: PretrainedConfig) -> int | None:
        del config
        return 0

    def merge(self, model: PreTrainedModel) -> PreTrainedModel:  # type: ignore[override]
        return model
