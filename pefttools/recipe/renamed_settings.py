"""Settings that were renamed: the old key still works, with a note that names the new one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OF_TASK = {"too_long": "truncation", "broken": "invalid_tags", "normalise": "normalize"}
OF_FILE = {"beside": "parallel_files"}
RENAMED: Mapping[str, str] = {
    **{f"task.{old}": f"task.{new}" for old, new in OF_TASK.items()},
    **{f"data.{name}.{o}": f"data.{name}.{n}" for name in ("train", "validation", "test") for o, n in OF_FILE.items()},
}
"""Old dotted key -> the new one."""


def in_file(values: dict[str, Any], is_run: bool) -> tuple[dict[str, Any], list[str], list[str]]:
    """A recipe file's values under their new keys, notes, and problems: settings under both keys.

    Args:
        is_run: whether a run wrote the file; then there are no notes, because nobody has to change it.
    """
    notes, problems = [], []
    for old, new in RENAMED.items():
        *sections, key = old.split(".")
        section: Any = values
        for name in sections:
            section = section.get(name) if isinstance(section, Mapping) else None
        if not isinstance(section, Mapping) or key not in section:
            continue
        if (name := new.rpartition(".")[2]) in section:
            problems.append(_both(old, new))
        else:
            renamed = {name if one == key else one: value for one, value in section.items()}
            values = _with(values, sections, renamed)
            notes.append(_note(old, new))
    return values, [] if is_run else notes, problems


def in_overrides(texts: Mapping[str, str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Overrides under their new keys, notes, and problems: settings under both keys."""
    found, notes, problems = {}, [], []
    for key, text in texts.items():
        old = next((old for old in RENAMED if key == old or key.startswith(f"{old}.")), None)
        if old is None:
            found[key] = text
            continue
        new = RENAMED[old] + key[len(old) :]
        if new in texts:
            problems.append(_both(old, RENAMED[old]))
        found[new] = text
        notes.append(_note(old, RENAMED[old]))
    return found, list(dict.fromkeys(notes)), problems


def task_as_before(task: Mapping[str, Any]) -> dict[str, Any]:
    """The section with the old names of its settings, so that digests do not change."""
    old = {new: old for old, new in OF_TASK.items()}
    return {old.get(name, name): value for name, value in task.items()}


def _with(values: Mapping[str, Any], sections: list[str], value: Any) -> dict[str, Any]:
    """A copy with another value at the path of the sections."""
    if not sections:
        return value
    return {**values, sections[0]: _with(values[sections[0]], sections[1:], value)}


def _note(old: str, new: str) -> str:
    return f"{old} is now {new}; the old key still works"


def _both(old: str, new: str) -> str:
    return f"{old}: is the old key of {new}, and both are set; remove {old}"
