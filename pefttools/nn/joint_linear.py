"""Linear layers with the same input as one product, with LoRA on any of them, and their gradients (Hu et al. 2021).

y_i = x W_iᵀ + b_i + s_i·(x A_iᵀ) B_iᵀ for i = 1 … n: one product with the W_i below each other, one with the A_i below
each other, and a small one for each B_i. For autograd functions that compute in a lower precision than that of the
trained weights; autograd itself does not see these products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

Range = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer."""

    weight: nn.Parameter
    """(out, in)."""
    bias: nn.Parameter | None = None
    down: nn.Parameter | None = None
    """A, (rank, in), where the layer has LoRA."""
    up: nn.Parameter | None = None
    """B, (out, rank)."""
    scaling: Callable[[], float] = lambda: 1.0
    """Returns s."""

    @property
    def parameters(self) -> tuple[nn.Parameter | None, ...]:
        return self.weight, self.bias, self.down, self.up


@dataclass(eq=False)
class JointLinear:
    """Layers with the same input, and copies of their weights in the dtype that products compute in.

    Frozen weights that have this dtype are not copied; those of several layers are moved below each other.
    """

    layers: Sequence[Layer]
    dtype: torch.dtype
    copies: list[tuple[Tensor, nn.Parameter]] = field(default_factory=list)
    """Copies and what they are copies of, which must be copied again before every pass."""
    moved: list[nn.Parameter] = field(default_factory=list)
    """Frozen weights that are parts of `weight`."""

    def __post_init__(self) -> None:
        layers = self.layers
        outputs = [len(layer.weight) for layer in layers]
        self.outputs: list[Range] = list(pairwise(accumulate(outputs, initial=0)))
        ranks = [0 if layer.down is None else len(layer.down) for layer in layers]
        self.ranks: list[Range] = list(pairwise(accumulate(ranks, initial=0)))
        self.weight = self._weight()
        self.bias = self._bias()
        self.down = self.weight.new_empty(sum(ranks), self.weight.shape[1]) if any(ranks) else None
        self.ups = [None if up is None else self._copied(self.weight.new_empty(up.shape), up) for up in self._ups()]
        for layer, (low, high) in zip(layers, self.ranks, strict=True):
            if layer.down is not None and self.down is not None:
                self._copied(self.down[low:high], layer.down)

    def _ups(self) -> list[nn.Parameter | None]:
        return [layer.up for layer in self.layers]

    def _weight(self) -> Tensor:
        weights = [layer.weight for layer in self.layers]
        is_fixed = all(not w.requires_grad and w.dtype is self.dtype for w in weights)
        if is_fixed and len(weights) == 1:
            return weights[0].detach()
        first = weights[0]
        together = torch.empty(self.outputs[-1][1], first.shape[1], dtype=self.dtype, device=first.device)
        for weight, (low, high) in zip(weights, self.outputs, strict=True):
            if is_fixed:
                together[low:high] = weight.detach()
                weight.data = together[low:high]
                self.moved.append(weight)
            else:
                self._copied(together[low:high], weight)
        return together

    def _bias(self) -> Tensor | None:
        if all(layer.bias is None for layer in self.layers):
            return None
        together = torch.zeros(self.outputs[-1][1], dtype=self.dtype, device=self.weight.device)
        for layer, (low, high) in zip(self.layers, self.outputs, strict=True):
            if layer.bias is not None:
                self._copied(together[low:high], layer.bias)
        return together

    def _copied(self, copy: Tensor, parameter: nn.Parameter) -> Tensor:
        self.copies.append((copy, parameter))
        return copy

    def scaled(self) -> list[tuple[Tensor, float]]:
        """The copies of the B, and the factors that they have to be multiplied by after copying."""
        return [(up, layer.scaling()) for up, layer in zip(self.ups, self.layers, strict=True) if up is not None]

    def release(self) -> None:
        """Give moved weights memory of their own again."""
        for weight in self.moved:
            weight.data = weight.data.clone()

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """The outputs (rows, sum of outputs), and x Aᵀ (rows, sum of ranks) where there is LoRA."""
        output = nn.functional.linear(rows, self.weight, self.bias)
        if self.down is None:
            return output, None
        inner = rows @ self.down.T
        for (first, last), (low, high), up in zip(self.outputs, self.ranks, self.ups, strict=True):
            if up is not None:
                output[:, first:last].addmm_(inner[:, low:high], up.T)
        return output, inner

    def backward(
        self, grad: Tensor, rows: Tensor | None, inner: Tensor | None, needs_dx: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """The gradient of the input, and those of the trained parameters in the order of `parameters`.

        Args:
            grad: (rows, sum of outputs).
            rows: the input, where `reads_input`.
            inner: what `forward` returned.
        """
        skinny = self._skinny(grad)
        dx = None
        if needs_dx:
            dx = grad @ self.weight
            if skinny is not None and self.down is not None:
                dx.addmm_(skinny, self.down)
        down_grad = skinny.T @ rows if skinny is not None and rows is not None else None
        grads: list[Tensor] = []
        for layer, (first, last), (low, high) in zip(self.layers, self.outputs, self.ranks, strict=True):
            part = grad[:, first:last]
            if layer.weight.requires_grad and rows is not None:
                grads.append(part.T @ rows)
            if layer.bias is not None and layer.bias.requires_grad:
                grads.append(part.sum(0, dtype=torch.float32))
            if layer.down is not None and layer.down.requires_grad and down_grad is not None:
                grads.append(down_grad[low:high])
            if layer.up is not None and layer.up.requires_grad and inner is not None:
                grads.append(_up_grad(inner[:, low:high], part, layer.scaling()))
        return dx, grads

    def _skinny(self, grad: Tensor) -> Tensor | None:
        """s·dY B of all layers side by side: (rows, sum of ranks)."""
        pairs = zip(self.outputs, self.ups, strict=True)
        found = [grad[:, first:last] @ up for (first, last), up in pairs if up is not None]
        return None if not found else found[0] if len(found) == 1 else torch.cat(found, 1)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for layer in self.layers for p in layer.parameters if p is not None]

    @property
    def reads_input(self) -> bool:
        """Whether a trained parameter's gradient is computed from the input."""
        return any(p is not None and p.requires_grad for layer in self.layers for p in (layer.weight, layer.down))


def _up_grad(inner: Tensor, grad: Tensor, scaling: float) -> Tensor:
    """dB = s·dYᵀ(XAᵀ) in fp32; the product of the transposed matrices is faster."""
    transposed = (inner.T @ grad).T
    found = torch.empty(transposed.shape, device=grad.device)
    return torch.mul(transposed, scaling, out=found)
