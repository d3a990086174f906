"""Suites: a base recipe, axes, seeds and a number of learning rates, expanded into cells.

A cell is one choice on every axis: a recipe without learning rate and seed. Cells with the same task, base and number
of rows form a problem; only they are compared with each other.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pefttools.bases.loading import BaseSettings
from pefttools.bench import axes
from pefttools.bench.axes import AXES, NONE, PROBLEM, STRATEGIES, TASKS, Overrides
from pefttools.bench.recommendation import MARGIN
from pefttools.errors import UserError, unknown
from pefttools.recipe import recipes, shipped, typed_yaml
from pefttools.recipe.overrides import overlay, pairs, parsed
from pefttools.recipe.parsing import TYPES
from pefttools.recipe.recipe import Recipe
from pefttools.settings import Settings, check

SPAN = 4.0
"""Learning rates near a default are at most this factor below or above it."""
OWN = {"seed": "seeds", "train.learning_rate": "tuning.trials"}
"""Recipe keys that differ between a suite's trials -> the suite's key for them."""


class Tuning(Settings):
    """Settings for choosing every cell's learning rate, on validation rows only."""

    trials: int = Field(default=3, ge=1, le=1000)
    """Learning rates tried in every cell, spaced evenly in their logarithm; 1 takes the strategy's default."""
    seed: int = Field(default=0, ge=0)
    """Seed of the trials that choose the learning rate."""
    span: Literal["default", "range"] = "range"
    """`range` goes over the strategy's whole range; `default` stays within a factor of four of its default."""


class Retention(Settings):
    """A recipe of a masked or causal language model whose strategy does not change the base."""

    recipe: str
    """A shipped recipe or a path."""
    set: Mapping[str, Any] = {}
    """Recipe keys; the base is every cell's own."""


