"""`KEY=VALUE` overrides applied to the values of a recipe's file: plain dicts in, plain dicts out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from pefttools.errors import shown
from pefttools.recipe import typed_yaml

_OF_A_FILE = ("sha256", "parallel_files")
RESETS: Mapping[str, tuple[str, ...]] = {
    "base.source": ("base.sha256",),
    **{
        f"data.{name}.source": tuple(f"data.{name}.{key}" for key in _OF_A_FILE)
        for name in ("train", "validation", "test")
    },
    "start.source": ("start.sha256",),
    "data.replay.run": ("data.replay.sha256",),
    "strategy": ("train.learning_rate", "train.warmup", "train.head_lr_scale"),
    "strategy.name": ("train.learning_rate", "train.warmup", "train.head_lr_scale"),
}
"""Override -> keys of the file that it resets, whatever the new value is; `replaced_data` adds more."""
CHOICES = ("strategy", "task", "optimizer")
"""Sections for which a plain text is their name; for the others it is their source."""
GONE = object()
"""Marks a missing value."""


@dataclass(frozen=True)
class Overlaid:
    """The values of a recipe file after overrides."""

    values: dict[str, Any]
    from_file: set[str]
    """Dotted keys whose values come from the file."""
    overridden: set[str]
    """Dotted keys whose values come from an override."""
    problems: list[str]
    named: frozenset[str] = frozenset()
    """The overrides' own keys."""
    dropped: dict[str, Any] = field(default_factory=dict)
    """Dotted key -> the file's value that was dropped because an override replaced what it belonged to."""

    def reset(self, final: Mapping[str, Any]) -> dict[str, Any]:
        """The dropped values that changed in the end: no override sets them again, and the final value differs."""
        found = {}
        for key, old in self.dropped.items():
            now = get(final, key)
            is_given = any(key == name or key.startswith(f"{name}.") for name in self.overridden | self.named)
            is_same = json.dumps(now, default=str) == json.dumps(old, default=str)
            if not (is_given or now is GONE or is_same or old in (None, "")):
                found[key] = old
        return found

    def notes(self, reset: Mapping[str, Any]) -> list[str]:
        """One sentence on what was reset; empty if nothing was."""
        if not reset:
            return []
        causes = [key for key in self.named if key in RESETS or key in ("data", "data.train", "base")]
        settings = ", ".join(f"{key} ({short(old)})" for key, old in reset.items())
        return [f"{' and '.join(sorted(causes))} replaced; settings of the old one were reset: {settings}"]


def overlay(
    values: dict[str, Any],
    texts: Mapping[str, str],
    kind: Any,
    drops: Sequence[str] = (),
    still_valid: Sequence[str] = (),
) -> Overlaid:
    """Apply overrides to a file's values; a section is replaced before its settings, whatever their order.

    Args:
        texts: dotted key -> the text after `=`, as `pairs` returns them.
        kind: the type of the values, see `typed_yaml`.
        drops: dotted keys of the file that no longer apply, in addition to those of `RESETS`.
        still_valid: dotted keys of the file that stay although their section is replaced by a plain text.
    """
    staying = {key: found for key in still_valid if (found := get(values, key)) is not GONE}
    dropped: dict[str, Any] = {}
    for reset in dict.fromkeys((*drops, *(name for key in texts for name in RESETS.get(key, ())))):
        if reset not in staying and (found := get(values, reset)) is not GONE:
            dropped[reset] = found
            _drop(values, reset)
    for key in texts:
        _drop(values, key)
    for key, value in staying.items():
        _put(values, key, value)
    from_file = set(flat(values))
    overridden: dict[str, Any] = {}
    problems = []
    for key in sorted(texts, key=lambda key: (key.count("."), not key.endswith(".name"))):
        try:
            value = typed_yaml.parse(texts[key], typed_yaml.inner(kind, key.split("."), values))
        except yaml.YAMLError as error:
            problems.append(f"{key}: {shown(texts[key])} is not YAML: {str(error).splitlines()[0]}")
            continue
        if isinstance(value, str) and any(name.startswith(f"{key}.") for name in staying):
            key = f"{key}.source"  # the section stays, with another source
        problems += _put(values, key, value)
        _put(overridden, key, value)
    return Overlaid(values, from_file, set(flat(overridden)), problems, frozenset(texts), dropped)


def pairs(overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """`KEY=VALUE` texts as a mapping of keys to texts, and a message for each text that is not of this form."""
    found, problems = {}, []
    for text in overrides:
        key, equals, value = text.partition("=")
        if equals and key:
            found[key] = value
        else:
            problems.append(f"{shown(text)} is not an override; write KEY=VALUE, e.g. train.epochs=3")
    return found, problems


def parsed(overrides: Sequence[str], kind: Any = Any) -> tuple[dict[str, Any], list[str]]:
    """The overrides with parsed values, of settings of this type: a class of settings, or `Any`."""
    texts, problems = pairs(overrides)
    values = {}
    for key, text in texts.items():
        try:
            values[key] = typed_yaml.parse(text, typed_yaml.inner(kind, key.split("."), {}))
        except yaml.YAMLError as error:
            problems.append(f"{key}: {shown(text)} is not YAML: {str(error).splitlines()[0]}")
    return values, problems


def _put(values: dict[str, Any], key: str, value: Any) -> list[str]:
    *sections, last = key.split(".")
    place = values
    for section in sections:
        inner = place.get(section)
        if section in ("regularizers", "objectives", "augmentations") and isinstance(inner, (str, list)):
            inner = dict.fromkeys([inner] if isinstance(inner, str) else inner)
        if isinstance(inner, list):  # of files
            inner = {"source": inner}
        if isinstance(inner, str):  # expand a shorthand: `strategy: lora`, `base: ./folder`
            inner = {"name" if section in CHOICES else "source": inner}
        elif inner is not None and not isinstance(inner, dict):
            return [f"{key}: {section} is {shown(inner)}, which has no settings of its own"]
        place[section] = dict(inner or {})
        place = place[section]
    place[last] = value
    return []


def get(values: Any, key: str) -> Any:
    """The value under a dotted key; `GONE` if there is none."""
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return GONE
        values = values[part]
    return values


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


def short(value: Any) -> str:
    """A value for a message."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else f"{text[:37]}…"
