"""The packages outside the core that a recipe needs to be trained, checked before anything else is done."""

from __future__ import annotations

from collections.abc import Iterator

from pefttools import extras
from pefttools.device import device_type
from pefttools.errors import UserError
from pefttools.recipe.recipe import NAMED, Recipe
from pefttools.settings import Choice
from pefttools.tasks.base import Task


def refuse_missing(recipe: Recipe) -> None:
    """Raises UserError with one message for each part of the recipe whose packages are not installed."""
    if found := problems(recipe):
        raise UserError(*found)


def refuse_unscored(task: Task) -> None:
    """Raises UserError if a package that the task's metrics need is not installed."""
    found = [extras.problem(what, modules) for what, modules in _of_choice(task, "task", f"task={task.name}")]
    if lacking := [one for one in found if one]:
        raise UserError(*lacking)


def problems(recipe: Recipe) -> list[str]:
    """One message for each part of the recipe whose packages are not installed."""
    return [found for what, modules in _needs(recipe) if (found := extras.problem(what, modules))]


def _needs(recipe: Recipe) -> Iterator[tuple[str, list[str]]]:
    """Yield what needs packages, as the recipe has it, and their modules."""
    if recipe.base.quantize:
        yield f"base.quantize={recipe.base.quantize}", list(extras.EXTRAS["quantized"])
    if recipe.train.liger and device_type() == "cuda":  # elsewhere it is refused, whatever is installed
        yield "train.liger=true", list(extras.EXTRAS["liger"])
    choices: dict[str, Choice] = {
        "task": recipe.task, "strategy": recipe.strategy, "train.optimizer": recipe.train.optimizer,
    }  # fmt: skip
    for path, choice in choices.items():
        yield from _of_choice(choice, path, f"{path}={choice.name}")
    for section in NAMED:
        for name, choice in getattr(recipe, section).items():
            yield from _of_choice(choice, f"{section}.{name}", f"{section}.{name}")


def _of_choice(choice: Choice, path: str, title: str) -> Iterator[tuple[str, list[str]]]:
    needed = choice.needed_modules
    for setting in dict.fromkeys(needed.values()):
        yield f"{path}.{setting}" if setting else title, [module for module, by in needed.items() if by == setting]
