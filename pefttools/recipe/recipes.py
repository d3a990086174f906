"""Loading recipes by name or path, with `KEY=VALUE` overrides.

Values come from defaults, the recipe's file and overrides, in this order. Another strategy, base or training file drops
the settings that belong to the old one only (`overrides.RESETS`, `replaced_data`). `Resolved.origins` has the origin of
each value, and `Resolved.notes` lists dropped values.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pefttools.augmentations.base import unfit_augmentations
from pefttools.data.settings import FileSettings
from pefttools.errors import LONGEST, UserError, unknown
from pefttools.objectives._composition import misfits
from pefttools.recipe import (
    moved_settings,
    renamed_settings,
    replaced_data,
    sharded,
    shipped,
    start,
    typed_yaml,
    unused_settings,
)
from pefttools.recipe.overrides import Overlaid, flat, get, overlay, pairs, short
from pefttools.recipe.parsing import TYPES, validated
from pefttools.recipe.recipe import Recipe
from pefttools.recipe.train_settings import TrainSettings
from pefttools.sources import absolute, is_file

RUN_MARK = "# A run of pefttools; running this recipe again gives the same run."
"""The first line of a recipe that a run wrote; such a recipe also contains values that the run found in its rows."""


@dataclass(frozen=True)
class Resolved:
    """A recipe and the origins of its values."""

    recipe: Recipe
    origins: Mapping[str, str]
    """Dotted key -> `recipe`, `override`, `default` or `default of STRATEGY`, and what was reset."""
    notes: tuple[str, ...] = ()
    """Messages about other values of the recipe that the overrides changed, and about values without effect."""


def names() -> list[str]:
    """The names of the shipped recipes."""
    return [*shipped.files("recipes")]


def find(name: str) -> Path:
    """The file of a shipped recipe or a path. Raises UserError when there is none."""
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        path = Path(name)
        if not is_file(path):
            raise UserError(f"{name[:LONGEST]}: there is no such recipe file; check the path")
        return path
    files = shipped.files("recipes")
    if name not in files:
        raise UserError(unknown("recipe", name, names()) + " (a path to your own file must end with .yaml)")
    return files[name]


def load(name: str, overrides: Sequence[str] = ()) -> Resolved:
    """A recipe by name or path, with `KEY=VALUE` overrides.

    Raises:
        UserError: the recipe has errors; the messages list all of them, with their keys and the most similar names.
    """
    path = find(name)
    values = {"name": path.stem, **typed_yaml.read_file(path, Recipe.model_fields, TYPES)}
    is_run = path.read_text("utf-8").startswith(RUN_MARK)
    try:
        return from_values(values, overrides, is_run, is_shipped=path in shipped.files("recipes").values())
    except UserError as error:
        if overrides or not is_run:
            raise
        raise UserError(*(f"{path}: {problem}" for problem in error.problems)) from error  # nobody wrote these keys


def from_values(
    values: dict[str, Any], overrides: Sequence[str] = (), is_run: bool = False, is_shipped: bool = False
) -> Resolved:
    """A recipe from the values of its file. Raises UserError like `load`.

    Args:
        is_run: whether a run wrote the file.
        is_shipped: whether it is a shipped recipe, whose name and description describe its own base and strategy.
    """
    before = {key: replaced_data.choice(values, key) for key in ("strategy", "base")} if is_shipped else {}
    texts, wrong = pairs(overrides)
    old_keys: list[str] = []
    for old in (renamed_settings, moved_settings):
        values, notes, twice = old.in_file(values, is_run)
        texts, more, twice_too = old.in_overrides(texts)
        old_keys += [*notes, *more]
        wrong += [*twice, *twice_too]
    known = _with_rows(replaced_data.source(values)) if replaced_data.names_other_rows(values, texts) else []
    what = replaced_data.replaced(values, texts, known, is_run)
    laid = overlay(values, texts, TYPES, what.drops, what.still_valid)
    completed, implied, of_start = start.completed(laid.values, laid.overridden)
    laid = replace(laid, values=completed)
    if "name" in laid.dropped and "name" not in texts:
        rows, method = replaced_data.name_of(replaced_data.source(laid.values)), get(laid.values, "strategy")
        laid.values["name"] = f"{rows}-{method.get('name') if isinstance(method, Mapping) else method}"
    elif "name" not in texts:
        laid = replaced_data.renamed(laid, before)
    recipe, problems = validated(laid.values)
    if recipe is None or laid.problems or wrong:
        raise UserError(*wrong, *laid.problems, *problems)
    resolved = _filled(recipe, laid, of_start)
    return replace(resolved, notes=(*old_keys, *implied, *resolved.notes))


def _with_rows(source: Any) -> list[dict[str, Any]]:
    """The values of the shipped recipes whose training rows come from this source."""
    files = [f for name in names() if isinstance(source, str) and source in (f := find(name)).read_text("utf-8")]
    found = [{"name": file.stem, **typed_yaml.read_file(file, Recipe.model_fields, TYPES)} for file in files]
    return [values for values in found if replaced_data.source(values) == source]


def _filled(recipe: Recipe, laid: Overlaid, of_start: Set[str]) -> Resolved:
    """The recipe with the strategy's defaults and absolute paths filled in, and every value's origin.

    Args:
        of_start: dotted keys whose values come from the trained model that training goes on from.
    """
    by_strategy = {"learning_rate": recipe.strategy.start_lr(), "warmup": recipe.strategy.default_warmup}
    by_strategy["head_lr_scale"] = recipe.strategy.head_lr_scale
    filled = {k: v for k, v in by_strategy.items() if getattr(recipe.train, k) is None}
    data = {n: _absolute(f) for n in ("train", "validation", "test") if (f := getattr(recipe.data, n)) is not None}
    recipe = recipe.model_copy(
        update={
            "train": recipe.train.with_values(**filled),
            "data": recipe.data.model_copy(update=data),
            "base": _absolute(recipe.base),
            "regularizers": {name: _with_absolute_files(r) for name, r in recipe.regularizers.items()},
        }
    )
    layers = (
        (of_start, "start.source"),
        (laid.overridden, "override"),
        ({f"train.{k}" for k in filled}, f"default of {recipe.strategy.name}"),
        (laid.from_file, "recipe"),
    )
    final = recipe.as_dict()
    wrong = misfits(recipe.objectives, recipe.task, recipe.strategy)
    wrong += [*unfit_augmentations(recipe.augmentations, recipe.task, recipe.strategy), *sharded.misfits(recipe)]
    if wrong:
        raise UserError(*wrong)
    ignored = unused_settings.in_sections(recipe)
    if problems := [sentence for key, sentence in ignored.items() if key in laid.overridden]:
        raise UserError(*problems)
    origins = {key: _origin(key, layers) for key in flat(final)}
    reset = laid.reset(final)
    for key, old in reset.items():
        if key in origins:
            origins[key] += f", instead of the recipe's {short(old)}"
    notes = (*laid.notes(reset), *replaced_data.staying(recipe.data, laid), *ignored.values())
    notes += (*unused_settings.across_sections(recipe, laid.from_file | laid.overridden),)
    if "train.learning_rate" in laid.overridden or not recipe.strategy.trains:
        return Resolved(recipe, origins, notes)
    if "learning_rate" in filled or any(key.startswith("train.optimizer") for key in laid.overridden):
        notes += (*_of_another_optimizer(recipe.train),)
    return Resolved(recipe, origins, notes)


def _of_another_optimizer(train: TrainSettings) -> Iterator[str]:
    """A note if the learning rate was chosen for adamw but the optimizer usually needs another one."""
    rate, ratio = train.learning_rate, train.optimizer.adamw_lr_ratio
    assert rate is not None, "it was filled in"
    if ratio != 1:
        yield (
            f"train.learning_rate={rate:g} was chosen for adamw; {train.optimizer.name} usually takes about {ratio:g}"
            f" times as much; try train.learning_rate={rate * ratio:.3g}"
        )


def _origin(key: str, layers: Sequence[tuple[Set[str], str]]) -> str:
    """The name of the first layer that contains the key, or its section if that is a plain text."""
    section, _, last = key.rpartition(".")
    return next(
        (name for keys, name in layers if key in keys or (section in keys and last in ("name", "source"))),
        "default",
    )


def _with_absolute_files(choice: Any) -> Any:
    files = {n: _absolute(value) for n, value in dict(choice).items() if isinstance(value, FileSettings)}
    return choice.model_copy(update=files)


def _absolute(settings: Any) -> Any:
    """The settings with absolute paths; a source may be a list of files."""
    source = settings.source
    return settings.model_copy(
        update={"source": absolute(source) if isinstance(source, str) else tuple(map(absolute, source))}
    )
