"""A plain LoRA layer as one autograd function (Hu et al. 2021, eq. 3: h = Wx + s·BAx), used inside of peft's modules.

peft's layer computes three products and saves their inputs in fp32. Here, fp32 layers multiply by the merged W + s·BA,
which is recomputed in the backward pass and never saved. bf16 layers add s·(xAᵀ)Bᵀ in place to xWᵀ, since bf16 cannot
represent small changes of W. The backward pass computes only the gradients of the low-rank factors and the input:
dB = s·dYᵀ(XAᵀ), dA = s·(dYB)ᵀX and dX = dY·W + s·(dYB)·A. peft still provides parameters, saving, loading and merging.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _LoraLinear(torch.autograd.Function):
    """(x, W, bias, A, B, s) -> x(W + s·BA)ᵀ + bias; x (rows, in), W (out, in), A (rank, in), B (out, rank)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        dtype = _compute_dtype(x, weight)
        rows = x.to(dtype)
        weight, down, up = (tensor.to(dtype) for tensor in (weight, down, up))
        bias = None if bias is None else bias.to(dtype)
        if dtype is torch.float32:
            inner = None
            output = nn.functional.linear(rows, torch.addmm(weight, up, down, alpha=scaling), bias)
        else:
            inner = rows @ down.T
            output = nn.functional.linear(rows, weight, bias).addmm_(inner, up.T, alpha=scaling)
        ctx.save_for_backward(rows, weight, down, up, inner)
        ctx.scaling, ctx.dtype = scaling, x.dtype
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, weight, down, up, inner = ctx.saved_tensors
        grad = grad.to(rows.dtype)
        skinny = (grad @ up) * ctx.scaling
        dx = da = db = None
        if ctx.needs_input_grad[0]:
            if rows.dtype is torch.float32:
                dx = grad @ torch.addmm(weight, up, down, alpha=ctx.scaling)
            else:
                dx = (grad @ weight).addmm_(skinny, down)
            dx = dx.to(ctx.dtype)
        if ctx.needs_input_grad[3]:
            da = (skinny.T @ rows).float()
        if ctx.needs_input_grad[4]:
            inner = rows @ down.T if inner is None else inner
            db = (grad.T @ inner).float() * ctx.scaling
        return dx, None, None, da, db, None


def _compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype that `nn.Linear` would compute in: autocast's, else the promoted type of input and weight."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return torch.promote_types(x.dtype, weight.dtype)


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float) -> Tensor:
    """x(W + s·BA)ᵀ + bias with gradients only for `x`, `down` and `up`; `weight` and `bias` must be frozen.

    Args:
        x: (…, in).
        weight: (out, in).
        down: A, (rank, in), fp32.
        up: B, (out, rank), fp32.
        scaling: s, peft's α/r or α/√r.
    """
    output: Any = _LoraLinear.apply(x.reshape(-1, x.shape[-1]), weight, bias, down, up, scaling)
    return output.view(*x.shape[:-1], -1)  # outside of the function: models may change outputs in place


def applies(module: nn.Module) -> bool:
    """Whether a peft layer has exactly this form: one plain adapter without dropout, on a frozen matrix."""
    from peft.tuners.lora.layer import Linear

    if type(module) is not Linear or type(module.base_layer) is not nn.Linear:
        return False
    names: Any = module.active_adapters
    if len(names) != 1 or names[0] not in module.lora_A or module.merged or module.disable_adapters:
        return False
    name = names[0]
    down, up = module.lora_A[name], module.lora_B[name]
    frozen = not any(p.requires_grad for p in module.base_layer.parameters())
    fp32 = down.weight.dtype is torch.float32 and up.weight.dtype is torch.float32
    plain = name not in module.lora_variant and isinstance(module.lora_dropout[name], nn.Identity)
    floating = module.base_layer.weight.is_floating_point() and module.base_layer.weight.dtype is not torch.float16
    return frozen and fp32 and plain and floating and up.bias is None and not hasattr(module.base_layer, "_hf_hook")


@contextmanager
def replace_lora_layers(model: nn.Module) -> Iterator[int]:
    """A context in which all suitable layers use `lora_linear`; yields their number."""
    changed: list[Any] = [module for module in model.modules() if applies(module)]
    for module in changed:
        module.forward = _forward_of(module)
    try:
        yield len(changed)
    finally:
        for module in changed:
            del module.forward


def _forward_of(module: Any) -> Any:
    (name,) = module.active_adapters
    base, down, up = module.base_layer, module.lora_A[name], module.lora_B[name]

    def forward(x: Tensor) -> Tensor:
        return lora_linear(x, base.weight, base.bias, down.weight, up.weight, module.scaling[name])

    return forward
