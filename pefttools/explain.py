"""A resolved recipe as YAML lines, each with where its value came from and what it means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from pefttools.recipe import Resolved
from pefttools.settings import Settings, explain_field


def lines(resolved: Resolved, explain: bool) -> list[tuple[str, str, str]]:
    """`(YAML, origin, help)` a line; origin and help are empty on lines that only open a section."""
    recipe = resolved.recipe
    made = list(_lines(recipe.as_dict(), recipe, "", 0, resolved.origins))
    return [(text, origin, note if explain else "") for text, origin, note in made] + [
        (f"# digest {recipe.digest}", "", "")
    ]


def _lines(
    values: Mapping[str, Any], owner: Any, prefix: str, depth: int, origins: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    for key, value in values.items():
        path, indent = f"{prefix}{key}", "  " * depth
        if isinstance(value, Mapping) and value:
            yield f"{indent}{_plain(key)}:", "", ""
            yield from _lines(value, getattr(owner, key, None), f"{path}.", depth + 1, origins)
        else:
            field = type(owner).model_fields.get(key) if isinstance(owner, Settings) else None
            yield (
                f"{indent}{_plain(key)}: {_plain(value)}",
                origins.get(path, ""),
                explain_field(field) if field else "",
            )


def _plain(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9)
    return text.removesuffix("\n").removesuffix("...").strip()
