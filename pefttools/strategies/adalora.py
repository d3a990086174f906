"""adalora: W + (α/r₀)·PΛQ, with ranks pruned by importance during training (Zhang et al. 2023), through peft.

The average rank falls from `init_rank` to `target_rank` along a cubic curve (eq. 11) between the shares of steps
`warmup_share` and 1 - `final_share`. The training loop adds the orthogonal term γ(‖PᵀP-I‖² + ‖QQᵀ-I‖²) (eq. 4) for
every task; peft adds its own only if the model itself computes the loss. Learning rate: 5e-4 to 2.2e-3 in the paper's
table 8, where the initial rank is 1.5 times the target rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from pefttools.bases import targets
from pefttools.bases.limits import refuse_rank_beyond
from pefttools.bases.targets import Targets
from pefttools.errors import UserError
from pefttools.nn.orthogonal import orthogonality
from pefttools.nn.shape import Shape
from pefttools.strategies._peft_strategy import PeftStrategy

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn
    from transformers import PretrainedConfig

    from pefttools.bases.loading import Base


class AdaLora(PeftStrategy):
    """Settings of adalora: ranks, their schedule, and the orthogonal term."""

    default_lr: ClassVar[float] = 2e-3
    lr_range: ClassVar[tuple[float, float]] = (3e-4, 1e-2)

    only_with: ClassVar[Any] = dict.fromkeys(
        ("warmup_share", "final_share", "every", "beta1", "beta2"),
        ("strategy.target_rank below init_rank", lambda adalora: adalora.target_rank < adalora.init_rank),
    )

    init_rank: int = Field(default=12, ge=1)
    """r₀, the initial rank of every matrix."""
    target_rank: int = Field(default=8, ge=1)
    """Average rank at the end. Only checkpoints after the last pruning can be the best one."""
    alpha: float = Field(default=32.0, gt=0)
    """α: PΛQ is multiplied by α/r₀."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of Q."""
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps before anything is pruned."""
    final_share: float = Field(default=0.3, gt=0, lt=1)
    """Share of the steps after the last pruning."""
    every: int = Field(default=10, ge=1)
    """Steps between two prunings."""
    orthogonal: float = Field(default=0.1, ge=0)
    """γ of the orthogonal term."""
    beta1: float = Field(default=0.85, gt=0, lt=1)
    """Decay rate of the average of the sensitivity."""
    beta2: float = Field(default=0.85, gt=0, lt=1)
    """Decay rate of the average of the sensitivity's uncertainty."""
    targets: Targets = Field(default=("all",))
    """Which matrices of the blocks: `all`, roles (`query`, `down` …), or patterns on names and paths."""

    @model_validator(mode="after")
    def _shrinks(self) -> Self:
        if self.target_rank > self.init_rank:
            raise ValueError(f"target_rank: {self.target_rank} is more than init_rank, which is {self.init_rank}")
        if self.warmup_share + self.final_share >= 1:
            raise ValueError("warmup_share and final_share: leave no steps for pruning; their sum must be below 1")
        return self

    def config(self, base: Base) -> PeftConfig:
        from peft import AdaLoraConfig

        paths = targets.resolve(base, self.targets)
        refuse_rank_beyond(base, paths, self.init_rank, "strategy.init_rank")
        return AdaLoraConfig(
            task_type=base.task_type,
            init_r=self.init_rank,
            target_r=self.target_rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft's own annotation says int; it only multiplies
            lora_dropout=self.dropout,
            beta1=self.beta1,
            beta2=self.beta2,
            orth_reg_weight=self.orthogonal,
            total_step=1_000_000,  # `updated` sets it once it is known
            target_modules=paths,
            modules_to_save=list(base.head),
            fan_in_fan_out=targets.are_transposed(base, paths),
        )

    def penalty(self, model: nn.Module) -> Tensor | None:
        value = orthogonality(model) if self.orthogonal else None
        return None if value is None else self.orthogonal * value

    def updated(self, model: Any, step: int, num_steps: int) -> None:
        if self.target_rank == self.init_rank:
            return  # nothing to prune; peft would fail on the 0th smallest score
        self._set_schedule(model, num_steps)
        allocator = model.base_model.rankallocator
        if step == num_steps - self._final_steps(num_steps) and not allocator.ipt:
            allocator.update_ipt(
                model.base_model.model
            )  # so short a run is pruned after its first step, by that step's gradients
        model.base_model.update_and_allocate(step)

    def _set_schedule(self, model: Any, num_steps: int) -> None:
        settings = model.peft_config["default"]
        settings.total_step, settings.deltaT = num_steps, self.every
        settings.tfinal = self._final_steps(num_steps)
        settings.tinit = min(round(self.warmup_share * num_steps), max(num_steps - settings.tfinal - 1, 0))

    def is_done(self, step: int, num_steps: int) -> bool:
        return self.target_rank == self.init_rank or step >= num_steps - self._final_steps(num_steps)

    def _final_steps(self, num_steps: int) -> int:
        return min(max(1, round(self.final_share * num_steps)), num_steps - 1)

    def state(self, model: Any) -> dict[str, Any]:
        allocator = model.base_model.rankallocator
        averages = {name: getattr(allocator, name) for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")}
        return {**averages, "rank_pattern": model.peft_config["default"].rank_pattern}

    def set_state(self, model: Any, state: Mapping[str, Any], num_steps: int) -> None:
        for name in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
            setattr(model.base_model.rankallocator, name, dict(state[name]))
        model.peft_config["default"].rank_pattern = state["rank_pattern"]
        self._set_schedule(model, num_steps)

    def facts(self, model: Any) -> dict[str, Any]:
        if model.device.type == "meta":
            return {}
        ranks = {
            path.removeprefix("base_model.model."): int((module.lora_E["default"] != 0).sum())
            for path, module in model.named_modules()
            if "default" in getattr(module, "lora_E", {})
        }
        return {"ranks": ranks}

    def save(self, model: Any, folder: Path) -> None:
        # pruned directions are zeros in Λ; the last step's pattern may not match the best checkpoint, which is older
        model.peft_config["default"].rank_pattern = None
        super().save(model, folder)

    def continued(self, base: Base, folder: Path) -> nn.Module:  # noqa: ARG002
        raise UserError(
            "start.adapter: continue: AdaLoRA has pruned its ranks, and cannot begin again; use start.adapter=stack"
        )

    def num_trainable(self, config: PretrainedConfig) -> int | None:
        if (shape := Shape.of(config)) is None or (sides := targets.sides(shape, self.targets)) is None:
            return None
        return shape.layers * sum(self.init_rank * (i + o) + self.init_rank for i, o in sides)
