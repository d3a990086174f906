"""ia3: scale keys, values and inner activations by trained vectors (Liu et al. 2022, section 3.3), through peft.

l_k⊙K, l_v⊙V and (l_ff⊙γ(W₁x))W₂, with all vectors initialised to ones, so the start is exact: L(2d+f) parameters.
Learning rate: 3e-3 over 1000 steps in the paper; 1e-2 over half as many steps on question types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pefttools.bases import targets
from pefttools.bases.targets import MaybeTargets, Targets
from pefttools.nn.shape import Shape
from pefttools.strategies._peft_strategy import PeftStrategy

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PretrainedConfig

    from pefttools.bases.loading import Base


class IA3(PeftStrategy):
    """Settings of ia3: which matrices have scaled outputs, and which have scaled inputs."""

    default_lr: ClassVar[float] = 1e-2
    lr_range: ClassVar[tuple[float, float]] = (1e-3, 5e-2)
    shardable: ClassVar[bool] = True

    outputs: Targets = Field(default=("key", "value"))
    """Matrices whose outputs are scaled: roles, or patterns on names and paths."""
    inputs: MaybeTargets = Field(default=("down",))
    """Matrices whose inputs are scaled; an empty list means none."""

    def config(self, base: Base) -> PeftConfig:
        from peft import IA3Config

        inputs = targets.resolve(base, self.inputs, "strategy.inputs") if self.inputs else []
        outputs = targets.resolve(base, self.outputs, "strategy.outputs")
        return IA3Config(
            task_type=base.task_type,
            target_modules=[*outputs, *inputs],
            feedforward_modules=inputs,
            modules_to_save=list(base.head),
            fan_in_fan_out=targets.are_transposed(base, [*outputs, *inputs]),
        )

    def num_trainable(self, config: PretrainedConfig) -> int | None:
        if (shape := Shape.of(config)) is None:
            return None
        inputs, outputs = targets.sides(shape, self.inputs), targets.sides(shape, self.outputs)
        if inputs is None or outputs is None:
            return None
        return shape.layers * (sum(i for i, _ in inputs) + sum(o for _, o in outputs))
