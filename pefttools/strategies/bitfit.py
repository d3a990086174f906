"""bitfit: train only the bias terms (Ben Zaken et al. 2022).

By default all biases of the backbone, with those of the norms: L(7d+f)+d parameters on a BERT-like encoder, +d with a
pooler. `subset` is the paper's cheaper choice, the biases of the query and of the first MLP matrix (b_q, b_m2), L(d+f).
Learning rate: the authors' repository uses 1e-3 over 16 epochs of batches of 8. In 4 epochs of batches of 32 on
question types, 3e-3, 5e-3 and 1e-2 were equally good on validation rows; at 1e-2, one of two runs on movie sentiment
failed to converge (test accuracy .53).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pefttools.bases import targets
from pefttools.errors import UserError
from pefttools.nn.shape import Shape
from pefttools.strategies.base import Strategy, train_only

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from pefttools.bases.loading import Base


class BitFit(Strategy):
    """Settings of bitfit: which biases are trained."""

    default_lr: ClassVar[float] = 5e-3
    lr_range: ClassVar[tuple[float, float]] = (3e-4, 3e-2)
    shardable: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    exact_start: ClassVar[bool] = True
    variants: ClassVar[Any] = {"subset": {"biases": "subset"}}

    biases: Literal["all", "subset"] = Field(default="all")
    """Which biases: `all` outside the head, or the `subset` of the query and the first MLP matrix."""

    def wrap(self, base: Base) -> nn.Module:
        train_only(base, ())
        chosen_paths = None if self.biases == "all" else set(targets.with_roles(base, "query", "up"))
        chosen = 0
        for name, parameter in base.model.named_parameters():
            path, _, last = name.rpartition(".")
            if last == "q_bias":  # DeBERTa stores the query's bias outside of the fused matrix
                path = f"{path}.in_proj"
            if last.endswith("bias") and not parameter.requires_grad and (chosen_paths is None or path in chosen_paths):
                parameter.requires_grad_(True)
                chosen += 1
        if not chosen:
            raise UserError(
                f"strategy: {base.source} ({type(base.model).__name__}) has no biases"
                f"{'' if chosen_paths is None else ' in its query and first MLP matrices'} outside its head;"
                " use layer_norm or ia3, which train as few parameters"
            )
        return base.model

    def num_trainable(self, config: PretrainedConfig) -> int | None:
        if (shape := Shape.of(config)) is None:
            return None
        d, f = shape.hidden, shape.inner
        if self.biases == "subset":
            return shape.layers * (d + f)
        return shape.layers * (7 * d + f) + d + (d if shape.has_pooler else 0)

    def merge(self, model: PreTrainedModel) -> PreTrainedModel:  # type: ignore[override]
        return model
