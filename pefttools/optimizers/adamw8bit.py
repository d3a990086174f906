"""adamw8bit: adamw with its averages in 8 bits, a quarter of their memory.

Dettmers et al. (2022), 8-bit Optimizers via Block-wise Quantization: adamw's m and v are each kept as an index into a
map of 256 values, times the largest magnitude of their block of 256. From bitsandbytes. Small tensors keep theirs in 32
bits, as most of LoRA's do; it pays where whole matrices are trained. On a CPU a step takes several times longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pefttools.optimizers.base import AdamOptimizer, Group

if TYPE_CHECKING:
    import torch


class AdamW8bit(AdamOptimizer):
    """Averages, ε, and which tensors are large enough."""

    variants: ClassVar[Any] = {"small tensors": {"min_8bit_size": 64}}

    min_8bit_size: int = Field(default=4096, ge=1)
    """Tensors of fewer elements keep their averages in 32 bits."""

    def build(self, groups: Sequence[Group], learning_rate: float) -> torch.optim.Optimizer:
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(
            groups, lr=learning_rate, betas=self.betas, eps=self.eps, min_8bit_size=self.min_8bit_size
        )
