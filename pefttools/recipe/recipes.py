"""A recipe: what to train, on what, how; loaded by name or path, overridden by `KEY=VALUE`, identified by a digest.

Values are layered: defaults, the recipe's file, overrides. Choosing another strategy, base or training file
drops the settings that belong to the old one alone (`overrides.RESETS`, `replaced_data`). `Resolved.origins` records
where each value came from, and `Resolved.notes` what was dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from pefttools.augmentations import augmentations
from pefttools.augmentations.base import Augmentation, unfit_augmentations
from pefttools.bases.loading import BaseSettings
from pefttools.data.settings import DataSettings, FileSettings
from pefttools.errors import UserError, unknown
from pefttools.objectives import objectives
from pefttools.objectives.base import Objective, misfits
from pefttools.optimizers import optimizers
from pefttools.recipe import moved_settings, renamed_settings, replaced_data, shipped, typed_yaml, unused_settings
from pefttools.recipe.overrides import Overlaid, flat, get, overlay, pairs, short
from pefttools.recipe.train_settings import TrainSettings, parse_optimizer
from pefttools.registry import Registry
from pefttools.regularizers import regularizers
from pefttools.regularizers.base import Regularizer
from pefttools.settings import DEFAULT_NOT_IN_DIGEST, NOT_IN_DIGEST, Settings, check
from pefttools.sources import is_remote
from pefttools.strategies import strategies
from pefttools.strategies.base import Strategy
from pefttools.synonyms import unknown_key
from pefttools.tasks import tasks
from pefttools.tasks.base import Task

RUN_MARK = "# A run of pefttools; running this recipe again gives the same run."
"""The first line of a recipe that a run wrote, with what it learnt from its rows."""


NAMED: Mapping[str, Registry[Any]] = {
    "regularizers": regularizers, "objectives": objectives, "augmentations": augmentations
}  # fmt: skip
"""Sections of any number of choices, each under its name -> their registry."""


class Header(Settings):
    """The settings of a recipe outside its sections."""

    name: str
    """The recipe's name, shown in output."""
    description: str = Field(default="", json_schema_extra=NOT_IN_DIGEST)
    """One line that describes what the recipe does."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of all randomness, including the initial values of a new head."""


class Recipe(Header):
    """Everything a run depends on."""

    base: BaseSettings
    data: DataSettings
    task: Task
    strategy: Strategy
    regularizers: dict[str, Regularizer] = {}
    """Penalties by name, each with its settings. All of them are added to the loss."""
    objectives: dict[str, Objective] = {}
    """What a step minimizes besides the task's loss, by name, each with its settings. Objectives act in this order."""
    augmentations: dict[str, Augmentation] = {}
    """Augmentations add rewritten copies to the training rows, by name and in this order, each with its settings."""
    train: TrainSettings

    def as_dict(self) -> dict[str, Any]:
        """What `recipe.yaml` holds."""
        plain = self.model_dump(mode="json", exclude={"task", "strategy", *NAMED})
        chosen = {"task": self.task.as_dict(), "strategy": self.strategy.as_dict()}
        for section in NAMED:
            chosen[section] = {name: one.model_dump(mode="json") for name, one in getattr(self, section).items()}
        return {name: {**plain, **chosen}[name] for name in type(self).model_fields}

    @property
    def digest(self) -> str:
        """sha256 of every value that changes what is learnt; the recipe's name is not one."""
        values = {k: v for k, v in self.as_dict().items() if k not in ("name", "description")}
        for section in ("task", "strategy", "train"):
            fields = type(getattr(self, section)).model_fields
            marked = [n for n, f in fields.items() if f.json_schema_extra == NOT_IN_DIGEST]
            values[section] = {k: v for k, v in values[section].items() if k not in marked}
        values["train"] = moved_settings.as_before(values["train"])
        values["task"] = renamed_settings.task_as_before(values["task"])
        for name, field in DataSettings.model_fields.items():
            if field.json_schema_extra == DEFAULT_NOT_IN_DIGEST and getattr(self.data, name) == field.default:
                del values["data"][name]
        if values["base"]["quantize"] is None:  # younger than many a digest, and nothing is what there was before it
            del values["base"]["quantize"]
        for name in ("train", "validation", "test"):
            if values["data"][name]:
                values["data"][name] = FileSettings.as_read_before(values["data"][name], name)
        for penalty in values["regularizers"].values():
            if isinstance(penalty.get("data"), dict):
                penalty["data"] = FileSettings.as_read_before(penalty["data"], "train")
        if values["base"]["trained_head"] == "auto":
            del values["base"]["trained_head"]
        for section in ("objectives", "augmentations"):
            if values[section]:
                values[section] = list(values[section].items())  # their order matters
            else:
                del values[section]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Resolved:
    """A recipe and where its values came from."""

    recipe: Recipe
    origins: Mapping[str, str]
    """Dotted key -> `recipe`, `override`, `default` or `default of STRATEGY`, and what was reset."""
    notes: tuple[str, ...] = ()
    """A sentence for each of the recipe's other values that the overrides changed."""


def names() -> list[str]:
    """The shipped recipes."""
    return [*shipped.files("recipes")]


def find(name: str) -> Path:
    """The file of a shipped recipe or a path. Raises UserError when there is none."""
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        path = Path(name)
        if not path.is_file():
            raise UserError(f"{name}: there is no such recipe file; check the path")
        return path
    files = shipped.files("recipes")
    if name not in files:
        raise UserError(unknown("recipe", name, names()) + " (a path to your own file must end with .yaml)")
    return files[name]


