"""galore: train every weight with gradients projected to a low rank (Zhao et al. 2024).

The matrices of the blocks are updated in the space of the top `rank` singular vectors of their gradients, so Adam's
moments are small. All other weights (embeddings, norms, biases, the head) use plain AdamW. Learning rate: 1e-5 to 3e-5
on GLUE with RoBERTa-base, rank 4 with scale 4 or rank 8 with scale 2 (table 7). On validation rows of question types,
2e-4 was best for MiniLM, which also needs a larger rate than usual with `full`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pefttools.bases import targets
from pefttools.bases.limits import refuse_rank_beyond
from pefttools.errors import UserError
from pefttools.nn.shape import Shape
from pefttools.strategies.base import Strategy, train_only

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from transformers import PretrainedConfig, PreTrainedModel

    from pefttools.bases.loading import Base


class GaLore(Strategy):
    """Settings of galore: rank, scale and update interval of the projection."""

    default_lr: ClassVar[float] = 2e-4
    lr_range: ClassVar[tuple[float, float]] = (1e-5, 1e-3)
    default_warmup: ClassVar[float] = 0.1
    mergeable: ClassVar[bool] = True
    exact_start: ClassVar[bool] = True

    rank: int = Field(default=8, ge=1)
    """Rank of the projected gradients."""
    scale: float = Field(default=2.0, gt=0)
    """α_G: factor on the projected update."""
    every: int = Field(default=200, ge=1)
    """T: steps between two decompositions of the gradients."""

    def wrap(self, base: Base) -> nn.Module:
        refuse_rank_beyond(base, targets.resolve(base, ("all",)), self.rank)
        train_only(base, ("",))
        return base.model

    def optimizer(self, model: nn.Module, groups: list[dict[str, Any]], settings: Any) -> Optimizer | None:
        from pefttools.nn import module_paths
        from pefttools.nn.galore import GaLoreAdamW

        own = settings.optimizer
        if own.name != "adamw":
            raise UserError(f"train.optimizer: galore works only with adamw, got {own.name}; remove train.optimizer")
        inside = {id(model.get_submodule(path).weight) for path in module_paths.linears(model)}
        split: list[dict[str, Any]] = []
        for group in groups:
            big = [p for p in group["params"] if id(p) in inside]
            plain = [p for p in group["params"] if id(p) not in inside]
            if big:
                split.append({**group, "params": big, "rank": self.rank, "scale": self.scale, "every": self.every})
            if plain:
                split.append({**group, "params": plain})
        return GaLoreAdamW(split, betas=own.betas, eps=own.eps, fused=True)

    def num_trainable(self, config: PretrainedConfig) -> int | None:
        shape = Shape.of(config)
        return None if shape is None else shape.backbone

    def merge(self, model: PreTrainedModel) -> PreTrainedModel:  # type: ignore[override]
        return model
