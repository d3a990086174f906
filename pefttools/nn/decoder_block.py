"""A block of a Llama-like decoder as one autograd function, in bf16 on a CPU (Touvron et al. 2023; Su et al. 2021).

h = x + O(attention(rope(Qn), rope(Kn), Vn)) with n = RMS(x), y = h + D(silu(G m) · U m) with m = RMS(h). As in
`encoder_block`, matrices with the same input are one product, weights are cast once, and the softmax is in fp32. Query
heads that share keys are multiplied with them without copies of these. The inputs of products that are cheap to compute
again (RMS(x), silu · U m) are not saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pefttools.nn.fused_weights import DTYPE, FusedWeights
from pefttools.nn.joint_linear import JointLinear


@dataclass(eq=False)
class DecoderBlock(FusedWeights):
    """The parts of a block."""

    heads: int
    key_heads: int
    size: int
    """Width of a head."""
    scaling: float
    """Factor of the attention scores."""
    products: tuple[JointLinear, JointLinear, JointLinear, JointLinear]
    """Query, key and value; attention's output; gate and up; down."""
    norms: tuple[nn.Parameter, nn.Parameter]
    """Weights of the norms before attention and before the feed-forward part."""
    epsilons: tuple[float, float]

    def __post_init__(self) -> None:
        self.set_weights(self.norms)

    def __call__(self, x: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The block's output, with the shape and dtype of `x`.

        Args:
            x: (rows, tokens, width).
            mask: fp32, added to the attention scores, broadcast to (rows, heads, tokens, tokens).
            cos: cosines of the rotary angles, (rows or 1, tokens, size).
            sin: their sines.
        """
        return _DecoderBlock.apply(x, mask, cos, sin, self, *self.trained)  # type: ignore[return-value]


class _DecoderBlock(torch.autograd.Function):
    """(x, mask, cos, sin, block, trained parameters …) -> y."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mask: Tensor, cos: Tensor, sin: Tensor, block: DecoderBlock, *trained: Tensor
    ) -> Tensor:
        del trained
        ctx.versions = block.versions()
        with torch.autocast(x.device.type, enabled=False):
            block.refresh()
            return _forward(ctx, x, mask, (cos.float(), sin.float()), block)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        ctx.block.refuse_changed(ctx.versions)
        return _backward(ctx, grad)


def _forward(ctx: Any, x: Tensor, mask: Tensor, angles: tuple[Tensor, Tensor], block: DecoderBlock) -> Tensor:
    rows, tokens, width = x.shape
    together, out, gates, down = block.products
    flat = x.reshape(-1, width)
    inverse1 = _inverse_rms(flat, block.epsilons[0])
    joint, inner0 = together.forward(_normed(flat, inverse1, block.norms[0]))
    query, key, value = _split(joint, rows, tokens, angles, block)
    probabilities = _probabilities(query, key, mask, rows, block)
    context = _merged(torch.bmm(probabilities, value), rows, tokens)
    projected, inner1 = out.forward(context)
    middle = flat + projected
    inverse2 = _inverse_rms(middle, block.epsilons[1])
    both, inner2 = gates.forward(_normed(middle, inverse2, block.norms[1]))
    narrow, inner3 = down.forward(_active(both, _silu(both)))
    ctx.save_for_backward(
        flat, inverse1, inner0, query, key, value, probabilities, context if out.reads_input else None,
        inner1, middle, inverse2, inner2, both, inner3, *angles,
    )  # fmt: skip
    ctx.block, ctx.shape = block, x.shape
    return (middle + narrow).view(rows, tokens, width)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    block, (rows, tokens, width) = ctx.block, ctx.shape
    flat, inverse1, inner0, query, key, value, probabilities, context = ctx.saved_tensors[:8]
    inner1, middle, inverse2, inner2, both, inner3, *angles = ctx.saved_tensors[8:]
    together, out, gates, down = block.products
    needs_x = ctx.needs_input_grad[0]
    needs0, needs1, needs2 = (needs_x or block.trains(product) for product in block.products[:3])
    norm1, norm2 = (weight.requires_grad for weight in block.norms)
    below_attention = needs0 or norm1
    below_middle = below_attention or needs1

    total = grad.reshape(-1, width).float()
    low = total.to(DTYPE)
    silu = _silu(both)
    active = _active(both, silu) if down.reads_input else None
    d_active, grads3 = down.backward(low, active, inner3, below_middle or needs2 or norm2)
    grads0, grads1, grads2, own1, own2 = [], [], [], [], []
    if d_active is not None:
        d_both = _active_backward(d_active, both, silu)
        normed = _normed(middle, inverse2, block.norms[1]) if gates.reads_input else None
        d_normed, grads2 = gates.backward(d_both, normed, inner2, below_middle or norm2)
        if d_normed is not None:
            total, own2 = _normed_backward(total, d_normed, middle, inverse2, block.norms[1])
            d_context, grads1 = out.backward(total.to(DTYPE), context, inner1, below_attention)
            if d_context is not None:
                heads = (query, key, value)
                d_joint = _attend_backward(d_context, heads, probabilities, (angles[0], angles[1]), rows, block)
                normed = _normed(flat, inverse1, block.norms[0]) if together.reads_input else None
                d_normed, grads0 = together.backward(d_joint, normed, inner0, needs_x or norm1)
                if d_normed is not None:
                    total, own1 = _normed_backward(total, d_normed, flat, inverse1, block.norms[0])
    dx = total.view(rows, tokens, width).to(grad.dtype) if needs_x else None
    return dx, None, None, None, None, *grads0, *grads1, *grads2, *grads3, *own1, *own2


