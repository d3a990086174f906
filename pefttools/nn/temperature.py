"""Temperature scaling of a head (Guo et al. 2017): logits z become z / T.

The layer that makes the logits is linear, so dividing its weights and its bias by T divides the logits, in every
artifact that the model is written to.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from pefttools.nn.score import ScaledLinear

WRAPPERS = {"base_model", "model", "modules_to_save", "default", "original_module", "base_layer"}
"""Parts of paths that peft's wrappers add."""


def last_layers(model: nn.Module, head: Iterable[str], outputs: int) -> list[nn.Linear]:
    """The head's last linear layer with this number of outputs, and the copies of it that peft keeps; else empty.

    Args:
        head: full paths of the head's modules in the model without adapter.
    """
    inside = tuple(f"{_bare(path)}." for path in head)
    found: dict[str, list[nn.Linear]] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.out_features == outputs and _bare(path, ".").startswith(inside):
            found.setdefault(_bare(path), []).append(module)
    return found[[*found][-1]] if found else []


@torch.no_grad()
def divide(layers: Iterable[nn.Linear], temperature: float) -> None:
    """Divide the outputs of linear layers by a temperature, in place."""
    for layer in layers:
        if isinstance(layer, ScaledLinear):
            layer.scale, layer.mean = layer.scale / temperature, layer.mean / temperature
            continue
        layer.weight.div_(temperature)
        if isinstance(layer.bias, nn.Parameter):  # else only differences of outputs matter, and it is not saved
            layer.bias.div_(temperature)


def _bare(path: str, end: str = "") -> str:
    return ".".join(part for part in path.split(".") if part not in WRAPPERS) + end
