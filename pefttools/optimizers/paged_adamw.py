"""paged_adamw: adamw whose averages move to main memory when the GPU's memory is full.

Dettmers et al. (2023), QLoRA, section 3: m and v are in unified memory, which CUDA pages in and out, so that a batch of
long rows does not end a run with an out-of-memory error. The equation is adamw's, the implementation bitsandbytes'. On
a CPU the averages are in ordinary memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pefttools.optimizers.base import AdamOptimizer, Group

if TYPE_CHECKING:
    import torch


class PagedAdamW(AdamOptimizer):
    """Averages and ε."""

    @property
    def needed_modules(self) -> Mapping[str, str]:
        return {"bitsandbytes": ""}

    def build(self, groups: Sequence[Group], learning_rate: float) -> torch.optim.Optimizer:
        import bitsandbytes

        on_cpu = all(p.device.type == "cpu" for group in groups for p in group["params"])
        optimizer = bitsandbytes.optim.AdamW if on_cpu else bitsandbytes.optim.PagedAdamW  # paging on a CPU only warns
        return optimizer(groups, lr=learning_rate, betas=self.betas, eps=self.eps)
