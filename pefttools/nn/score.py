"""The last layer of heads with one output: a regression value, or the logit of a choice.

`ScaledLinear` is trained in units of the labels' standard deviation, and its output is in the labels' own unit:

    y = mean + scale · (Wx + b)

So W and b have the usual magnitude, to which learning rates fit, for labels of any scale. Saved are scale · W and scale
· b + mean, a plain layer with the same output, so that the saved model loads without this class. A layer without bias
cannot represent the mean; its mean is 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn


def layer(model: nn.Module, head: Iterable[str]) -> tuple[str, nn.Linear] | None:
    """Path and module of the head's only linear layer with one output; None unless there is exactly one.

    Args:
        head: full paths of the head's modules.
    """
    inside = tuple(f"{path}." for path in head)
    found = [
        (path, module)
        for path, module in model.named_modules()
        if f"{path}.".startswith(inside) and isinstance(module, nn.Linear) and module.out_features == 1
    ]
    return found[0] if len(found) == 1 else None


def fix_bias(layer: nn.Linear) -> None:
    """Turn a bias into a saved buffer: if only differences of outputs matter, its gradient would be noise."""
    if layer.bias is not None:
        bias = layer.bias.detach()
        del layer.bias
        layer.register_buffer("bias", bias)


def plain(model: nn.Module) -> None:
    """Replace the layers of this file by plain layers with the same outputs, with biases as parameters."""
    for path, module in list(model.named_modules()):
        if isinstance(module, ScaledLinear):
            other = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
            for name, parameter in module.named_parameters():
                setattr(other, name, nn.Parameter(module.outer(name, parameter.detach())))
            model.set_submodule(path, other.train(module.training))
        elif isinstance(module, nn.Linear) and isinstance(bias := module._buffers.get("bias"), Tensor):
            del module._buffers["bias"]
            module.bias = nn.Parameter(bias)


class ScaledLinear(nn.Linear):
    """A linear layer with scaled output, which saves and loads like the plain layer with the same output."""

    mean: float
    scale: float

    @classmethod
    def of(cls, plain: nn.Linear, mean: float, scale: float, trained: bool) -> Self:
        """The scaled layer with the parameters of a plain one.

        Args:
            trained: whether the plain layer is trained for the labels' unit, so that its output must not change.
        """
        layer = cls(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        layer.mean, layer.scale = mean if plain.bias is not None else 0.0, scale
        layer.weight, layer.bias = plain.weight, plain.bias
        if trained:
            with torch.no_grad():
                for name, parameter in layer.named_parameters():
                    parameter.copy_(layer.inner(name, parameter))
        return layer.train(plain.training)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float() * self.scale + self.mean

    def outer(self, name: str, values: Tensor) -> Tensor:
        """A parameter converted to the plain layer."""
        return values * self.scale + (self.mean if name == "bias" else 0.0)

    def inner(self, name: str, values: Tensor) -> Tensor:
        """A parameter converted from the plain layer."""
        return (values - (self.mean if name == "bias" else 0.0)) / self.scale

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, _ in self.named_parameters():
            destination[prefix + name] = self.outer(name, destination[prefix + name])

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        values = dict(state_dict)
        for name, _ in self.named_parameters():
            if prefix + name in values:
                values[prefix + name] = self.inner(name, values[prefix + name])
        super()._load_from_state_dict(values, prefix, *args, **kwargs)
