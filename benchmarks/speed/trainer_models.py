"""The models that Trainer trains: those of the recipe's strategy, built with transformers and peft only.

The base and its head are loaded by pefttools, from the recipe's checkpoint and seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from pefttools.bases.loading import Base
from pefttools.recipe.recipe import Recipe
from pefttools.strategies.base import Strategy
from pefttools.tasks.base import Task

QUERY_VALUE = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"]}
MATRICES = {"bert": r".*\.layer\.\d+\..*(query|key|value|dense)", "llama": "all-linear"}
"""Model type -> peft's `target_modules`; "all-linear" would include BERT's pooler, which is trained completely."""


def build(recipe: Recipe, task: Task) -> tuple[Base, nn.Module]:
    """The base, and the model on it, in which exactly the trained parameters require gradients."""
    from accelerate.utils import set_seed

    set_seed(recipe.seed)
    base = task.load(recipe.base)
    return base, MADE[recipe.strategy.name](base, recipe.strategy)


def _lora(base: Base, settings: Any) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    table = QUERY_VALUE if settings.targets == ("query", "value") else MATRICES
    config = LoraConfig(
        task_type=base.task_type,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=table[base.model.config.model_type],
        modules_to_save=list(base.head) or None,
    )
    return get_peft_model(base.model, config)


def _full(base: Base, settings: Strategy) -> nn.Module:
    del settings
    return base.model.requires_grad_(True)


def _top_layers(base: Base, settings: Any) -> nn.Module:
    model: Any = base.model.requires_grad_(False)
    for block in model.base_model.encoder.layer[len(model.base_model.encoder.layer) - settings.layers :]:
        block.requires_grad_(True)
    return _with_head(base)


def _bitfit(base: Base, settings: Strategy) -> nn.Module:
    del settings
    for name, parameter in base.model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return _with_head(base)


def _with_head(base: Base) -> nn.Module:
    for path in base.head:
        base.model.get_submodule(path).requires_grad_(True)
    return base.model


def _adapter(base: Base, settings: Strategy) -> nn.Module:
    """The model with pefttools' adapters, because peft has no bottleneck adapters."""
    return settings.wrap(base)


MADE: dict[str, Callable[[Base, Any], nn.Module]] = {
    "lora": _lora, "full": _full, "top_layers": _top_layers, "bitfit": _bitfit, "adapter": _adapter,
}  # fmt: skip
"""Strategy -> a function that builds its model without pefttools."""
