"""muon: update matrices along their orthogonalized momentum, and everything else with adamw.

Jordan et al. (2024), Muon: An optimizer for hidden layers in neural networks; Liu et al. (2025), Muon is Scalable for
LLM Training: b ← μb + (1−μ)g, o = NS(μb + (1−μ)g) ≈ UVᵀ where UΣVᵀ is the singular value decomposition,
w ← w − ηλw − η·0.2√max(m, n)·o for a matrix (m, n). NS is a Newton–Schulz iteration. The implementation is
torch.optim's.

It applies to matrices inside the blocks, including LoRA's factors. Biases, norms, embeddings and the head use adamw
with the same learning rate. The factor 0.2√max(m, n) gives updates as large as adamw's, so that adamw's learning rates
can be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pefttools.errors import UserError
from pefttools.optimizers.base import AdamOptimizer, Group, Rate

if TYPE_CHECKING:
    import torch


class Muon(AdamOptimizer):
    """Momentum and orthogonalization of the matrices; `betas` and `eps` are settings of adamw for the other weights."""

    separates_hidden_matrices: ClassVar[bool] = True

    momentum: Rate = 0.95
    """μ of the running average of the gradient."""
    nesterov: bool = True
    """Use Nesterov momentum: add the newest gradient to the average once more."""
    ns_steps: int = Field(default=5, ge=1, lt=100)
    """Newton–Schulz iterations per step."""
    adjust_lr: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """Factor on the learning rate of a matrix: 0.2√max(m, n), or √max(1, m/n) as in the first article (`original`)."""

    def build(self, groups: Sequence[Group], learning_rate: float) -> torch.optim.Optimizer:
        import torch

        from pefttools.optimizers._combined import CombinedOptimizer

        hidden = [group for group in groups if group["hidden"]]
        rest = [group for group in groups if not group["hidden"]]
        if not hidden:
            raise UserError(
                "train.optimizer: muon is for matrices inside the blocks, but this strategy trains none;"
                " use train.optimizer=adamw"
            )
        parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                hidden, lr=learning_rate, momentum=self.momentum, nesterov=self.nesterov, ns_steps=self.ns_steps,
                adjust_lr_fn=self.adjust_lr,
            )
        ]  # fmt: skip
        if rest:
            parts.append(torch.optim.AdamW(rest, lr=learning_rate, betas=self.betas, eps=self.eps, fused=True))
        return CombinedOptimizer(parts)
