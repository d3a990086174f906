"""The base of a recipe with its strategy around it, and refused where nothing of it would be trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pefttools.errors import UserError
from pefttools.reporter import SILENT, Reporter
from pefttools.strategies.base import Strategy, trained
from pefttools.training.penalties import mark_pretrained

if TYPE_CHECKING:
    from torch import nn

    from pefttools.bases.loading import Base
    from pefttools.recipe.recipe import Recipe

NEVER_TRAINED = ("ranknum",)
"""Parameters that hold a setting (AdaLoRA's rank); on the meta device peft forgets that they take no gradient."""


def load_base(recipe: Recipe, reporter: Reporter = SILENT, empty: bool = False) -> Base:
    """The base with the task's head, prepared for what the recipe's regularizers compare with.

    Args:
        empty: without weights, on the meta device.
    """
    base = recipe.task.load(recipe.base, reporter, empty)
    base.keep_start = any(regularizer.needs_start for regularizer in recipe.regularizers.values())
    mark_pretrained(base)
    return base


def wrap(recipe: Recipe, base: Base, empty: bool = False) -> nn.Module:
    """The base of `load_base` with the strategy around it.

    Raises:
        UserError: nothing is trained, or regularizers have nothing to hold back.
    """
    strategy = recipe.strategy
    model = wrap_empty(strategy, base) if empty else strategy.wrap(base)
    if strategy.trains and not trained(model):
        raise UserError(f"strategy: {strategy.name} trains nothing of {base.source}")
    if recipe.regularizers and not strategy.trains:
        raise UserError(f"regularizers: {', '.join(recipe.regularizers)}: {strategy.name} trains nothing to hold back")
    return model


def wrap_empty(strategy: Strategy, base: Base) -> nn.Module:
    """A base without weights with the strategy around it; what the strategy adds has no weights either."""
    import torch

    with torch.device("meta"):
        model = strategy.wrap(base)
    for name, parameter in model.named_parameters():
        if any(word in name for word in NEVER_TRAINED):
            parameter.requires_grad_(False)
    return model
