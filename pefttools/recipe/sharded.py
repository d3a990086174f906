"""What of a recipe does not work on weights that processes share (`train.shard`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pefttools.objectives import objectives
from pefttools.optimizers import optimizers
from pefttools.regularizers import regularizers
from pefttools.strategies import strategies

if TYPE_CHECKING:
    from pefttools.recipe.recipe import Recipe
    from pefttools.registry import Registry

REFUSED = "does not work on weights that processes share"


def misfits(recipe: Recipe) -> Iterator[str]:
    """Yield one message for every choice of a recipe with `train.shard` that is not `shardable`."""
    if not recipe.train.shard:
        return
    chosen = [("strategy", recipe.strategy, strategies), ("train.optimizer", recipe.train.optimizer, optimizers)]
    chosen += [("objectives", one, objectives) for one in recipe.objectives.values()]
    chosen += [("regularizers", one, regularizers) for one in recipe.regularizers.values()]
    for key, one, registry in chosen:
        if not one.shardable:
            yield f"train.shard: {key}={one.name} {REFUSED}; {_alternatives(registry)}, or train without train.shard"
    if recipe.base.quantize:
        yield f"train.shard: base.quantize={recipe.base.quantize} {REFUSED}; leave one of the two out"
    for name in ("compile", "liger"):
        if getattr(recipe.train, name):
            yield f"train.shard: train.{name}=true {REFUSED}; leave one of the two out"


def _alternatives(registry: Registry) -> str:
    """The choices that work, some of them only with some of their settings (lora's `init`)."""
    return f"those that do are {', '.join(name for name in registry.names() if registry.get(name).shardable)}"
