"""Optimizers of torch.optim, with biases and norms left out of weight decay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pefttools.strategies.base import trained

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from pefttools.recipe import TrainSettings


def build(model: nn.Module, settings: TrainSettings) -> Optimizer:
    """The recipe's optimizer over what is trained, in two groups: with weight decay and without."""
    import torch

    assert settings.learning_rate is not None, "a loaded recipe has its learning rate filled in"
    lr = settings.learning_rate
    decayed, plain = [], []
    for name, parameter in trained(model).items():
        (plain if parameter.ndim < 2 or name.endswith("bias") else decayed).append(parameter)
    pairs = ((decayed, settings.weight_decay), (plain, 0.0))
    groups: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay} for parameters, decay in pairs if parameters
    ]
    match settings.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, betas=settings.betas, eps=settings.eps, fused=True)
        case "adam":
            return torch.optim.Adam(groups, lr=lr, betas=settings.betas, eps=settings.eps, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=settings.momentum, fused=True)
        case "adagrad":
            return torch.optim.Adagrad(groups, lr=lr, eps=settings.eps)
