"""Validating the values of a file as a `Recipe`, section by section, and collecting all problems."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pefttools.bases.loading import BaseSettings
from pefttools.data.settings import DataSettings
from pefttools.errors import shown
from pefttools.optimizers import optimizers
from pefttools.recipe import typed_yaml
from pefttools.recipe.recipe import NAMED, Header, Recipe
from pefttools.recipe.start import StartSettings
from pefttools.recipe.train_settings import TrainSettings, parse_optimizer
from pefttools.registry import Registry
from pefttools.settings import check
from pefttools.strategies import strategies
from pefttools.synonyms import unknown_key
from pefttools.tasks import tasks


def _class(registry: Registry[Any]) -> Callable[[str], Any]:
    return lambda name: registry.get(name) if name in registry.files() else None


TYPES: Mapping[str, Any] = {
    **{name: field.annotation for name, field in Recipe.model_fields.items()},
    "task": typed_yaml.Chosen(_class(tasks)),
    "strategy": typed_yaml.Chosen(_class(strategies)),
    **{section: typed_yaml.Named(_class(registry)) for section, registry in NAMED.items()},
    "train": {
        **{name: field.annotation for name, field in TrainSettings.model_fields.items()},
        "optimizer": typed_yaml.Chosen(_class(optimizers)),
    },
}
"""The types of a recipe's values, by which its file and its overrides are parsed."""


def validated(values: Mapping[str, Any]) -> tuple[Recipe | None, list[str]]:
    """The recipe and no problems, or None and all problems."""
    sections: dict[str, Any] = {}
    problems = [
        f"{key}: {unknown_key(key, list(Recipe.model_fields))}" for key in values if key not in Recipe.model_fields
    ]
    for name, registry in (("task", tasks), ("strategy", strategies)):
        if name not in values:
            problems.append(f"{name}: is required. Known: {', '.join(registry.names())}")
            continue
        sections[name], found = registry.parse(values[name], name)
        problems += found
    train, found = _with_optimizer(values.get("train") or {})
    problems += found
    for name, registry in NAMED.items():
        sections[name], found = _named(values.get(name), name, registry)
        problems += found
    for name, cls in (("base", BaseSettings), ("data", DataSettings), ("train", TrainSettings)):
        if name not in values and name != "train":
            problems.append(f"{name}: is required")
            continue
        sections[name], found = check(cls, train if name == "train" else values[name] or {}, name)
        problems += found
    if values.get("start") is not None:
        sections["start"], found = check(StartSettings, values["start"], "start")
        problems += found
    top = {k: v for k, v in values.items() if k in Header.model_fields}
    if problems:
        _, more = check(Header, top, "")
        return None, [*problems, *more]
    return check(Recipe, {**top, **sections}, "")


def _with_optimizer(train: Any) -> tuple[Any, list[str]]:
    """The section `train` with its optimizer parsed; if that has problems, the section without it, and the problems."""
    if not isinstance(train, Mapping) or "optimizer" not in train:
        return train, []
    optimizer, problems = parse_optimizer(train["optimizer"])
    rest = {key: value for key, value in train.items() if key != "optimizer"}
    return (rest if optimizer is None else {**rest, "optimizer": optimizer}), problems


def _named(value: Any, section: str, registry: Registry[Any]) -> tuple[dict[str, Any], list[str]]:
    """The choices for a name, a list of names, or names with settings; and the problems."""
    named = {value: None} if isinstance(value, str) else value or {}
    if isinstance(named, (list, tuple)):
        named = dict.fromkeys(map(str, named))
    if not isinstance(named, Mapping):
        return {}, [f"{section}: must be names, or names with settings; got {shown(value)}"]
    made, problems = {}, []
    for name, settings in named.items():
        if not isinstance(settings or {}, Mapping):
            problems.append(f"{section}.{name}: must be a mapping of settings; got {shown(settings)}")
            continue
        made[name], found = registry.parse({**(settings or {}), "name": name}, f"{section}.{name}")
        problems += found
    return made, problems
