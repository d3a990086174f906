"""`KEY=VALUE` overrides laid over what a recipe's file says: plain dicts in, plain dicts out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

FITTED = (
    "labels", "pair", "label_mean", "label_scale", "num_choices", "read_as", "unanswerable", "chat", "examples",
    "bleu_tokenizer",
)  # fmt: skip
"""What tasks learn from their training rows and write into a run's recipe."""
RESETS: Mapping[str, tuple[str, ...]] = {
    "base.source": ("base.sha256",),
    "data.train": (
        "data.validation",
        "data.test",
        "data.columns",
        "data.labels",
        "data.bins",
        "data.min_class_rows",
        *(f"task.{name}" for name in FITTED),
    ),
    "data.train.source": ("data.train.sha256", "data.train.beside"),
    "data.validation.source": ("data.validation.sha256", "data.validation.beside"),
    "data.test.source": ("data.test.sha256", "data.test.beside"),
    "strategy": ("train.learning_rate", "train.warmup", "train.head_lr_scale"),
    "strategy.name": ("train.learning_rate", "train.warmup", "train.head_lr_scale"),
}
"""Override -> what the recipe's file said that no longer holds."""


@dataclass(frozen=True)
class Overlaid:
    """A recipe file's values with overrides laid over them."""

    values: dict[str, Any]
    from_file: set[str]
    """Dotted keys that the file still decides."""
    overridden: set[str]
    """Dotted keys that an override decides."""
    problems: list[str]


def overlay(values: dict[str, Any], overrides: Sequence[str]) -> Overlaid:
    """Lay `KEY=VALUE` texts over a file's values; a section is replaced before what is in it, whatever their order."""
    given, problems = parsed(overrides)
    for key in given:
        for dropped in (key, *RESETS.get(key, ())):
            _drop(values, dropped)
    from_file = set(flat(values))
    overridden: dict[str, Any] = {}
    for key in sorted(given, key=lambda k: k.count(".")):
        problems += _put(values, key, given[key])
        _put(overridden, key, given[key])
    return Overlaid(values, from_file, set(flat(overridden)), problems)


def parsed(overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """`KEY=VALUE` texts as keys with values, and one sentence on each that is not one."""
    given, problems = {}, []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            problems.append(f"{text!r} is no override; it takes the form KEY=VALUE, e.g. train.epochs=3")
            continue
        try:
            given[key] = yaml.safe_load(value) if value else None
        except yaml.YAMLError as error:
            problems.append(f"{key}: {value!r} is not YAML: {str(error).splitlines()[0]}")
    return given, problems


def _put(values: dict[str, Any], key: str, value: Any) -> list[str]:
    *sections, last = key.split(".")
    place = values
    for section in sections:
        inner = place.get(section)
        if section == "regularizers" and isinstance(inner, (str, list)):
            inner = dict.fromkeys([inner] if isinstance(inner, str) else inner)
        if isinstance(inner, str):  # a shorthand is opened: `strategy: lora`, `base: ./folder`
            inner = {"name" if section in ("strategy", "task") else "source": inner}
        elif inner is not None and not isinstance(inner, dict):
            return [f"{key}: {section} is {inner!r}, which has no parts"]
        place[section] = dict(inner or {})
        place = place[section]
    place[last] = value
    return []


def _drop(values: dict[str, Any], key: str) -> None:
    *sections, last = key.split(".")
    place: Any = values
    for section in sections:
        place = place.get(section)
        if not isinstance(place, dict):
            return
    place.pop(last, None)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of nested mappings, leaves only."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