def load(name: str, overrides: Sequence[str] = ()) -> Resolved:
    """A recipe by name or path, with `KEY=VALUE` overrides.

    Raises:
        UserError: everything that is wrong with it, each with its path and the nearest match.
    """
    path = find(name)
    values = {"name": path.stem, **read_yaml(path, Recipe.model_fields, TYPES)}
    is_run = path.read_text("utf-8").startswith(RUN_MARK)
    return from_values(values, overrides, is_run, is_shipped=path in shipped.files("recipes").values())


def from_values(
    values: dict[str, Any], overrides: Sequence[str] = (), is_run: bool = False, is_shipped: bool = False
) -> Resolved:
    """A recipe from what its file holds. Raises UserError like `load`.

    Args:
        is_run: whether a run wrote the file.
        is_shipped: whether it came with the package: its name and description describe its own base and strategy.
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
    laid = overlay(values, texts, TYPES, what.drops, what.kept)
    if "name" in laid.dropped and "name" not in texts:
        rows, method = replaced_data.name_of(replaced_data.source(laid.values)), get(laid.values, "strategy")
        laid.values["name"] = f"{rows}-{method.get('name') if isinstance(method, Mapping) else method}"
    elif "name" not in texts:
        laid = replaced_data.renamed(laid, before)
    recipe, problems = _validated(laid.values)
    if recipe is None or laid.problems or wrong:
        raise UserError(*wrong, *laid.problems, *problems)
    resolved = _filled(recipe, laid)
    return replace(resolved, notes=(*old_keys, *resolved.notes))


def read_yaml(path: Path, known: Iterable[str] = (), kind: Any = Any) -> dict[str, Any]:
    """The mapping in a YAML file, of values of this type.

    Raises:
        UserError: it holds none, naming the keys it may have.
    """
    try:
        values = typed_yaml.load(path.read_text("utf-8"), kind)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a mapping of sections. Known: {', '.join(known)}")
    return values


def _with_rows(source: Any) -> list[dict[str, Any]]:
    """The values of the shipped recipes whose training rows come from this source."""
    files = [f for name in names() if isinstance(source, str) and source in (f := find(name)).read_text("utf-8")]
    found = [{"name": file.stem, **read_yaml(file, Recipe.model_fields, TYPES)} for file in files]
    return [values for values in found if replaced_data.source(values) == source]


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
"""The types of a recipe's values, by which its file and its overrides are read."""


def _validated(values: Mapping[str, Any]) -> tuple[Recipe | None, list[str]]:
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
    top = {k: v for k, v in values.items() if k in Header.model_fields}
    if problems:
        _, more = check(Header, top, "")
        return None, [*problems, *more]
    return check(Recipe, {**top, **sections}, "")


def _with_optimizer(train: Any) -> tuple[Any, list[str]]:
    """The section `train` with its optimizer as a choice; without it where it has problems, and those."""
    if not isinstance(train, Mapping) or "optimizer" not in train:
        return train, []
    optimizer, problems = parse_optimizer(train["optimizer"])
    rest = {key: value for key, value in train.items() if key != "optimizer"}
    return (rest if optimizer is None else {**rest, "optimizer": optimizer}), problems


def _named(value: Any, section: str, registry: Registry[Any]) -> tuple[dict[str, Any], list[str]]:
    """From a name, a list of names, or names with settings to the choices, or the problems."""
    named = {value: None} if isinstance(value, str) else value or {}
    if isinstance(named, (list, tuple)):
        named = dict.fromkeys(map(str, named))
    if not isinstance(named, Mapping):
        return {}, [f"{section}: takes names, or names with settings; got {value!r}"]
    made, problems = {}, []
    for name, settings in named.items():
        if not isinstance(settings or {}, Mapping):
            problems.append(f"{section}.{name}: takes a mapping of settings; got {settings!r}")
            continue
        made[name], found = registry.parse({**(settings or {}), "name": name}, f"{section}.{name}")
        problems += found
    return made, problems


def _filled(recipe: Recipe, laid: Overlaid) -> Resolved:
    """The recipe with the strategy's defaults and absolute paths filled in, and every value's origin."""
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
        (laid.overridden, "override"),
        ({f"train.{k}" for k in filled}, f"default of {recipe.strategy.name}"),
        (laid.from_file, "recipe"),
    )
    final = recipe.as_dict()
    wrong = misfits(recipe.objectives, recipe.task, recipe.strategy)
    if wrong := [*wrong, *unfit_augmentations(recipe.augmentations, recipe.task, recipe.strategy)]:
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
    """A note if the learning rate was chosen for adamw and the optimizer usually needs another one."""
    rate, ratio = train.learning_rate, train.optimizer.adamw_lr_ratio
    assert rate is not None, "it was filled in"
    if ratio != 1:
        yield (
            f"train.learning_rate={rate:g} was chosen for adamw; {train.optimizer.name} usually takes about {ratio:g}"
            f" times as much; try train.learning_rate={rate * ratio:.3g}"
        )


def _origin(key: str, layers: Sequence[tuple[set[str], str]]) -> str:
    """The first layer that holds the key, or the section that a plain string stands for."""
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
        update={"source": _path(source) if isinstance(source, str) else tuple(map(_path, source))}
    )


def _path(source: str) -> str:
    return source if is_remote(source) else str(Path(source).expanduser().absolute())