class Suite(Settings):
    """A comparison."""

    name: str
    """Name shown in output; by default the file's stem."""
    description: str = ""
    """One line on what it compares."""
    recipe: str
    """The recipe that the axes vary: a shipped one or a path."""
    set: Mapping[str, Any] = {}
    """Recipe keys for every trial: `{train.epochs: 2}`."""
    axes: Mapping[str, Any]
    """`strategies`, `penalties`, `objectives`, `augmentations`, `tasks`, `bases` and `sizes`, each a list of names, or
    names with settings."""
    leave_out: tuple[Mapping[str, tuple[str, ...]], ...] = ()
    """Combinations that make no sense: `{strategies: [adapter], penalties: [frobenius]}`."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    """Seeds with which every cell is trained at its chosen learning rate."""
    tuning: Tuning = Tuning()
    """Choice of learning rates."""
    margin: float = Field(default=MARGIN, gt=0)
    """A smaller method is recommended if it is shown to be at most this much worse than every other one: in the unit of
    the metric, or a share of the best score where the metric has no bounds (perplexity)."""
    retention: Retention | None = None
    """The text that forgetting is measured on, as a recipe of a language model; null for none."""

    @field_validator("axes")
    @classmethod
    def _known_axes(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        if strange := [name for name in value if name not in AXES]:
            raise ValueError(unknown("axis", strange[0], AXES))
        made = {name: axes.read(name, entries) for name, entries in value.items()}
        if empty := [name for name, entries in made.items() if not entries]:
            raise ValueError(f"`{empty[0]}` is empty, so there is nothing to run")
        if not made:
            raise ValueError("is empty, so there is nothing to compare")
        return made

    @field_validator("seeds")
    @classmethod
    def _no_seed_twice(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("has a seed twice; remove one")
        return value

    @model_validator(mode="after")
    def _left_out_by_known_names(self) -> Suite:
        for rule in self.leave_out:
            for axis, names in rule.items():
                if axis not in self.axes:
                    raise ValueError(f"leave_out names the axis {axis!r}; this suite has {', '.join(self.axes)}")
                if strange := [name for name in names if name not in self.axes[axis]]:
                    raise ValueError(f"leave_out: {unknown(axis, strange[0], list(self.axes[axis]))}")
        return self

    @property
    def digest(self) -> str:
        """sha256 of everything that changes a trial."""
        values = self.model_dump(mode="json", exclude={"name", "description", "margin"})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def cells(self) -> list[Cell]:
        """All combinations except those left out, by problem. Raises UserError when none is left."""
        names = [axis for axis in AXES if axis in self.axes]
        found = [
            Cell(self, dict(zip(names, chosen, strict=True)))
            for chosen in itertools.product(*(self.axes[axis] for axis in names))
        ]
        left = [cell for cell in found if not any(cell.is_of(rule) for rule in self.leave_out)]
        if not left:
            raise UserError("leave_out: excludes every combination; remove a rule")
        return left


@dataclass(frozen=True)
class Cell:
    """One choice on every axis."""

    suite: Suite
    labels: Mapping[str, str]
    """Axis -> the name of the entry chosen there."""

    @property
    def name(self) -> str:
        return " · ".join(self.labels.values())

    @property
    def study(self) -> str:
        return self.name

    @property
    def problem(self) -> str:
        """The labels that comparable cells have in common."""
        return " · ".join(self.labels[axis] for axis in PROBLEM if axis in self.labels)

    @property
    def setting(self) -> str:
        """The labels that cells on different test sets have in common."""
        return " · ".join(self.labels[axis] for axis in PROBLEM if axis in self.labels and axis != TASKS)

    @property
    def method(self) -> str:
        """The labels by which comparable cells differ."""
        names = [n for a, n in self.labels.items() if a not in PROBLEM and (n != NONE or a == STRATEGIES)]
        return " + ".join(names) or "plain"

    @cached_property
    def base(self) -> str:
        """The source of its base."""
        return self.recipe(self.suite.tuning.seed).base.source

    @cached_property
    def lower_is_better(self) -> bool:
        """Whether a lower value of its metric is better."""
        return self.recipe(self.suite.tuning.seed).task.lower_is_better

    def is_of(self, rule: Mapping[str, Sequence[str]]) -> bool:
        return all(self.labels[axis] in names for axis, names in rule.items())

    @cached_property
    def start(self) -> str:
        """The recipe to which the overrides apply."""
        return self._chosen.get("recipe") or self.suite.recipe

    @cached_property
    def overrides(self) -> Overrides:
        """The overrides that turn the recipe into this cell."""
        return {k: v for k, v in self._chosen.items() if k != "recipe"}

    @cached_property
    def _chosen(self) -> Overrides:
        merged: Overrides = dict(self.suite.set)
        for axis, name in self.labels.items():
            merged |= self.suite.axes[axis][name]
        return merged

    def words(self, seed: int, learning_rate: float | None) -> list[str]:
        """The `KEY=VALUE` words of a trial; its command is `pefttools train START WORDS`."""
        values = {**self.overrides, "seed": seed, "train.trackers": []}
        if learning_rate is not None:
            values["train.learning_rate"] = learning_rate
        return words(values)

    def command(self, seed: int, learning_rate: float | None) -> str:
        """The command line of a trial."""
        overrides = [word for word in self.words(seed, learning_rate) if not word.startswith("train.trackers=")]
        return shlex.join(["pefttools", "train", self.start, *overrides])

    def recipe(self, seed: int, learning_rate: float | None = None) -> Recipe:
        """The recipe of a trial. Raises UserError, with the cell's name, when it is invalid."""
        try:
            return recipes.load(self.start, self.words(seed, learning_rate)).recipe
        except UserError as error:
            raise UserError(*(f"{self.name}: {problem}" for problem in error.problems)) from error

    @cached_property
    def learning_rates(self) -> list[float | None]:
        """The learning rates to try; None stands for the strategy's default."""
        tuning, strategy = self.suite.tuning, self.recipe(self.suite.tuning.seed).strategy
        if tuning.trials == 1 or not strategy.trains:
            return [None]
        if tuning.span == "default":
            return list(around(strategy.start_lr(), strategy.lr_range, tuning.trials))
        return list(spaced(*strategy.lr_range, tuning.trials))


