"""Classes and metrics of the user's own that recipes can name in this process, without a file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from pefttools.augmentations import augmentations
from pefttools.errors import UserError
from pefttools.exporters import exporters
from pefttools.metrics import metrics, text_metrics
from pefttools.metrics._own import refuse_wrong_function
from pefttools.objectives import objectives
from pefttools.optimizers import optimizers
from pefttools.registry import PLUGINS, Registry
from pefttools.regularizers import regularizers
from pefttools.strategies import strategies
from pefttools.tasks import tasks

if TYPE_CHECKING:
    from pefttools.recipe.recipe import Recipe

C = TypeVar("C", bound=Callable[..., Any])
REGISTRIES: tuple[Registry[Any], ...] = (
    strategies, tasks, regularizers, objectives, augmentations, optimizers, exporters, text_metrics, metrics
)  # fmt: skip


@overload
def register(cls: C, /) -> C: ...
@overload
def register(*, name: str) -> Callable[[C], C]: ...
def register(cls: Any = None, /, *, name: str | None = None) -> Any:
    """Make a strategy, task, regularizer, objective, augmentation, optimizer, exporter or metric known under a name.

    A decorator: `@pefttools.register` takes the class's name in lower case, `@pefttools.register(name="mine")` another.
    A metric may be a function of `references` and `predictions`, which keeps its name, or an object of `evaluate`.
    It is known in this process only. What other processes do (the proof of an export, `serve`, the trials of a suite)
    needs a file in a folder of PEFTTOOLS_PLUGINS.

    Raises:
        UserError: the class is of no such kind or is abstract, or the name is taken.
    """
    if cls is None:
        return lambda one: _registered(one, name or _usual_name(one))
    return _registered(cls, _usual_name(cls))


def metric_names(given: Sequence[Any]) -> list[str]:
    """The names of metrics, once those that are no names are registered. Raises UserError when one is no metric."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise UserError(f"metrics: must be a list of names, functions or metrics of `evaluate`, not {given!r}")
    return [one if isinstance(one, str) else _named(one) for one in given]


def _named(metric: Any) -> str:
    """The name of a metric, which is registered if it is not."""
    if known := [name for name, one in metrics.added.items() if one is metric]:
        return known[0]
    _registered(metric, name := _usual_name(metric))
    return name


def _usual_name(one: Any) -> str:
    """A class's name in lower case, a function's name, or that of a metric of `evaluate`."""
    if inspect.isfunction(one):
        return one.__name__
    return one.__name__.lower() if isinstance(one, type) else str(getattr(one, "name", type(one).__name__))


def _registered(cls: Any, name: str) -> Any:
    if inspect.isfunction(cls) or (not isinstance(cls, type) and isinstance(cls, metrics.base_class)):
        if inspect.isfunction(cls):
            refuse_wrong_function(name, cls)
        metrics.add_object(cls, name)
        return cls
    for registry in REGISTRIES:
        if isinstance(cls, type) and issubclass(cls, registry.base_class):
            registry.add(cls, name)
            if registry is text_metrics:
                metrics.add(cls, name)
            return cls
    kinds = ", ".join(registry.base for registry in REGISTRIES)
    raise UserError(f"register: {cls!r} is derived from none of {kinds}, and is no function of a metric")


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
