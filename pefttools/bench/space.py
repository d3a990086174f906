"""The space of a search: its keys with their ranges, which apply to which choices, and its points.

A key below a searched section applies to the choices that have it: with `strategy=lora,bitfit` and
`strategy.rank=4,8`, only lora has a rank.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pefttools.bench.ranges import Choices, Range
from pefttools.errors import UserError
from pefttools.recipe import recipes
from pefttools.recipe.recipe import Recipe

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

Texts = Mapping[str, str]
"""Key -> the text of its override."""
MOST_POINTS = 10_000
"""Points up to which a space is listed."""
STUDY = "search"


@dataclass(frozen=True)
class Dimension:
    """A searched key."""

    key: str
    range: Range
    of: str = ""
    """The searched section that it depends on."""
    choices: tuple[str, ...] = ()
    """The section's choices to which it applies; all where it depends on none."""
    name: str = ""
    """Its name in Optuna; keys whose ranges differ by choice have several."""

    @property
    def label(self) -> str:
        return self.name or self.key

    def applies(self, texts: Texts) -> bool:
        return not self.of or texts.get(self.of) in self.choices


@dataclass(frozen=True)
class Space:
    """A recipe, overrides for all trials, and what varies."""

    start: str
    overrides: tuple[str, ...]
    dimensions: tuple[Dimension, ...]
    """A section before the keys that depend on it."""

    def words(self, texts: Texts, seed: int) -> list[str]:
        """The `KEY=VALUE` words of a trial."""
        fixed = [word for word in self.overrides if word.partition("=")[0] not in ("seed", "train.trackers")]
        return [*fixed, *(f"{key}={text}" for key, text in texts.items()), f"seed={seed}", "train.trackers=[]"]

    def recipe(self, texts: Texts, seed: int | None = None) -> Recipe:
        """The recipe of a point. Raises UserError when it is invalid."""
        return self._loaded(texts, seed).recipe

    def notes(self, texts: Texts) -> tuple[str, ...]:
        """What `pefttools train` would say about the recipe of a point."""
        return self._loaded(texts).notes

    def _loaded(self, texts: Texts, seed: int | None = None) -> recipes.Resolved:
        return recipes.load(self.start, self.words(texts, self.seed if seed is None else seed))

    @cached_property
    def defaults(self) -> Recipe:
        """The recipe with the overrides alone."""
        return recipes.load(self.start, [*self.overrides, "train.trackers=[]"]).recipe

    @property
    def seed(self) -> int:
        """The seed of the trials that search."""
        return self.defaults.seed

    @cached_property
    def default_point(self) -> dict[str, str] | None:
        """The point of the defaults; None if they lie outside."""
        texts: dict[str, str] = {}
        for one in self.dimensions:
            if one.applies(texts):
                text = self._default_text(one, texts)
                if text is None:
                    return None
                texts[one.key] = text
        return texts if self.recipe(texts).digest == self.defaults.digest else None

    def _default_text(self, one: Dimension, texts: Texts) -> str | None:
        """The text of the recipe's own value in a range; None if it lies outside."""
        value = value_of(self.defaults, one.key)
        if isinstance(one.range, Choices):
            same = (text for text in one.range.texts if _is_same(self._value(one.key, {**texts, one.key: text}), value))
            return next(same, None)
        return repr(value) if one.range.contains(value) else None

    def _value(self, key: str, texts: Texts) -> Any:
        try:
            return value_of(self.recipe(texts), key)
        except UserError:
            return None

    def draw(self, trial: Trial) -> dict[str, str]:
        """A point, drawn by Optuna."""
        texts: dict[str, str] = {}
        for one in self.dimensions:
            if one.applies(texts):
                texts[one.key] = one.range.draw(trial, one.label)
        return texts

    def params(self, texts: Texts) -> dict[str, tuple[Any, BaseDistribution]]:
        """Name -> value and distribution, for Optuna; a value that is no choice of its range is left out."""
        found = {}
        for one in self.dimensions:
            if one.applies(texts) and one.key in texts:
                found[one.label] = (one.range.value(texts[one.key]), one.range.distribution())
        return found

    def points(self) -> list[dict[str, str]] | None:
        """All points; None if they are not finitely many, or too many."""
        alls = [one.range.all() for one in self.dimensions]
        number = 1
        for texts in alls:
            if texts is None or (number := number * len(texts)) > MOST_POINTS:
                return None
        found: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
        for chosen in itertools.product(*(texts for texts in alls if texts is not None)):
            texts = {}
            for one, text in zip(self.dimensions, chosen, strict=True):
                if one.applies(texts):
                    texts[one.key] = text
            found[tuple(texts.items())] = texts
        return [*found.values()]

    def as_dict(self) -> dict[str, str]:
        """Name -> range, in words."""
        return {one.label: str(one.range) for one in self.dimensions}


@dataclass(frozen=True)
class Point:
    """One choice of values: what a trial trains, except for its seed."""

    space: Space
    texts: Texts
    """Empty for the defaults."""
    study: str = STUDY
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or ", ".join(f"{key}={text}" for key, text in self.texts.items()) or "the defaults"

    @cached_property
    def start(self) -> str:
        return self.space.start

    @cached_property
    def base(self) -> str:
        return self.space.defaults.base.source

    @cached_property
    def lower_is_better(self) -> bool:
        return self.space.defaults.task.lower_is_better

    def words(self, seed: int, learning_rate: float | None = None) -> list[str]:
        assert learning_rate is None, "a rate is one of the texts"
        return self.space.words(self.texts, seed)

    def command(self, seed: int, learning_rate: float | None = None) -> str:
        words = [word for word in self.words(seed, learning_rate) if not word.startswith("train.trackers=")]
        return shlex.join(["pefttools", "train", self.start, *words])


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values are the same; two sections are if they have the same choice."""
    for name in ("name", "source"):
        if isinstance(one, Mapping) and isinstance(other, Mapping) and name in one:
            return one[name] == other.get(name)
    return one == other


def value_of(recipe: Recipe, key: str) -> Any:
    """The value under a dotted key of a resolved recipe; None if it has no such key."""
    value: Any = recipe.as_dict()
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def has(recipe: Recipe, key: str) -> bool:
    """Whether a resolved recipe has a setting under this dotted key."""
    section, _, last = key.rpartition(".")
    values = value_of(recipe, section) if section else recipe.as_dict()
    return isinstance(values, Mapping) and last in values


def contexts(dimensions: Sequence[Dimension], one: Dimension) -> Iterator[dict[str, str]]:
    """The choices of sections with which a dimension applies."""
    for choice in one.choices if one.of else ("",):
        above = next((other for other in dimensions if other.key == one.of), None)
        if above is None:
            yield {}
            continue
        for context in contexts(dimensions, above):
            yield {**context, one.of: choice}