def _inverse_rms(x: Tensor, epsilon: float) -> Tensor:
    """1 / √(mean of squares + ε) of every row, in fp32: (rows, 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()


def _normed(x: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    """The norm's output in bf16."""
    return torch.mul(x * inverse, weight, out=torch.empty(x.shape, dtype=DTYPE, device=x.device))


def _normed_backward(
    total: Tensor, grad: Tensor, x: Tensor, inverse: Tensor, weight: nn.Parameter
) -> tuple[Tensor, list[Tensor]]:
    """`total` with the gradient of the norm's input added, and the gradient of its weight, if it is trained."""
    own = [(grad * (x * inverse)).sum(0)] if weight.requires_grad else []
    scaled = grad * weight.float()
    dot = (scaled * x).sum(-1, keepdim=True).mul_(inverse.pow(3)).div_(x.shape[-1])
    return torch.addcmul(total, scaled, inverse).addcmul_(x.float(), dot, value=-1), own


def _split(
    joint: Tensor, rows: int, tokens: int, angles: tuple[Tensor, Tensor], block: DecoderBlock
) -> tuple[Tensor, Tensor, Tensor]:
    """Query (rows · key heads, queries a key head · tokens, size), key and value (rows · key heads, tokens, size)."""
    heads = joint.view(rows, tokens, -1, block.size).transpose(1, 2)
    rotated = _rotated(heads[:, : block.heads + block.key_heads].float(), angles, 1).to(DTYPE)
    query = rotated[:, : block.heads].reshape(rows * block.key_heads, -1, block.size)
    key = rotated[:, block.heads :].reshape(-1, tokens, block.size)
    return query, key, heads[:, block.heads + block.key_heads :].reshape(-1, tokens, block.size)


def _rotated(x: Tensor, angles: tuple[Tensor, Tensor], sign: int) -> Tensor:
    """x turned by the rotary angles, or back where `sign` is -1; (rows, heads, tokens, size)."""
    cos, sin = (angle.unsqueeze(1) for angle in angles)
    half = x.shape[-1] // 2
    turned = x * cos
    if sign > 0:
        turned[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        turned[..., half:].addcmul_(x[..., :half], sin[..., half:])
    else:
        turned[..., :half].addcmul_(x[..., half:], sin[..., half:])
        turned[..., half:].addcmul_(x[..., :half], sin[..., :half], value=-1)
    return turned


def _probabilities(query: Tensor, key: Tensor, mask: Tensor, rows: int, block: DecoderBlock) -> Tensor:
    """(rows · key heads, queries a key head · tokens, tokens)."""
    tokens = key.shape[1]
    scores = torch.bmm(query, key.transpose(1, 2)).view(rows, block.heads, tokens, tokens)
    exact = torch.add(mask, scores, alpha=block.scaling).softmax(-1)
    return exact.to(DTYPE).view(query.shape[0], -1, tokens)


def _merged(context: Tensor, rows: int, tokens: int) -> Tensor:
    """(rows · key heads, queries a key head · tokens, size) -> (rows · tokens, heads · size)."""
    return context.view(rows, -1, tokens, context.shape[-1]).transpose(1, 2).reshape(rows * tokens, -1)


def _attend_backward(
    grad: Tensor,
    heads: tuple[Tensor, Tensor, Tensor],
    probabilities: Tensor,
    angles: tuple[Tensor, Tensor],
    rows: int,
    block: DecoderBlock,
) -> Tensor:
    """The gradient of query, key and value side by side: (rows · tokens, outputs)."""
    query, key, value = heads
    tokens = key.shape[1]
    grad = grad.view(rows, tokens, block.heads, block.size).transpose(1, 2).reshape(query.shape)
    d_value = torch.bmm(probabilities.transpose(1, 2), grad)
    d_probabilities = torch.bmm(grad, value.transpose(1, 2)).float()
    d_scores = torch.ops.aten._softmax_backward_data(d_probabilities, probabilities.float(), -1, torch.float32)
    low = torch.mul(d_scores, block.scaling, out=torch.empty_like(probabilities))
    shape = (rows, -1, tokens, block.size)
    turned = torch.cat([torch.bmm(low, key).view(shape), torch.bmm(low.transpose(1, 2), query).view(shape)], 1)
    whole = torch.cat([_rotated(turned.float(), angles, -1).to(DTYPE), d_value.view(shape)], 1)
    return whole.transpose(1, 2).reshape(rows * tokens, -1)


def _silu(both: Tensor) -> Tensor:
    """silu(gate), from gate and up side by side."""
    return nn.functional.silu(both.chunk(2, -1)[0])


def _active(both: Tensor, silu: Tensor) -> Tensor:
    """silu(gate) · up, from gate and up side by side."""
    return silu * both.chunk(2, -1)[1]


def _active_backward(grad: Tensor, both: Tensor, silu: Tensor) -> Tensor:
    """The gradient of gate and up side by side; `grad` is overwritten."""
    gate, up = both.chunk(2, -1)
    d_both = torch.empty_like(both)
    d_gate, d_up = d_both.chunk(2, -1)
    torch.mul(grad, silu, out=d_up)
    torch.ops.aten.silu_backward.grad_input(grad.mul_(up), gate, grad_input=d_gate)
    return d_both
