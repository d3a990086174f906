"""Everything that a run depends on, and the digest of what changes the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from pefttools.augmentations import augmentations
from pefttools.augmentations.base import Augmentation
from pefttools.bases.loading import BaseSettings
from pefttools.data.settings import DataSettings, FileSettings
from pefttools.objectives import objectives
from pefttools.objectives.base import Objective
from pefttools.recipe import moved_settings, renamed_settings
from pefttools.recipe.start import StartSettings
from pefttools.recipe.train_settings import TrainSettings
from pefttools.registry import Registry
from pefttools.regularizers import regularizers
from pefttools.regularizers.base import Regularizer
from pefttools.settings import DEFAULT_NOT_IN_DIGEST, NOT_IN_DIGEST, Settings
from pefttools.strategies.base import Strategy
from pefttools.tasks.base import Task

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
    start: StartSettings | None = None
    """The trained model that training goes on from: a run, an adapter or a merged model. Null trains the base."""
    data: DataSettings
    task: Task
    strategy: Strategy
    regularizers: dict[str, Regularizer] = {}
    """Penalties by name, each with its settings. All of them are added to the loss."""
    objectives: dict[str, Objective] = {}
    """Objectives change the loss or gradient of a step, by name and in this order, each with its settings."""
    augmentations: dict[str, Augmentation] = {}
    """Augmentations add rewritten copies to the training rows, by name and in this order, each with its settings."""
    train: TrainSettings

    def as_dict(self) -> dict[str, Any]:
        """The content of `recipe.yaml`."""
        plain = self.model_dump(mode="json", exclude={"task", "strategy", *NAMED})
        chosen = {"task": self.task.as_dict(), "strategy": self.strategy.as_dict()}
        for section in NAMED:
            chosen[section] = {name: one.model_dump(mode="json") for name, one in getattr(self, section).items()}
        return {name: {**plain, **chosen}[name] for name in type(self).model_fields}

    @property
    def digest(self) -> str:
        """sha256 of all values that affect the trained model, without the recipe's name."""
        return hashlib.sha256(json.dumps(self._digested(), sort_keys=True).encode()).hexdigest()

    def differences(self, earlier: Recipe) -> list[str]:
        """What changes the trained model and differs from another recipe: `train.learning_rate=0.001, was 0.002` …"""
        now, before = (dict(_flat(one._digested())) for one in (self, earlier))
        names = [name for name in {**before, **now} if now.get(name) != before.get(name)]
        return [f"{name}={json.dumps(now.get(name))}, was {json.dumps(before.get(name))}" for name in names]

    def settings(self) -> dict[str, Any]:
        """Dotted key -> value of every setting that affects the trained model, under its present name."""
        values = {k: v for k, v in self.as_dict().items() if k not in ("name", "description")}
        for section in ("task", "strategy", "train"):
            values[section] = {k: v for k, v in values[section].items() if k not in self._undigested(section)}
        return dict(_flat(values))

    def _undigested(self, section: str) -> list[str]:
        """The settings of a section that do not affect the trained model."""
        fields = type(getattr(self, section)).model_fields
        return [name for name, field in fields.items() if field.json_schema_extra == NOT_IN_DIGEST]

    def _digested(self) -> dict[str, Any]:
        """All values that affect the trained model, as they are hashed."""
        values = {k: v for k, v in self.as_dict().items() if k not in ("name", "description")}
        for section in ("task", "strategy", "train"):
            values[section] = {k: v for k, v in values[section].items() if k not in self._undigested(section)}
        if values["start"] is None:  # added later
            del values["start"]
        values["train"] = moved_settings.as_before(values["train"])
        values["task"] = renamed_settings.task_as_before(values["task"])
        for section, settings in (("data", self.data), ("base", self.base), ("task", self.task), ("train", self.train)):
            for name, field in type(settings).model_fields.items():
                if field.json_schema_extra == DEFAULT_NOT_IN_DIGEST and getattr(settings, name) == field.default:
                    del values[section][name]
        if values["base"]["quantize"] is None:  # added later; null is the earlier behaviour
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
        return values


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the plain values inside a dictionary, each with its path of keys."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{place}.{key}" if place else str(key))
    else:
        yield place, value
