"""vera: W + diag(b) B diag(d) A with random A and B, frozen and shared (Kopiczko et al. 2024, eq. 2), through peft.

b is initialised to zero, so the start is exact, and d to 0.1. Learning rate: 1e-2, and 4e-3 for the head, in the
paper's GLUE runs.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pefttools.bases import targets
from pefttools.bases.targets import Targets
from pefttools.nn.shape import Shape
from pefttools.strategies._peft_strategy import PeftStrategy

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PretrainedConfig

    from pefttools.bases.loading import Base


class Vera(PeftStrategy):
    """Settings of vera: size and targets of the shared projections."""

    default_lr: ClassVar[float] = 1e-2
    lr_range: ClassVar[tuple[float, float]] = (1e-3, 5e-2)

    rank: int = Field(default=256, ge=1)
    """r, the inner size of BA; it may exceed a matrix's sides."""
    d_initial: float = Field(default=0.1, gt=0)
    """Initial value of d."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of A."""
    projection_seed: int = Field(default=0, ge=0)
    """Seed of A and B."""
    save_projection: bool = Field(default=True)
    """Whether to save A and B, too; otherwise they are recomputed from their seed."""
    targets: Targets = Field(default=("query", "value"))
    """Which matrices of the blocks: `all`, roles (`query`, `down` …), or patterns on names and paths."""

    def config(self, base: Base) -> PeftConfig:
        from peft import VeraConfig

        paths = targets.resolve(base, self.targets)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Specified to not save vera_A")  # the user chose that
            return VeraConfig(
                task_type=base.task_type,
                r=self.rank,
                d_initial=self.d_initial,
                vera_dropout=self.dropout,
                projection_prng_key=self.projection_seed,
                save_projection=self.save_projection,
                target_modules=paths,
                modules_to_save=list(base.head),
                fan_in_fan_out=targets.are_transposed(base, paths),
            )

    def lr_scale(self, name: str) -> float:
        return 1.0 if "vera_lambda" in name else 0.4  # the paper's 4e-3 for the head

    def num_trainable(self, config: PretrainedConfig) -> int | None:
        if (shape := Shape.of(config)) is None or (sides := targets.sides(shape, self.targets)) is None:
            return None
        return shape.layers * sum(out + self.rank for _, out in sides)
