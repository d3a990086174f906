"""A resolved recipe as YAML lines, each with the origin and the meaning of its value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from pefttools.recipe.recipes import Resolved
from pefttools.settings import Settings, explain_field


def lines(resolved: Resolved, explain: bool) -> list[tuple[str, str, str]]:
    """`(YAML, comment, help)` for each line; together the lines are a recipe that you can save and edit.

    A setting whose default depends on the strategy stays null, with its value in the comment, so that it still depends
    on the strategy after an edit.
    """
    recipe = resolved.recipe
    values = {key: value for key, value in recipe.as_dict().items() if key != "name"}
    made = list(_lines(values, recipe, "", 0, resolved.origins))
    title = (f"# {recipe.name}, digest {recipe.digest}", "", "")
    return [title, *((text, origin, note if explain else "") for text, origin, note in made)]


def _lines(
    values: Mapping[str, Any], owner: Any, prefix: str, depth: int, origins: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    for key, value in values.items():
        path, indent = f"{prefix}{key}", "  " * depth
        if isinstance(value, Mapping) and value:
            yield f"{indent}{_plain(key)}:", "", ""
            inner = owner.get(key) if isinstance(owner, Mapping) else getattr(owner, key, None)
            yield from _lines(value, inner, f"{path}.", depth + 1, origins)
            continue
        field = type(owner).model_fields.get(key) if isinstance(owner, Settings) else None
        origin = origins.get(path, "")
        if origin.startswith("default of "):
            value, origin = None, f"{value}, {origin}"
        yield f"{indent}{_plain(key)}: {_plain(value)}", origin, explain_field(field) if field else ""


def _plain(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9)
    return text.removesuffix("\n").removesuffix("...").strip()
