"""LoftQ's initialisation (Li et al. 2024, algorithm 1): a quantised base, and low-rank factors of the quantisation
error.

peft's own implementation needs a GPU. bitsandbytes converts to NF4 and back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def decompose(weight: Tensor, rank: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """The dequantised NF4 matrix Q (out, in), B (out, r) and A (r, in), by alternating Q = q(W - BA) and BA = SVD_r(W -
    Q)."""
    import bitsandbytes.functional as quant

    product = torch.zeros_like(weight)
    for _ in range(steps):
        packed, state = quant.quantize_4bit((weight - product).contiguous(), quant_type="nf4")
        quantised = quant.dequantize_4bit(packed, state).to(weight.dtype)
        u, s, vt = torch.linalg.svd(weight - quantised, full_matrices=False)
        root = s[:rank].sqrt()
        left, right = u[:, :rank] * root, root[:, None] * vt[:rank]
        product = left @ right
    return quantised, left, right  # type: ignore[possibly-unbound]


@torch.no_grad()
def start(model: nn.Module, rank: int, steps: int) -> None:
    """Set base weights and factors of every LoRA layer of a peft model whose scale is 1."""
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [m for m in model.modules() if isinstance(m, LoraLayer)]
    for layer in layers:
        weight = layer.get_base_layer().weight
        if weight.is_meta:
            continue
        matrix = weight.T if layer.fan_in_fan_out else weight
        quantised, left, right = decompose(matrix.float(), rank, steps)
        weight.copy_(quantised.T if layer.fan_in_fan_out else quantised)
        layer.lora_B["default"].weight.copy_(left)
        layer.lora_A["default"].weight.copy_(right)
