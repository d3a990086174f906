"""The registries of choices, found as pefttools finds plug-ins, and where a recipe names a choice of each."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from generator import values
from pefttools.recipe.recipe import Recipe
from pefttools.registry import Registry, plugin_kinds
from pefttools.settings import Choice, Settings


@dataclass(frozen=True)
class Kind:
    """One registry of choices with settings."""

    name: str
    """The package's name: `strategies`."""
    registry: Registry[Any]
    base: type[Choice]
    path: str
    """The recipe's key that names a choice (`strategy`, `train.optimizer`); "" if recipes name none."""
    several: bool
    """Whether a recipe may name several of them, each with its settings under its name."""
    about: str
    """The docstring of the package."""

    @property
    def title(self) -> str:
        return self.name.capitalize()

    @property
    def keys(self) -> str:
        """How a recipe spells a setting of a choice."""
        return f"{self.path}.NAME.KEY" if self.several else f"{self.path}.KEY"

    def prefix(self, choice: str) -> str:
        """What stands before the settings of a choice."""
        return f"{self.path}.{choice}." if self.several else f"{self.path}." if self.path else ""


@cache
def kinds() -> tuple[Kind, ...]:
    """All registries whose choices have settings, in the order in which a recipe names them, then the others."""
    places = dict(_places(Recipe, ""))
    found = []
    for name in plugin_kinds():
        module = importlib.import_module(f"pefttools.{name}")
        registry: Registry[Any] = next(one for one in vars(module).values() if isinstance(one, Registry))
        if issubclass(registry.base_class, Choice):
            path, several = places.get(registry.base_class, ("", False))
            about = inspect.getdoc(module) or ""
            found.append(Kind(name, registry, registry.base_class, path, several, about))
    order = list(places)
    return tuple(sorted(found, key=lambda kind: order.index(kind.base) if kind.base in order else len(order)))


def _places(owner: type[Settings], prefix: str) -> Iterator[tuple[type[Choice], tuple[str, bool]]]:
    """Base class of a choice -> the key that names one, and whether it is a mapping of several."""
    for name, field in owner.model_fields.items():
        for base in values.choices_within(field.annotation):
            yield base, (f"{prefix}{name}", field.annotation is not base)
        for inner in values.nested(field.annotation):
            yield from _places(inner, f"{prefix}{name}.")
