"""The optimizer and its parameter groups: no weight decay on biases and norms, a learning rate for each layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pefttools.nn import module_paths
from pefttools.strategies.base import Strategy, is_vector, trained

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from pefttools.recipe.train_settings import TrainSettings


def build(model: nn.Module, strategy: Strategy, settings: TrainSettings) -> Optimizer:
    """The optimizer, the strategy's own or the recipe's, over the trained parameters.

    Parameters are grouped by weight decay (none on biases and norms) and by the factor of their learning rate, which
    the group has as `lr_scale`: the product of the strategy's factor, `train.head_lr_scale` for a new head, and ξ^(L-l)
    in layer l of L (`train.layer_decay`; the embeddings are layer 0, the head and all above the last block are layer
    L). Where the optimizer separates hidden matrices, `hidden` marks the groups of such matrices.
    """
    assert settings.learning_rate is not None, "a loaded recipe has its learning rate filled in"
    lr = settings.learning_rate
    depth = _depths(model)
    separates = settings.optimizer.separates_hidden_matrices
    hidden = _hidden_matrices(model) if separates else frozenset()
    grouped: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in trained(model).items():
        decay = 0.0 if is_vector(parameter) or name.endswith("bias") else settings.weight_decay
        scale = strategy.lr_scale(name) * settings.layer_decay ** depth(name)
        if not getattr(parameter, "pretrained", True):
            scale *= settings.head_lr_scale or strategy.head_lr_scale
        grouped.setdefault((decay, scale, name in hidden), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale, "lr": lr * scale}
        | ({"hidden": is_hidden} if separates else {})
        for (decay, scale, is_hidden), parameters in grouped.items()
    ]
    if (own := strategy.optimizer(model, groups, settings)) is not None:
        return own
    return settings.optimizer.build(groups, lr)


def _hidden_matrices(model: nn.Module) -> frozenset[str]:
    """Names of the trained matrices inside the blocks, without embeddings there (T5's relative positions)."""
    from torch import nn

    within = tuple(f"{path}." for path in module_paths.blocks(model))
    return frozenset(
        name
        for name, parameter in trained(model).items()
        if name.startswith(within)
        and parameter.ndim == 2
        and not is_vector(parameter)
        and not isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding)
    )


def _depths(model: nn.Module) -> Callable[[str], int]:
    """A function: parameter name -> number of layers between it and the top, L - l."""
    blocks = module_paths.blocks(model)
    below = module_paths.below_blocks(model)

    def depth(name: str) -> int:
        for i, path in enumerate(blocks):
            if name.startswith(f"{path}."):
                return len(blocks) - 1 - i
        return len(blocks) if name.rpartition(".")[0] in below else 0

    return depth
