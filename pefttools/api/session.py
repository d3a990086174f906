"""Classes of the user's own that recipes can name in this process, without a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from pefttools.augmentations import augmentations
from pefttools.errors import UserError
from pefttools.exporters import exporters
from pefttools.objectives import objectives
from pefttools.optimizers import optimizers
from pefttools.registry import PLUGINS, Registry
from pefttools.regularizers import regularizers
from pefttools.strategies import strategies
from pefttools.tasks import tasks

if TYPE_CHECKING:
    from pefttools.recipe.recipe import Recipe

C = TypeVar("C", bound=type[Any])
REGISTRIES: tuple[Registry[Any], ...] = (
    strategies, tasks, regularizers, objectives, augmentations, optimizers, exporters
)  # fmt: skip


@overload
def register(cls: C, /) -> C: ...
@overload
def register(*, name: str) -> Callable[[C], C]: ...
def register(cls: Any = None, /, *, name: str | None = None) -> Any:
    """Make a strategy, task, regularizer, objective, augmentation, optimizer or exporter known under a name.

    A decorator: `@pefttools.register` takes the class's name in lower case, `@pefttools.register(name="mine")` another.
    It is known in this process only. What other processes do (the proof of an export, `serve`, the trials of a suite)
    needs a file in a folder of PEFTTOOLS_PLUGINS.

    Raises:
        UserError: the class is of no such kind or is abstract, or the name is taken.
    """
    if cls is None:
        return lambda one: _registered(one, name or one.__name__.lower())
    return _registered(cls, getattr(cls, "__name__", "").lower())


def _registered(cls: Any, name: str) -> Any:
    for registry in REGISTRIES:
        if isinstance(cls, type) and issubclass(cls, registry.base_class):
            registry.add(cls, name)
            return cls
    kinds = ", ".join(registry.base for registry in REGISTRIES)
    raise UserError(f"register: {cls!r} is derived from none of {kinds}")


def refuse_unknown_elsewhere(recipe: Recipe) -> None:
    """Raises UserError when a new process would not know one of the recipe's choices."""
    chosen: dict[Registry[Any], list[str]] = {
        strategies: [recipe.strategy.name], tasks: [recipe.task.name], regularizers: [*recipe.regularizers],
        objectives: [*recipe.objectives], augmentations: [*recipe.augmentations],
    }  # fmt: skip
    for registry, names in chosen.items():
        for name in names:
            if name in registry.added:
                folder = registry.package.rpartition(".")[2]
                raise UserError(
                    f"export: proves the artifact in a new process, which does not know the {registry.kind} {name!r}"
                    f" that was registered in this one; put its class into a file {folder}/{name}.py of a folder that"
                    f" {PLUGINS} names"
                )
