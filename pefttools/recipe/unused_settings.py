"""Values of a recipe that other values leave without effect: within a section by `only_with`, and across sections."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from pefttools.recipe.overrides import short
from pefttools.settings import Choice
from pefttools.strategies._peft_strategy import PeftStrategy

if TYPE_CHECKING:
    from pefttools.recipe.recipe import Recipe

OF_CLASSES = ("labels", "bins", "min_class_rows")
"""Settings of `data` that concern a row's `label`."""
OF_STEPS = (
    "epochs", "batch_size", "layer_decay", "optimizer", "learning_rate", "head_lr_scale", "schedule", "warmup",
    "weight_decay", "max_grad_norm", "gradient_checkpointing", "patience", "best_metric",
)  # fmt: skip
"""Settings of `train` that concern how weights change."""


def in_sections(recipe: Recipe) -> dict[str, str]:
    """Dotted key -> a message for every value that another value of its section makes ineffective."""
    sections = {"data": recipe.data, "task": recipe.task, "strategy": recipe.strategy, "train": recipe.train}
    sections |= {f"regularizers.{name}": one for name, one in recipe.regularizers.items()}
    sections["train.optimizer"] = recipe.train.optimizer
    sections |= {f"objectives.{name}": one for name, one in recipe.objectives.items()}
    sections |= {f"augmentations.{name}": one for name, one in recipe.augmentations.items()}
    return {
        f"{section}.{name}": f"{section}.{name}={short(getattr(settings, name))} has no effect: it needs {words}"
        for section, settings in sections.items()
        for name, words in settings.ignored().items()
    }


def across_sections(recipe: Recipe, given: Collection[str]) -> list[str]:
    """A message for every value that a value of another section makes ineffective.

    They are reported and never refused, because a suite sets one value for all its tasks and strategies.

    Args:
        given: the dotted keys that a file or an override sets.
    """
    return [*_of_steps(recipe, given), *_of_classes(recipe)]


def _of_steps(recipe: Recipe, given: Collection[str]) -> Iterator[str]:
    strategy, train = recipe.strategy, recipe.train
    fields = type(train).model_fields
    defaults = {"learning_rate": strategy.start_lr(), "warmup": strategy.default_warmup}
    defaults["head_lr_scale"] = strategy.head_lr_scale
    changed = [
        name
        for name in OF_STEPS
        if _is_given(f"train.{name}", given) and getattr(train, name) != defaults.get(name, fields[name].default)
    ]
    if not strategy.trains:
        if changed:
            settings = ", ".join(f"train.{name}={_shown(getattr(train, name))}" for name in changed)
            yield f"{settings}: has no effect, because strategy={strategy.name} trains nothing"
    elif "head_lr_scale" in changed and isinstance(strategy, PeftStrategy):
        yield (
            f"train.head_lr_scale={train.head_lr_scale} has no effect: with strategy={strategy.name} the head has"
            " the same learning rate as the other weights"
        )


def _is_given(key: str, given: Collection[str]) -> bool:
    """Whether a key, or one below it, is among the given ones."""
    return any(name == key or name.startswith(f"{key}.") for name in given)


def _shown(value: Any) -> str:
    """A value for a message; a choice with default settings is shown by its name alone."""
    if isinstance(value, Choice):
        value = value.name if value == type(value)() else value.as_dict()
    return short(value)


def _of_classes(recipe: Recipe) -> Iterator[str]:
    data = recipe.data
    if "label" in recipe.task.targets:
        return
    for name in OF_CLASSES:
        if getattr(data, name) != type(data).model_fields[name].default:
            yield f"data.{name} has no effect: the rows of task={recipe.task.name} have no field `label`"
