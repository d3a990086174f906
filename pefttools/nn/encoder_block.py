"""A block of a BERT-like encoder as one autograd function, in bf16 on a CPU (Vaswani et al. 2017; Devlin et al. 2019).

h = LN(x + drop(O(attention(Qx, Kx, Vx)))), y = LN(h + drop(W₂ gelu(W₁ h))). transformers computes this in many calls,
each with casts, copies and a node for autograd. Here Q, K and V are one product, inputs and trained weights are cast to
bf16 once, dropout's factor is part of the next operation, and the softmax is in fp32, which is faster on CPUs than bf16
(and more exact). x, h, y and the norms stay in the dtype in which the model has them. Any weight may be frozen or
trained, and any of the six matrices may have LoRA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pefttools.nn.dropout import drawn_mask, factor, hide
from pefttools.nn.fused_weights import DTYPE, FusedWeights
from pefttools.nn.joint_linear import JointLinear


@dataclass(eq=False)
class EncoderBlock(FusedWeights):
    """The parts of a block."""

    heads: int
    scaling: float
    """Factor of the attention scores."""
    products: tuple[JointLinear, JointLinear, JointLinear, JointLinear]
    """Query, key and value; attention's output; the two layers of the feed-forward part."""
    norms: tuple[nn.LayerNorm, nn.LayerNorm]
    """Those after attention and after the feed-forward part."""
    dropouts: tuple[nn.Dropout, nn.Dropout, nn.Dropout]
    """Those of attention, its output, and the feed-forward part."""

    def __post_init__(self) -> None:
        self.set_weights(p for norm in self.norms for p in (norm.weight, norm.bias))

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The block's output, with the shape and dtype of `x`.

        Args:
            x: (rows, tokens, width).
            mask: fp32, added to the attention scores, broadcast to (rows, heads, tokens, tokens).
        """
        return _EncoderBlock.apply(x, mask, self, *self.trained)  # type: ignore[return-value]


class _EncoderBlock(torch.autograd.Function):
    """(x, mask, block, trained parameters …) -> y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor | None, block: EncoderBlock, *trained: Tensor) -> Tensor:
        del trained
        ctx.versions = block.versions()
        with torch.autocast(x.device.type, enabled=False):
            block.refresh()
            return _forward(ctx, x, mask, block)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        ctx.block.refuse_changed(ctx.versions)
        return _backward(ctx, grad)


def _forward(ctx: Any, x: Tensor, mask: Tensor | None, block: EncoderBlock) -> Tensor:
    rows, tokens, width = x.shape
    together, out, up, down = block.products
    drop0, drop1, drop2 = (one.p if one.training else 0.0 for one in block.dropouts)
    flat = x.reshape(-1, width)
    low = flat.to(DTYPE)
    joint, inner0 = together.forward(low)
    heads = _split(joint, rows, tokens, block.heads)
    probabilities = _probabilities(heads, mask, block, rows)
    mask0 = drawn_mask(probabilities, drop0) if drop0 else None
    context = _merged(torch.bmm(_dropped(probabilities, mask0, drop0), heads[2]), rows)
    projected, inner1 = out.forward(context)
    sum1, mask1 = _added(flat, projected, drop1)
    middle, *spread1 = _normed(sum1, block.norms[0])
    low_middle = middle.to(DTYPE)
    wide, inner2 = up.forward(low_middle)
    active = nn.functional.gelu(wide)
    narrow, inner3 = down.forward(active)
    sum2, mask2 = _added(middle, narrow, drop2)
    output, *spread2 = _normed(sum2, block.norms[1])
    inputs = (low, context, low_middle, active)
    read = [one if product.reads_input else None for one, product in zip(inputs, block.products, strict=True)]
    ctx.save_for_backward(
        *read, inner0, inner1, inner2, inner3, mask0, mask1, mask2,
        heads, probabilities, sum1, *spread1, wide, sum2, *spread2,
    )  # fmt: skip
    ctx.block, ctx.shape, ctx.dtype, ctx.drops = block, x.shape, x.dtype, (drop0, drop1, drop2)
    return output.view(rows, tokens, width)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    block, (rows, tokens, width), saved = ctx.block, ctx.shape, ctx.saved_tensors
    inputs, inners, masks = saved[:4], saved[4:8], saved[8:11]
    heads, probabilities, sum1, mean1, deviation1, wide, sum2, mean2, deviation2 = saved[11:]
    together, out, up, down = block.products
    needs_x = ctx.needs_input_grad[0]
    needs = [needs_x or block.trains(product) for product in block.products]
    norm1 = any(p.requires_grad for p in block.norms[0].parameters())
    below_middle = any(needs[:2]) or norm1

    d2, *grads5 = _normed_backward(grad.reshape(-1, width), sum2, mean2, deviation2, block.norms[1])
    d_active, grads3 = down.backward(
        _masked(d2, masks[2], ctx.drops[2]), inputs[3], inners[3], below_middle or needs[2]
    )
    grads0, grads1, grads2, grads4, dx = [], [], [], [], None
    if d_active is not None:
        d_wide = torch.ops.aten.gelu_backward(d_active, wide)
        d_middle, grads2 = up.backward(d_wide, inputs[2], inners[2], below_middle)
        if d_middle is not None:
            d1, *grads4 = _normed_backward(d2.add_(d_middle), sum1, mean1, deviation1, block.norms[0])
            low = _masked(d1, masks[1], ctx.drops[1])
            d_context, grads1 = out.backward(low, inputs[1], inners[1], needs[0])
            if d_context is not None:
                d_joint = _attend_backward(d_context, heads, probabilities, masks[0], ctx.drops[0], block, rows)
                dx, grads0 = together.backward(d_joint, inputs[0], inners[0], needs_x)
                dx = None if dx is None else d1.add_(dx).view(rows, tokens, width).to(ctx.dtype)
    return dx, None, None, *grads0, *grads1, *grads2, *grads3, *grads4, *grads5


