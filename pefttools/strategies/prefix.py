"""prefix: virtual keys and values in every block (Li and Liang 2021; P-tuning v2, Liu et al. 2022), through peft.

K ← [P_K; K], V ← [P_V; V]: 2Lpd parameters. `p_tuning_v2` trains them directly; `prefix_tuning` computes them from
smaller vectors by an MLP during training, and saves only the results. An encoder's position ids are shifted by p.
Learning rate: 5e-3 over 100 epochs in P-tuning v2's repository; 1e-2 over 4 epochs on question types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pefttools.bases.limits import refuse_without_past, take_positions
from pefttools.nn.shape import Shape
from pefttools.strategies._peft_strategy import PeftStrategy

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PretrainedConfig

    from pefttools.bases.loading import Base


class Prefix(PeftStrategy):
    """Settings of prefix: the number of virtual tokens, and how they are computed."""

    default_lr: ClassVar[float] = 1e-2
    lr_range: ClassVar[tuple[float, float]] = (1e-3, 1e-1)
    mergeable: ClassVar[bool] = False
    why_not_merged: ClassVar[str] = (
        "virtual keys and values are not weights of the base, so they cannot be merged;"
        " use --to adapter, or train strategy=lora, which merges"
    )
    exact_start: ClassVar[bool] = False
    only_with: ClassVar[Any] = {
        "projection_size": ("strategy.variant=prefix_tuning", lambda prefix: prefix.variant == "prefix_tuning")
    }
    variants: ClassVar[Any] = {"prefix_tuning": {"variant": "prefix_tuning"}}

    tokens: int = Field(default=20, ge=1)
    """p, the number of virtual tokens. The maximum length of a text shrinks by this number."""
    variant: Literal["p_tuning_v2", "prefix_tuning"] = Field(default="p_tuning_v2")
    """Whether keys and values are trained directly (`p_tuning_v2`) or through an MLP (`prefix_tuning`)."""
    projection_size: int | None = Field(default=None, ge=1)
    """Inner width of the MLP of `prefix_tuning`; null means the model's own width."""

    def config(self, base: Base) -> PeftConfig:
        from peft import PrefixTuningConfig

        inner = self.projection_size or base.model.config.hidden_size
        return PrefixTuningConfig(
            task_type=base.task_type,
            num_virtual_tokens=self.tokens,
            prefix_projection=self.variant == "prefix_tuning",
            encoder_hidden_size=inner if self.variant == "prefix_tuning" else None,  # type: ignore[arg-type]
            modules_to_save=list(base.head),
        )

    def make_room(self, base: Base) -> None:
        refuse_without_past(base)
        take_positions(base, self.tokens, "strategy.tokens")

    def num_trainable(self, config: PretrainedConfig) -> int | None:
        if (shape := Shape.of(config)) is None or self.variant != "p_tuning_v2":
            return None
        return 2 * shape.layers * self.tokens * shape.hidden
