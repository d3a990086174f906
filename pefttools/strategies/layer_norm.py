"""layer_norm: train only the normalisation layers (Zhao et al. 2024; Houlsby et al. 2019, section 3.4).

Through peft's LN tuning, with explicit targets. (2L+1)·2d parameters on a BERT-like encoder. Learning rate: chosen on
validation rows of question types, between 1e-3 and 1e-2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pefttools.errors import UserError
from pefttools.nn import module_paths
from pefttools.nn.shape import Shape
from pefttools.strategies._peft_strategy import PeftStrategy

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PretrainedConfig

    from pefttools.bases.loading import Base


class LayerNorm(PeftStrategy):
    """This strategy has no settings."""

    default_lr: ClassVar[float] = 3e-3
    lr_range: ClassVar[tuple[float, float]] = (3e-4, 3e-2)
    shardable: ClassVar[bool] = True

    def config(self, base: Base) -> PeftConfig:
        from peft import LNTuningConfig

        heads = tuple(f"{path}." for path in base.head)
        paths = [path for path in module_paths.norms(base.model) if not f"{path}.".startswith(heads)]
        if not paths:
            raise UserError(
                f"strategy: {base.source} ({type(base.model).__name__}) has no normalisation layers; use lora"
            )
        return LNTuningConfig(task_type=base.task_type, target_modules=paths, modules_to_save=list(base.head))

    def num_trainable(self, config: PretrainedConfig) -> int | None:
        shape = Shape.of(config)
        return None if shape is None else (2 * shape.layers + 1) * 2 * shape.hidden
