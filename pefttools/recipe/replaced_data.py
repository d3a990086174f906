"""The values of a recipe that still apply when an override names another training file.

The values that a shipped recipe sets for its own rows (how many to take, which columns, the words of a prompt, its
description) do not fit your rows and are dropped. They are also dropped from a copy of the recipe and from a run's
recipe, if they are unchanged there. The values that you wrote for a file of your own still apply to another file: its
columns, labels, bins, shares and the way it is read. The values that a run found in its rows (the classes) are found
again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from pefttools.data.settings import DataSettings, FileSettings
from pefttools.errors import UserError
from pefttools.recipe.overrides import GONE, Overlaid, get, short
from pefttools.settings import NOT_IN_DIGEST
from pefttools.tasks import tasks
from pefttools.tasks.base import Task

NAMES = ("train", "validation", "test")
READING = ("format", "header", "quotes", "separator", "escape", "pattern", "encoding", "decode_errors")
"""Settings of how a file is read, which also apply to another file with the same extension."""
ABOUT_ROWS = ("name", "description")


@dataclass(frozen=True)
class Replaced:
    """The keys that are dropped and those that stay when another file is named."""

    drops: Sequence[str] = ()
    """Dotted keys that no longer apply."""
    still_valid: Sequence[str] = ()
    """Dotted keys that still apply although the file is another."""


def replaced(
    values: Mapping[str, Any], texts: Mapping[str, str], shipped: Sequence[Mapping[str, Any]], is_run: bool
) -> Replaced:
    """The keys of a recipe's file that no longer apply, and those that still apply, under these overrides.

    Args:
        texts: the overrides, dotted key -> what was written.
        shipped: the shipped recipes whose own training rows are those that are replaced.
        is_run: whether a run wrote the file, which then contains values found in the rows.
    """
    drops = list(_fitted(values)) if is_run and any(key.startswith(("data", "task")) for key in texts) else []
    if not names_other_rows(values, texts):
        return Replaced(drops, _reading_keys(values, texts))
    if not shipped:
        return Replaced(drops, _reading_keys(values, texts))
    own = [key for key in _of_the_rows(values) if any(_same(values, one, key) for one in shipped)]
    file = get(values, "data.train")
    reading = [f"data.train.{key}" for key in file if key != "source"] if isinstance(file, Mapping) else []
    return Replaced([*drops, *own, *reading])


def names_other_rows(values: Mapping[str, Any], texts: Mapping[str, str]) -> bool:
    """Whether an override names another training file than the recipe's own."""
    old = source(values)
    given = [texts[key] for key in ("data.train", "data.train.source") if key in texts]
    return "data" in texts or any(text != old for text in given)


def source(values: Mapping[str, Any]) -> Any:
    """The source of a recipe's training rows."""
    file = get(values, "data.train")
    return get(file, "source") if isinstance(file, Mapping) else file


def name_of(file: Any) -> str:
    """A file, or the first of several, as part of a recipe's name."""
    file = str(file[0] if isinstance(file, (list, tuple)) and file else file)
    stem = PurePath(file.partition("@")[0].rstrip("/").rpartition(":")[2]).name.partition(".")[0]
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in stem).strip("-") or "data"


def choice(values: Mapping[str, Any], section: str) -> str:
    """The name of a recipe's `strategy`, or the source of its `base`, in either notation."""
    found = get(values, section)
    if isinstance(found, Mapping):
        found = found.get("name" if section == "strategy" else "source", "")
    return str(found)


def renamed(laid: Overlaid, before: Mapping[str, str]) -> Overlaid:
    """Give a shipped recipe a name of its own, and no description, if overrides change its strategy or base.

    Args:
        before: `strategy` and `base` in its file.
    """
    name, dropped = str(laid.values["name"]), dict(laid.dropped)
    for section, old in before.items():
        new = choice(laid.values, section)
        if new == old:
            continue
        word, its = (name_of(new), name_of(old)) if section == "base" else (new, old)
        name = name[: -len(its)] + word if name.endswith(f"-{its}") else f"{name}-{word}"
        if "description" not in laid.named and (text := laid.values.pop("description", "")):
            dropped["description"] = text
    from_file = laid.from_file - ({"name"} if name != laid.values["name"] else set()) - ({*dropped} & {"description"})
    laid.values["name"] = name
    return replace(laid, from_file=from_file, dropped=dropped)


def staying(data: DataSettings, laid: Overlaid) -> list[str]:
    """One sentence on the values that also apply to the new file; empty if there are none."""
    if not laid.named & {"data.train", "data.train.source"}:
        return []
    top = sorted({key.split(".")[1] for key in laid.from_file if key.startswith("data.")} - {"train"})
    fields = DataSettings.model_fields
    values = {
        k: v for k, v in data.model_dump(mode="json").items() if k in top and k in fields and v != fields[k].default
    }
    if not values:
        return []
    settings = ", ".join(f"data.{k}={short(v['source'] if k in NAMES else v)}" for k, v in values.items())
    return [f"data.train is not the recipe's own file; these settings still apply: {settings}"]


def _of_the_rows(values: Mapping[str, Any]) -> list[str]:
    """The keys of a recipe that concern its rows."""
    data = get(values, "data")
    cls = _task(values)
    settings = [*cls.of_data, *_learnt(cls)] if cls else []
    return [
        *ABOUT_ROWS,
        *(f"data.{key}" for key in (data if isinstance(data, Mapping) else ()) if key != "train"),
        *(f"task.{name}" for name in settings),
    ]


def _same(values: Mapping[str, Any], shipped: Mapping[str, Any], key: str) -> bool:
    """Whether a recipe has the same value under a key as a shipped one."""
    mine, its = get(values, key), get(shipped, key)
    if key.removeprefix("data.") in NAMES:
        return source({"data": {"train": mine}}) == source({"data": {"train": its}})
    return its is not GONE and _plain(mine) == _plain(its)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _task(values: Mapping[str, Any]) -> type[Task] | None:
    name = get(values, "task.name") if isinstance(get(values, "task"), Mapping) else get(values, "task")
    try:
        return tasks.get(name) if isinstance(name, str) else None
    except UserError:
        return None


def _learnt(cls: type[Task]) -> list[str]:
    return [name for name, field in cls.model_fields.items() if field.json_schema_extra == NOT_IN_DIGEST]


def _fitted(values: Mapping[str, Any]) -> list[str]:
    """The keys of a run's recipe whose values its task found in the rows."""
    cls = _task(values)
    return [f"task.{name}" for name in _learnt(cls)] if cls else []


def _reading_keys(values: Mapping[str, Any], texts: Mapping[str, str]) -> list[str]:
    """The keys of how a file is read, if an override names another file with the same extension."""
    found = []
    for name in NAMES:
        old, new = get(values, f"data.{name}"), texts.get(f"data.{name}", "")
        if not isinstance(old, Mapping) or new[:1] in ("", "{", "["):
            continue
        if _ending(new) == _ending(str(old.get("source", ""))):
            found += [f"data.{name}.{key}" for key in READING if key in old and key in FileSettings.model_fields]
    return found


def _ending(source: str) -> str:
    return PurePath(source).suffix.lower() if not source.startswith("hf:") else source
