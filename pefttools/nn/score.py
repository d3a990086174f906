"""The head's last layer where it gives one number: a score, or how good a choice is.

`ScaledLinear` learns in units of the labels' spread and answers in the labels' own:

    y = mean + scale · (Wx + b)

W and b are of the size that learning rates are made for, whatever the labels are: shares, stars or prices. What is
saved is scale · W and scale · b + mean, the plain layer with the same answers, so that nobody who loads the saved model
needs to know of it. A layer without b has nothing to keep the mean in; its mean is 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn


def layer(model: nn.Module, head: Iterable[str]) -> tuple[str, nn.Linear] | None:
    """The one linear layer of the head that gives a single number, and its path; None where there is not just one.

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
    """Make a bias saved but no parameter: where only differences of answers count, its gradient is mere noise."""
    if layer.bias is not None:
        bias = layer.bias.detach()
        del layer.bias
        layer.register_buffer("bias", bias)


def plain(model: nn.Module) -> None:
    """Put plain layers, with the same answers and bias parameters, in place of what this file made of the head's."""
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
    """Saves and loads like the plain layer that answers the same."""

    mean: float
    scale: float

    @classmethod
    def of(cls, plain: nn.Linear, mean: float, scale: float, trained: bool) -> Self:
        """The layer with a plain one's own parameters.

        Args:
            trained: whether the plain layer answers in the labels' unit already, and so must this one.
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
        """A parameter as the plain layer has it."""
        return values * self.scale + (self.mean if name == "bias" else 0.0)

    def inner(self, name: str, values: Tensor) -> Tensor:
        """A parameter of the plain layer as this one has it."""
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
