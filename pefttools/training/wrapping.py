"""Load a recipe's base and wrap it in its strategy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pefttools.bases import class_heads
from pefttools.errors import UserError
from pefttools.reporter import SILENT, Reporter
from pefttools.strategies.base import Strategy, trained
from pefttools.training import stack
from pefttools.training.penalties import mark_pretrained

if TYPE_CHECKING:
    from torch import nn

    from pefttools.bases.loading import Base
    from pefttools.recipe.recipe import Recipe
    from pefttools.training.earlier import Earlier

NEVER_TRAINED = ("ranknum",)
"""Parameters that are settings (AdaLoRA's rank); on the meta device peft marks them as trainable by mistake."""


def load_base(recipe: Recipe, reporter: Reporter = SILENT, empty: bool = False, earlier: Earlier | None = None) -> Base:
    """The base with the task's head; it keeps its initial weights where a regularizer of the recipe needs them.

    Args:
        empty: create the model on the meta device, without weights.
        earlier: the trained model that training goes on from; its frozen adapters are merged into the base.

    Raises:
        UserError: the base is not the one that `earlier` was trained on, or does not fit its adapters.
    """
    base = recipe.task.load(recipe.base, reporter, empty)
    if earlier:
        stack.merged_into(base, earlier.below)
        earlier.check(base)
        stack.merged_into(base, earlier.frozen[len(earlier.below) :], earlier.new_head)
        if earlier.own is None and (number := len(earlier.labels)):
            class_heads.extend(base, number, len(recipe.task.class_names))
    base.keep_start = any(regularizer.needs_start for regularizer in recipe.regularizers.values())
    mark_pretrained(base)
    return base


def wrap(recipe: Recipe, base: Base, empty: bool = False, earlier: Earlier | None = None) -> nn.Module:
    """The base of `load_base`, wrapped in the strategy.

    Args:
        earlier: the trained model that training goes on from; its parameters are the start where they are continued.

    Raises:
        UserError: the strategy trains nothing of this base, or there are regularizers although it trains nothing.
    """
    strategy = recipe.strategy
    if earlier and earlier.continues and not empty:
        model = earlier.wrapped(base)
    else:
        model = wrap_empty(strategy, base) if empty else strategy.wrap(base)
    if earlier:
        earlier.mark(model, base, earlier.labels)
    if strategy.trains and not trained(model):
        raise UserError(
            f"strategy: {strategy.name} finds nothing to train in {base.source}; choose another strategy, such as lora"
        )
    if recipe.regularizers and not strategy.trains:
        raise UserError(
            f"regularizers: {', '.join(recipe.regularizers)}: strategy {strategy.name} trains no parameters that they"
            " could act on; remove them"
        )
    return model


def wrap_empty(strategy: Strategy, base: Base) -> nn.Module:
    """A base without weights, wrapped in the strategy; the parameters that the strategy adds have none either."""
    import torch

    with torch.device("meta"):
        model = strategy.wrap(base)
    for name, parameter in model.named_parameters():
        if any(word in name for word in NEVER_TRAINED):
            parameter.requires_grad_(False)
    return model
