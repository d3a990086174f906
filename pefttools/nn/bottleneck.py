"""Bottleneck adapters: small feed-forward layers after, or parallel to, large ones.

They are attached to modules of the base model by hooks, so that all paths and weights of the base keep their names.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Bottleneck(nn.Module):
    """W_u σ(W_d x + b_d) + b_u, shapes (…, d) -> (…, d) through m (Houlsby et al. 2019, section 2.1)."""

    def __init__(self, size: int, inner: int, activation: nn.Module, scale: float) -> None:
        super().__init__()
        self.down, self.activation, self.up = nn.Linear(size, inner), activation, nn.Linear(inner, size)
        self.scale = scale
        self.saved_input: Tensor | None = None

    def start_near_identity(self, std: float) -> None:
        """Weights from N(0, std²) truncated at two standard deviations, biases 0 (Houlsby et al. 2019, section 3.6)."""
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(layer.bias)

    def start_at_zero(self) -> None:
        """W_u = 0, W_d as in LoRA (He et al. 2022): the start is exact."""
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.up(self.activation(self.down(x)))


def after(module: nn.Module, adapter: Bottleneck) -> None:
    """h ← h + adapter(h) on the module's output: a sequential adapter."""
    module.add_module("adapter", adapter)
    module.register_forward_hook(_add_of_output)


def parallel(first: nn.Module, last: nn.Module, adapter: Bottleneck) -> None:
    """last(…first(x)) + adapter(x): an adapter parallel to a feed-forward block (He et al. 2022, section 3.3)."""
    last.add_module("adapter", adapter)
    first.register_forward_pre_hook(_SaveInput(adapter))
    last.register_forward_hook(_add_of_input)


def _add_of_output(module: Any, inputs: Any, output: Tensor) -> Tensor:
    del inputs
    return output + module.adapter(output).to(output.dtype)


class _SaveInput:
    """A hook that saves the input of the first matrix for the adapter's call after the last one."""

    def __init__(self, adapter: Bottleneck) -> None:
        self.adapter = adapter

    def __call__(self, module: Any, inputs: tuple[Tensor, ...]) -> None:
        del module
        self.adapter.saved_input = inputs[0]


def _add_of_input(module: Any, inputs: Any, output: Tensor) -> Tensor:
    del inputs
    saved_input, module.adapter.saved_input = module.adapter.saved_input, None
    assert saved_input is not None, "the first matrix ran before the last one"
    return output + module.adapter(saved_input).to(output.dtype)


def size_of(module: nn.Module) -> int:
    """The width of a matrix's output (`nn.Linear`, or `Conv1D` of GPT-2)."""
    return module.out_features if isinstance(module, nn.Linear) else module.nf  # type: ignore[return-value]
