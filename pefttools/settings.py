"""The frozen pydantic base class of all sections of a recipe.

Unknown keys are refused, the docstrings under the fields are their help texts, and `check` reports all problems at
once, each with its dotted path and the most similar known name.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pefttools.errors import nearest, shown
from pefttools.synonyms import unknown_key

S = TypeVar("S", bound="Settings")

NOT_IN_DIGEST: Any = {"digest": False}
"""Marks a setting that only affects what is saved or shown, not what is learnt, or that the training rows determine."""

DEFAULT_NOT_IN_DIGEST: Any = {"digest": "unless default"}
"""Marks a setting that was added later: its default is the earlier behaviour and must not change digests of old runs.
"""


YAML_HINT = " (YAML reads a bare yes/no/on/off as true/false: put quotes around a word)"
"""End of a message about a truth value where another one is due."""


class Settings(BaseModel):
    """Frozen settings that refuse unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        coerce_numbers_to_str=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    only_with: ClassVar[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {}
    """Setting -> the condition under which it has an effect, in words and as a predicate of the settings."""

    def ignored(self) -> dict[str, str]:
        """Settings that differ from their default but have no effect -> the condition under which they would."""
        fields = type(self).model_fields
        return {
            name: words
            for name, (words, holds) in self.only_with.items()
            if getattr(self, name) != fields[name].get_default(call_default_factory=True) and not holds(self)
        }

    @field_validator("*", mode="before")
    @classmethod
    def _bool_is_not_a_number(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) and bool not in _members(cls.model_fields[info.field_name].annotation):
            raise ValueError(f"{str(value).lower()} is not allowed here{YAML_HINT}")
        return value

    @classmethod
    def shorthand(cls, value: Any) -> Any:
        """The mapping that a shorthand value stands for; sections override this to accept a plain string."""
        return value

    def with_values(self, **values: Any) -> Self:
        """A validated copy with some values replaced."""
        return type(self).model_validate({**dict(self), **values})


class Choice(Settings):
    """Settings and behaviour of one named choice, without mutable state."""

    name: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__module__.rpartition(".")[2]

    @property
    def needed_modules(self) -> Mapping[str, str]:
        """Modules that the core does not install (see `extras`) -> the setting that needs them, as `init=loftq`; empty
        where the choice itself does."""
        return {}

    def as_dict(self) -> dict[str, Any]:
        """The settings as in a recipe, with the name first."""
        return {"name": self.name, **self.model_dump(mode="json")}


def check(cls: type[S], value: Any, path: str) -> tuple[S | None, list[str]]:
    """Validate `value` as `cls`; returns the settings and no problems, or None and one message for each problem."""
    value = cls.shorthand(value)
    if not isinstance(value, Mapping):
        return None, [
            f"{path}: must be a mapping of settings, got {shown(value)}. Known: {', '.join(cls.model_fields)}"
        ]
    try:
        return cls.model_validate(dict(value)), []
    except ValidationError as error:
        return None, list(dict.fromkeys(_sentence(cls, details, path) for details in error.errors()))


def explain_field(field: FieldInfo) -> str:
    """The help text of one setting: the docstring under it, on one line."""
    return " ".join((field.description or "").split())


def _sentence(cls: type[Settings], details: ErrorDetails, prefix: str) -> str:
    keys = [str(part) for part in details["loc"]]
    owner, known = cls, list(cls.model_fields)
    for key in keys[:-1]:  # nested settings: the keys known there
        field = owner.model_fields.get(key)
        inner = (
            [m for m in _members(field.annotation) if isinstance(m, type) and issubclass(m, Settings)] if field else []
        )
        if not inner:
            break
        owner, known = inner[0], list(inner[0].model_fields)
    path = ".".join([p for p in [prefix] if p] + [k for k in keys if k.isidentifier() or k.isdigit()])
    value, kind = details["input"], details["type"]
    if kind == "extra_forbidden":
        return f"{path}: {unknown_key(keys[-1], known)}"
    if kind == "missing":
        return f"{path}: is required"
    if kind == "literal_error":
        expected = details.get("ctx", {})["expected"]
        allowed = [word.strip("' ") for word in expected.replace(" or ", ", ").split(",")]
        match = nearest(str(value), allowed)
        hint = f"; did you mean {match!r}?" if match else "."
        return f"{path}: {shown(value)} is not allowed{hint} Allowed: {', '.join(allowed)}"
    if kind == "too_short" and not value:
        return f"{path}: is empty"
    message = details["msg"].removeprefix("Value error, ")
    return f"{path}: {message[0].lower()}{message[1:]}, got {shown(value)}"


def _members(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [m for a in get_args(annotation) for m in _members(a)]
    if get_origin(annotation) is Literal:
        return [type(a) for a in get_args(annotation)]
    return [annotation, get_origin(annotation)]
