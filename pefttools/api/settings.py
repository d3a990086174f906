"""From Python's values to a recipe: keyword arguments of `fit`, and mappings of overrides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pefttools.errors import UserError
from pefttools.recipe import recipes
from pefttools.recipe.recipe import NAMED, Recipe
from pefttools.tasks import tasks

Overrides = Mapping[str, Any] | Sequence[str]
"""`{"train.epochs": 1, "strategy": "lora"}`, or `["train.epochs=1", "strategy=lora"]`."""

USUAL_BASE = {
    "AutoModelForSequenceClassification": "question-type-lora",
    "AutoModelForTokenClassification": "question-type-lora",
    "AutoModelForQuestionAnswering": "question-type-lora",
    "AutoModelForMultipleChoice": "question-type-lora",
    "AutoModelForCausalLM": "dialogue-smollm2-lora",
}
"""Class of the task's model -> shipped recipe with the base that is taken if none is named."""


def as_texts(overrides: Overrides) -> list[str]:
    """Overrides as the command line takes them. Raises UserError when a value is none that a recipe can have."""
    if isinstance(overrides, str):
        raise UserError(f"overrides: must be a mapping or a list, not {overrides!r}; write [{overrides!r}]")
    if not isinstance(overrides, Mapping):
        return [str(one) for one in overrides]
    return [f"{key}={_text(key, value)}" for key, value in overrides.items()]


def _text(key: str, value: Any) -> str:
    if isinstance(value, (str, Path)):
        return str(value)
    try:
        return json.dumps(value, default=_as_plain)
    except TypeError as error:
        raise UserError(f"{key}: a recipe cannot contain {value!r}: {error}") from error


def _as_plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a number of numpy
        return value.item()
    if hasattr(value, "as_dict"):
        return value.as_dict()
    raise TypeError(f"{type(value).__name__} is no text, number, list or mapping")


def resolved(
    recipe: str | Path | Recipe | Mapping[str, Any], overrides: Overrides = ()
) -> tuple[Recipe, tuple[str, ...]]:
    """A recipe by name, path, values or as it is, with overrides; and notes on what they changed besides.

    Raises:
        UserError: the recipe has errors; the messages are those of the command line.
    """
    texts = as_texts(overrides)
    if isinstance(recipe, Recipe):
        if not texts:
            return recipe, ()
        recipe = recipe.as_dict()
    found = (
        recipes.from_values(_plain(recipe), texts) if isinstance(recipe, Mapping) else recipes.load(str(recipe), texts)
    )
    return found.recipe, found.notes


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that a YAML file could contain."""
    try:
        return json.loads(json.dumps(values, default=_as_plain))
    except TypeError as error:
        raise UserError(f"recipe: {error}") from error


def values_of(files: Mapping[str, str], columns: Mapping[str, str], sections: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a new recipe.

    Args:
        files: split -> path.
        columns: field of the task -> column.
        sections: section -> its choice, its settings or both; None for those left out.

    Raises:
        UserError: the task is unknown, or there is no usual base for it.
    """
    data = {**(sections.get("data") or {}), **files, **({"columns": dict(columns)} if columns else {})}
    chosen = {name: value for name, value in sections.items() if value is not None and name != "data"}
    task = chosen.setdefault("task", "text_classification")
    chosen.setdefault("strategy", "lora")
    if "base" not in chosen:
        chosen["base"] = usual_base(str(task.get("name") if isinstance(task, Mapping) else task))
    for name in NAMED:
        if name in chosen:
            chosen[name] = named(chosen[name])
    chosen.setdefault("name", _name(chosen))
    return _plain({**chosen, "data": data})


def _name(chosen: Mapping[str, Any]) -> str:
    names = [
        value.get("name") if isinstance(value, Mapping) else value for value in (chosen["task"], chosen["strategy"])
    ]
    return "-".join(str(name).replace("_", "-") for name in names)


def named(value: Any) -> dict[str, Any]:
    """A section of several choices as a mapping: `"sam"`, `["sam", "focal"]` and `{"sam": {"rho": 0.1}}`."""
    if isinstance(value, str):
        return {value: {}}
    if isinstance(value, Mapping):
        return {str(name): settings or {} for name, settings in value.items()}
    return {str(name): {} for name in value}


def usual_base(task: str) -> dict[str, Any]:
    """The base of the shipped recipes for a task. Raises UserError when there is none that fits."""
    kind = tasks.get(task).auto_class
    if kind not in USUAL_BASE:
        raise UserError(f"base: is required for {task}, because no shipped base fits; name a model, as base='hf:NAME'")
    return recipes.load(USUAL_BASE[kind]).recipe.base.model_dump(mode="json", exclude_unset=True)