def around(default: float, limits: tuple[float, float], number: int) -> Iterator[float]:
    """`number` learning rates near a default, within the limits."""
    return spaced(max(limits[0], default / SPAN), min(limits[1], default * SPAN), number)


def spaced(low: float, high: float, number: int) -> Iterator[float]:
    """`number` values from low to high, evenly spaced in their logarithm, rounded to three digits."""
    for i in range(number):
        yield float(f"{low * (high / low) ** (i / (number - 1)):.3g}")


def words(values: Overrides) -> list[str]:
    """Overrides as `KEY=VALUE` words of a command line."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


def names() -> list[str]:
    """The names of the shipped suites."""
    return [*shipped.files("suites")]


def _types(values: Mapping[str, Any]) -> dict[str, Any]:
    """The types of a suite file's values, so that texts of a recipe in it stay texts: `{data.labels.0: no}`."""
    start, axes_values = values.get("recipe"), values.get("axes")
    tasks = axes_values.get("tasks") if isinstance(axes_values, Mapping) else None
    starts = {name: one.get("recipe", name) for name, one in tasks.items() if isinstance(one, Mapping)} if isinstance(
        tasks, Mapping
    ) else {}  # fmt: skip
    of_tasks = {name: {"recipe": str, "set": _dotted(of)} for name, of in starts.items()}
    return {"set": _dotted(start), "axes": {"tasks": of_tasks, "bases": Mapping[str, BaseSettings]}}


def _dotted(start: Any) -> typed_yaml.Dotted:
    """The type of overrides of a recipe."""
    try:
        values = typed_yaml.read_file(recipes.find(str(start)))
    except UserError:  # reported when the suite is checked
        values = {}
    return typed_yaml.Dotted(TYPES, values)


def load(name: str, overrides: Sequence[str] = ()) -> Suite:
    """A shipped suite, or one by path; overrides of its own keys (`seeds=[0]`), or of recipe keys for every trial.

    Raises:
        UserError: there is no such suite, or it has errors, all of which are listed.
    """
    is_path = name.endswith((".yaml", ".yml")) or "/" in name
    path = Path(name) if is_path else shipped.folder("suites") / f"{name}.yaml"
    if not path.is_file():
        raise UserError(
            f"{name}: there is no such suite file; check the path" if is_path else unknown("suite", name, names())
            + " (a path to your own file ends with .yaml)"
        )  # fmt: skip
    own = [word for word in overrides if word.partition("=")[0].partition(".")[0] in Suite.model_fields]
    of_suite, problems = pairs(own)
    of_file = typed_yaml.read_file(path, Suite.model_fields)
    of_file = typed_yaml.read_file(path, Suite.model_fields, _types(of_file))
    laid = overlay({"name": path.stem, **of_file}, of_suite, Suite)
    values, problems = laid.values, [*problems, *laid.problems]
    of_recipe = [word for word in overrides if word not in own]
    values_of_recipe, wrong = pairs(of_recipe)  # not parsed, because the recipe parses them by its settings' types
    wrong += parsed(of_recipe, TYPES)[1] if not wrong else []
    problems += [
        *wrong,
        *(f"{key}: a suite sets it in every trial; set `{OWN[key]}`" for key in OWN if key in values_of_recipe),
    ]
    if isinstance(values.get("set") or {}, Mapping):  # other values are reported by the check
        values["set"] = {**(values.get("set") or {}), **values_of_recipe}
    suite, found = check(Suite, values, "")
    if suite is None or problems:
        raise UserError(*problems, *found)
    return suite
