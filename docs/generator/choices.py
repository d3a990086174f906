"""The page of one registry: every choice with what its docstring says, facts about it, and its settings."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import Any

from generator import values
from generator.markdown import code, escaped, prose, table
from generator.registries import Kind
from generator.settings_tables import settings_table
from pefttools.recipe.recipe import Recipe
from pefttools.settings import Choice, Settings

FACTS: Mapping[str, Mapping[str, str]] = {
    "strategies": {
        "default_lr": "learning rate", "lr_range": "range to search", "mergeable": "merges",
        "exact_start": "exact start", "shardable": "shared by processes",
    },
    "tasks": {
        "primary": "chooses the best checkpoint by", "auto_class": "class of transformers",
        "generates": "generates texts",
    },
    "optimizers": {"adamw_lr_ratio": "learning rate, in adamw's", "shardable": "shared by processes"},
    "exporters": {"needs_base": "needs the base", "libraries": "libraries"},
}  # fmt: skip
"""Attributes of the classes that a table compares, with the heads of their columns; the attributes' docstrings in the
base class say what they mean."""


def page(kind: Kind) -> str:
    """The page as Markdown."""
    return "\n\n".join(one.strip() for one in _parts(kind) if one.strip()) + "\n"


def _parts(kind: Kind) -> Iterator[str]:
    summaries = {name: summary(kind, name) for name in kind.registry.names()}
    yield f"# {kind.title}"
    yield prose(kind.about.partition(": ")[2].capitalize() or kind.about)
    yield _where(kind)
    yield table(
        (kind.registry.kind, "what it is"),
        ([f"[{code(name)}](#{target(kind, name)})", escaped(summary)] for name, summary in summaries.items()),
    )
    yield _facts(kind)
    if shared := settings_table(kind.base, kind.prefix("NAME")):
        yield f"## Keys that all {kind.name} have\n\n{shared}"
    for name in kind.registry.names():
        yield _section(kind, name, summaries[name])


def summary(kind: Kind, name: str) -> str:
    """The first paragraph of a choice's docstring, without its name."""
    return " ".join(_about(kind.registry.get(name)).partition("\n\n")[0].split()).removeprefix(f"{name}: ")


def _about(cls: type[Choice]) -> str:
    """The docstring of a choice's file, or of its class."""
    return inspect.getdoc(inspect.getmodule(cls)) or inspect.getdoc(cls) or ""


def as_sentence(text: str) -> str:
    """A text that begins with a capital letter if it begins with a word."""
    return text[0].upper() + text[1:] if text[:2].isascii() and text[:2].islower() else text


def _where(kind: Kind) -> str:
    """How a recipe or a command names one."""
    if not kind.path:
        return "Choose one by `pefttools export RUN --to NAME`; write its settings as `KEY=VALUE` before `--to`."
    if kind.several:
        return (
            f'A recipe names any of them in `{kind.path}`: `{kind.path}=NAME`, or `"{kind.path}=[NAME,NAME]"`, and'
            f" `{kind.keys}=VALUE` for a setting."
        )
    return f"A recipe names one in `{kind.path}`: `{kind.path}=NAME`, and `{kind.keys}=VALUE` for a setting."


def _section(kind: Kind, name: str, summary: str) -> str:
    """One choice: its docstring, rows of a user's file for a task, variants, and settings."""
    cls = kind.registry.get(name)
    about = _about(cls)
    keys = settings_table(cls, kind.prefix(name), without=kind.base.model_fields)
    parts = [
        f"({target(kind, name)})=\n## {code(name)}",
        f"**{escaped(as_sentence(summary))}**",
        prose(about.partition("\n\n")[2]),
        _rows(cls),
        *(
            [keys, *_inside(cls)]
            if keys
            else [f"It has no settings{' besides those of all' if kind.base.model_fields else ''}."]
        ),
        _variants(cls, kind.prefix(name)),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip())


def _inside(cls: type[Choice]) -> Iterator[str]:
    """Tables of the settings inside a choice's settings, if no recipe has them anywhere else."""
    for inner in {inner: None for field in cls.model_fields.values() for inner in values.nested(field.annotation)}:
        if inner not in _of_recipes():
            keys = ", ".join(
                code(name) for name, field in cls.model_fields.items() if inner in values.nested(field.annotation)
            )
            heading = f"({values.target(inner)})=\n### Keys of {keys}"
            yield "\n\n".join([heading, prose(inner.__doc__ or ""), settings_table(inner)])


@cache
def _of_recipes() -> frozenset[type[Settings]]:
    """The classes of settings that the page of a recipe's keys describes."""
    found: set[type[Settings]] = set()
    pending: list[type[Settings]] = [Recipe]
    while pending:
        inner = {one for field in pending.pop().model_fields.values() for one in values.nested(field.annotation)}
        pending += inner - found
        found |= inner
    return frozenset(found)


def target(kind: Kind, name: str) -> str:
    """The name by which pages link to a choice."""
    return f"{kind.registry.kind}-{name}".replace("_", "-")


def _rows(cls: type[Choice]) -> str:
    """The fields of a task's rows, and examples of rows; "" for other choices."""
    fields: Mapping[str, bool] = getattr(cls, "fields", {})
    if not fields:
        return ""
    needed = ", ".join(code(name) for name, required in fields.items() if required) or "none"
    optional = ", ".join(code(name) for name, required in fields.items() if not required)
    samples = "\n".join(json.dumps(dict(row), ensure_ascii=False) for row in getattr(cls, "samples", ()))
    more = f" It may have {optional}." if optional else ""
    return f"Columns that a row must have: {needed}.{more} For example:\n\n```json\n{samples}\n```"


def _variants(cls: type[Choice], prefix: str) -> str:
    """The published methods that a choice offers by its settings."""
    variants: Mapping[str, Mapping[str, Any]] = getattr(cls, "variants", {})
    rows = (
        [code(name), " ".join(code(f"{prefix}{key}={values.as_yaml(value)}") for key, value in settings.items())]
        for name, settings in variants.items()
    )
    return table(("variant", "settings"), rows)


def _facts(kind: Kind) -> str:
    """A table that compares the choices by attributes of their classes, and what the columns mean."""
    facts, meanings = FACTS.get(kind.name, {}), attribute_docstrings(kind.base)
    if not facts:
        return ""
    rows = (
        [code(name), *(_value(getattr(kind.registry.get(name), fact, None)) for fact in facts)]
        for name in kind.registry.names()
    )
    notes = [f"- *{label}*: {escaped(meanings[fact])}" for fact, label in facts.items()]
    return "\n\n".join(["## Compared", table((kind.registry.kind, *facts.values()), rows), "\n".join(notes)])


def _value(value: Any) -> str:
    """A fact about a choice in words."""
    if isinstance(value, property):
        return "by its settings"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return (
            " to ".join(f"{one:g}" for one in value) if all(isinstance(v, float) for v in value) else ", ".join(value)
        )
    return "" if value is None else f"{value:g}" if isinstance(value, float) else code(value)


def attribute_docstrings(cls: type) -> dict[str, str]:
    """Attribute -> the docstring under it, of a class and the classes that it is derived from."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__[:-1]):
        if not one.__module__.startswith("pefttools."):
            continue
        source = ast.parse(inspect.getsource(one)).body[0]
        assert isinstance(source, ast.ClassDef)
        for attribute, note in pairwise(source.body):
            match attribute, note:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=text)):
                    found[name] = " ".join(str(text).split())
    return found
