"""adamw8bit: adamw with its averages in 8 bits, a quarter of their memory.

Dettmers et al. (2022), 8-bit Optimizers via Block-wise Quantization: adamw's m and v are stored as indices into a table
of 256 values, scaled by the largest magnitude in each block of 256. The implementation is bitsandbytes'. Averages of
small tensors, such as most of LoRA's, stay in 32 bits, so it saves memory only if whole matrices are trained. On a CPU
a step takes several times longer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pefttools.optimizers.base import AdamOptimizer, Group

if TYPE_CHECKING:
    import torch


class AdamW8bit(AdamOptimizer):
    """Averages, ε, and the smallest tensors with 8-bit averages."""

    variants: ClassVar[Any] = {"small tensors": {"min_8bit_size": 64}}

    min_8bit_size: int = Field(default=4096, ge=1)
    """Averages of tensors with fewer elements stay in 32 bits."""

    @property
    def needed_modules(self) -> Mapping[str, str]:
        return {"bitsandbytes": ""}

    def build(self, groups: Sequence[Group], learning_rate: float) -> torch.optim.Optimizer:
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(
            groups, lr=learning_rate, betas=self.betas, eps=self.eps, min_8bit_size=self.min_8bit_size
        )
