"""paged_adamw: adamw whose averages move to the computer's memory where a GPU's runs out.

Dettmers et al. (2023), QLoRA, section 3: m and v lie in unified memory, which CUDA pages in and out, so that a peak of
long rows does not end a run. The equation is adamw's, the implementation that of bitsandbytes. On a CPU there is
nowhere to page to: the same averages lie in plain memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pefttools.optimizers.base import AdamOptimizer, Group

if TYPE_CHECKING:
    import torch


class PagedAdamW(AdamOptimizer):
    """Averages and ε."""

    def build(self, groups: Sequence[Group], learning_rate: float) -> torch.optim.Optimizer:
        import bitsandbytes

        on_cpu = all(p.device.type == "cpu" for group in groups for p in group["params"])
        made = bitsandbytes.optim.AdamW if on_cpu else bitsandbytes.optim.PagedAdamW  # paging on a CPU only warns
        return made(groups, lr=learning_rate, betas=self.betas, eps=self.eps)
