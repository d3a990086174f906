"""Penalty on the distance of low-rank factors from orthonormal matrices.

AdaLoRA (Zhang et al. 2023, eq. 4): R(P, Q) = ‖PᵀP − I‖²_F + ‖QQᵀ − I‖²_F for a change PΛQ. peft calls P `lora_B`,
(out, r), and Q `lora_A`, (r, in).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def off_orthonormal(rows: Tensor) -> Tensor:
    """‖RRᵀ − I‖²_F of a matrix (r, n), which is zero if its r rows are orthonormal; for columns, pass the transpose."""
    import torch

    return (rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)).square().sum()


def orthogonality(model: nn.Module) -> Tensor | None:
    """R summed over all pairs `lora_A`, `lora_B` with a trained member, shape (); None if there is no pair."""
    import torch

    terms = [
        off_orthonormal(a.flatten(1)) + off_orthonormal(b.flatten(1).T)  # factors of convolutions have more dimensions
        for module in model.modules()
        for a, b in _pairs(module)
        if a.requires_grad or b.requires_grad
    ]
    return torch.stack(terms).sum() if terms else None


def _pairs(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """(A, B) of every adapter of a layer; they are modules in LoRA, and parameters in AdaLoRA."""
    rows: Any = getattr(module, "lora_A", {})
    columns: Any = getattr(module, "lora_B", {})
    return [tuple(getattr(f, "weight", f) for f in (rows[k], columns[k])) for k in rows if k in columns]
