"""A linear layer whose matrix is a product of two thin ones: θ = UVᵀ."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """y = (x V) Uᵀ + b with U (out, r) and V (in, r), initialised with the truncated SVD of a matrix (out, in).

    U = U_r √S_r and V = V_r √S_r (Eckart-Young: the nearest matrix of rank r). `start` is the replaced matrix if
    `keep_start`, for a penalty toward it, else None; `lost` and `energy` are ‖UVᵀ-θ‖²_F and ‖θ‖²_F at the start.
    """

    def __init__(self, module: nn.Module, rank: int, keep_start: bool = False) -> None:
        super().__init__()
        weight, bias = matrix(module).detach(), module.bias
        self.transposed = not isinstance(module, nn.Linear)
        if weight.is_meta:
            out, inner = weight.shape
            left, right = weight.new_empty(out, rank), weight.new_empty(inner, rank)
            self.lost = self.energy = float("nan")
        else:
            u, s, vt = torch.linalg.svd(weight.float(), full_matrices=False)
            root = s[:rank].sqrt()
            left, right = u[:, :rank] * root, vt[:rank].T * root
            self.lost, self.energy = float(s[rank:].square().sum()), float(s.square().sum())
        self.U, self.V = nn.Parameter(left.contiguous()), nn.Parameter(right.contiguous())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())  # type: ignore[operator]
        self.register_buffer("start", weight.clone() if keep_start else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.linear(x, self.V.T), self.U, self.bias)

    def weight(self) -> Tensor:
        """The product UVᵀ."""
        return self.U @ self.V.T

    def plain(self) -> nn.Module:
        """The module it replaced, with UVᵀ as its weight."""
        from transformers.pytorch_utils import Conv1D

        (out, rank), inner = self.U.shape, self.V.shape[0]
        del rank
        module = Conv1D(out, inner) if self.transposed else nn.Linear(inner, out, self.bias is not None)
        weight = self.U.double() @ self.V.double().T  # rounded once
        with torch.no_grad():
            module.weight.copy_(weight.T if self.transposed else weight)
            if self.bias is not None:
                module.bias.copy_(self.bias)
        return module.to(self.U.device, self.U.dtype)


def matrix(module: nn.Module) -> Tensor:
    """The matrix (out, in) of an `nn.Linear`, or of a `Conv1D`, which stores it transposed."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight if isinstance(module, nn.Linear) else weight.T


def rank_for_energy(weight: Tensor, share: float) -> int:
    """The smallest rank whose truncated SVD keeps this share of ‖θ‖²_F."""
    energies = torch.linalg.svdvals(weight.float()).square().cumsum(0)
    return int((energies < share * energies[-1]).sum()) + 1
