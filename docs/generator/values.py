"""Types, ranges and defaults of settings in words, read from pydantic's fields."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from generator.markdown import code, listed
from pefttools.settings import Choice, Settings

PLAIN: Mapping[Any, str] = {
    int: "a whole number", float: "a number", str: "a text", Any: "any value",
}  # fmt: skip
BOUNDS: Mapping[str, str] = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
UNIONS = (Union, types.UnionType)


def allowed(field: FieldInfo) -> str:
    """What a setting may be: its type or its choices, and its range."""
    return listed(_alternatives(field.annotation, field.metadata), "or")


def default(field: FieldInfo) -> str:
    """A setting's default as YAML, or that it has none."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Choice):
        return code(value.name)
    if isinstance(value, Settings):
        value = value.model_dump(mode="json")
    return code(as_yaml(value))


def as_yaml(value: Any) -> str:
    """A value as a recipe has it, on one line."""
    plain = list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10**9)
    return text.removesuffix("\n").removesuffix("...").strip()


def type_words(annotation: Any) -> str:
    """A type in words: `a number or null`, `a list of texts` …"""
    return listed(_alternatives(annotation), "or")


def _alternatives(annotation: Any, metadata: Sequence[Any] = ()) -> list[str]:
    """The values, or kinds of values, that a type allows; null comes last, and limits do not apply to it."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _alternatives(inner, [*metadata, *more])
    if get_origin(annotation) in UNIONS:
        members = sorted(get_args(annotation), key=lambda one: one is types.NoneType)
        return [words for member in members for words in _alternatives(member, metadata)]
    if get_origin(annotation) is Literal:
        return [code(as_yaml(value)) for value in get_args(annotation)]
    if annotation is bool:
        return ["`true`", "`false`"]
    if annotation is types.NoneType:
        return ["`null`"]
    return [" ".join([_kind_words(annotation), *_bounds(metadata)])]


def _kind_words(annotation: Any) -> str:
    """The words for one kind of value."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        if issubclass(annotation, Choice):
            return "a name, or a mapping with `name`"
        return f"a mapping with [these keys](#{target(annotation)})"
    return _container(annotation) or PLAIN.get(annotation) or code(getattr(annotation, "__name__", annotation))


def target(cls: type[Settings]) -> str:
    """The name by which pages link to the table of a class's settings."""
    return f"keys-of-{cls.__name__.lower()}"


def _container(annotation: Any) -> str | None:
    """The words for a list or a mapping; None for other types."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if not isinstance(origin, type):
        return None
    if issubclass(origin, tuple) and inner[-1:] != (Ellipsis,):
        return f"a list of {len(inner)}: {listed(map(type_words, inner), 'and')}"
    if issubclass(origin, Mapping):
        return f"a mapping of {_plural(inner[0])} to {_plural(inner[1])}"
    if issubclass(origin, Sequence):
        return f"a list of {_plural(inner[0])}"
    return None


def _plural(annotation: Any) -> str:
    words = type_words(annotation)
    simple = {"a text": "texts", "a number": "numbers", "a whole number": "whole numbers", "any value": "any values"}
    return simple.get(words, words)


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    """The limits of a value, from pydantic's metadata."""
    limits = [
        f"{sign} {limit}"
        for one in metadata
        for name, sign in BOUNDS.items()
        if (limit := getattr(one, name, None)) is not None
    ]
    if limits:
        yield listed(limits, "and")
    for one in metadata:
        if (least := getattr(one, "min_length", None)) is not None:
            yield f"(at least {least})"
        if pattern := getattr(one, "pattern", None):
            yield f"of the form {code(pattern)}"


def nested(annotation: Any) -> list[type[Settings]]:
    """The classes of settings inside a type, without choices, which have pages of their own."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation] if issubclass(annotation, Settings) and not issubclass(annotation, Choice) else []
    return [found for inner in get_args(annotation) for found in nested(inner)]


def choices_within(annotation: Any) -> list[type[Choice]]:
    """The base classes of choices inside a type."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation] if issubclass(annotation, Choice) else []
    return [found for inner in get_args(annotation) for found in choices_within(inner)]