def _probabilities(heads: Tensor, mask: Tensor | None, block: EncoderBlock, rows: int) -> Tensor:
    """(rows · heads, tokens, tokens)."""
    query, key, _ = heads
    scores = torch.bmm(query, key.transpose(1, 2)).view(rows, block.heads, query.shape[1], -1)
    start = torch.zeros(1, device=scores.device) if mask is None else mask
    return torch.add(start, scores, alpha=block.scaling).softmax(-1).to(DTYPE).flatten(0, 1)


def _attend_backward(
    grad: Tensor, heads: Tensor, probabilities: Tensor, mask: Tensor | None, p: float, block: EncoderBlock, rows: int
) -> Tensor:
    """The gradient of query, key and value side by side: (rows · tokens, 3 · width)."""
    query, key, value = heads
    tokens = heads.shape[2]
    grad = grad.view(rows, tokens, block.heads, -1).transpose(1, 2).reshape(query.shape)
    grads = torch.empty_like(heads)
    torch.bmm(_dropped(probabilities, mask, p).transpose(1, 2), grad, out=grads[2])
    d_probabilities = _hide(torch.bmm(grad, value.transpose(1, 2)), mask).float().mul_(_factor(mask, p))
    d_scores = torch.ops.aten._softmax_backward_data(d_probabilities, probabilities.float(), -1, torch.float32)
    low = torch.mul(d_scores, block.scaling, out=torch.empty_like(probabilities))
    torch.bmm(low, key, out=grads[0])
    torch.bmm(low.transpose(1, 2), query, out=grads[1])
    return grads.view(3, rows, block.heads, tokens, -1).permute(1, 3, 0, 2, 4).reshape(rows * tokens, -1)


def _split(joint: Tensor, rows: int, tokens: int, heads: int) -> Tensor:
    """(rows · tokens, 3 · width) -> query, key and value by head: (3, rows · heads, tokens, size)."""
    split = joint.view(rows, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    return split.reshape(3, rows * heads, tokens, -1)


def _merged(context: Tensor, rows: int) -> Tensor:
    """(rows · heads, tokens, size) -> (rows · tokens, width)."""
    return context.view(rows, -1, *context.shape[1:]).transpose(1, 2).reshape(rows * context.shape[1], -1)


def _normed(total: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor, Tensor]:
    """The norm's output, and the means and inverse deviations that its backward pass reads."""
    return torch.native_layer_norm(total, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _normed_backward(grad: Tensor, total: Tensor, mean: Tensor, deviation: Tensor, norm: nn.LayerNorm) -> list[Tensor]:
    """The gradient of `total`, and those of the norm's trained parameters."""
    own = [norm.weight.requires_grad, norm.bias.requires_grad]
    found = torch.ops.aten.native_layer_norm_backward(
        grad.contiguous(), total, norm.normalized_shape, mean, deviation, norm.weight, norm.bias, [True, *own]
    )
    return [one for one, is_needed in zip(found, (True, *own), strict=True) if is_needed]


def _added(x: Tensor, more: Tensor, p: float) -> tuple[Tensor, Tensor | None]:
    """x + drop(more), and the mask of the dropout; `more` is overwritten."""
    mask = drawn_mask(more, p) if p else None
    return torch.add(x, _hide(more, mask), alpha=_factor(mask, p)), mask


def _masked(grad: Tensor, mask: Tensor | None, p: float) -> Tensor:
    """The gradient below a dropout, in bf16."""
    low = torch.empty(grad.shape, dtype=DTYPE, device=grad.device)
    return _hide(torch.mul(grad, _factor(mask, p), out=low), mask)


def _dropped(probabilities: Tensor, mask: Tensor | None, p: float) -> Tensor:
    return probabilities if mask is None else _hide(probabilities * _factor(mask, p), mask)


def _hide(low: Tensor, mask: Tensor | None) -> Tensor:
    return low if mask is None else hide(low, mask)


def _factor(mask: Tensor | None, p: float) -> float:
    return 1.0 if mask is None else factor(p) or 1.0
