"""The axes of a suite: turns the entries in its file into recipe overrides by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pefttools.errors import shown, unknown

Overrides = dict[str, Any]
"""Dotted recipe keys with their values."""
AXES = ("tasks", "bases", "sizes", "strategies", "penalties", "objectives", "augmentations")
"""The axes, those of a problem first."""
PROBLEM = AXES[:3]
TASKS, STRATEGIES = AXES[0], AXES[3]
NONE = "none"
"""The entry without a penalty, an objective or an augmentation."""
ALL = "all"
"""The size that uses all training rows."""


def read(axis: str, entries: Any) -> dict[str, Overrides]:
    """Name -> overrides, for the entries of an axis. Raises ValueError for invalid entries."""
    if isinstance(entries, (str, int)):
        entries = [entries]
    if isinstance(entries, (list, tuple)):
        if len({str(entry) for entry in entries}) < len(entries):
            raise ValueError(f"`{axis}` lists an entry twice; remove one, or use a mapping with different names")
        entries = {str(entry): None for entry in entries}
    if not isinstance(entries, Mapping):
        raise ValueError(f"`{axis}` must be a list of names, or names with settings; got {shown(entries)}")
    made = {}
    for name, settings in entries.items():
        if not isinstance(settings, (Mapping, str, type(None))):
            raise ValueError(f"`{axis}`: the value of {name} must be a mapping of settings, got {shown(settings)}")
        made[str(name)] = _READ[axis](str(name), settings)
    return made


def _strategy(name: str, settings: Any) -> Overrides:
    if isinstance(settings, str):
        return {"strategy": settings}
    return {"strategy": {"name": name, **dict(settings)} if settings else name}


def _base(name: str, settings: Any) -> Overrides:
    return {"base": settings or name}


def _task(name: str, settings: Any) -> Overrides:
    values: dict[str, Any] = {"recipe": settings} if isinstance(settings, str) else dict(settings or {})
    if strange := values.keys() - {"recipe", "set"}:
        raise ValueError(f"`tasks`: {name}: {unknown('key', min(strange), ('recipe', 'set'))}")
    more: dict[str, Any] = dict(values.get("set") or {})
    return {"recipe": values.get("recipe", name), **more}


def _several(section: str) -> Callable[[str, Any], Overrides]:
    """The entries of a section in which a recipe names any number of choices."""

    def read(name: str, settings: Any) -> Overrides:
        if name == NONE:
            return {section: {}}
        if isinstance(settings, str):
            return {section: [settings]}
        many = settings and all(isinstance(value, (Mapping, type(None))) for value in settings.values())
        return {section: dict(settings) if many else {name: dict(settings or {})}}

    return read


def _size(name: str, settings: Any) -> Overrides:
    if settings:
        raise ValueError(f"`sizes`: {name} has no settings; remove them")
    if name != ALL and not (name.isdigit() and int(name) > 0):
        raise ValueError(f"`sizes` must be numbers of training rows, or {ALL!r}; got {name!r}")
    return {"data.train_rows": None if name == ALL else int(name)}


_READ = {
    "tasks": _task, "bases": _base, "sizes": _size, "strategies": _strategy, "penalties": _several("regularizers"),
    "objectives": _several("objectives"), "augmentations": _several("augmentations"),
}  # fmt: skip
