"""YAML parsed by the types of the settings: where a setting is a text, its value is exactly the text in the file.

Plain YAML reads `no` as a truth value, `007` and `1:30` as numbers, `2024-01-01` as a date and `1_000` as a thousand.
As a column, a class or a file name each must stay a text. An override of a text setting is not parsed as YAML at all:
`KEY=#1: a` is `#1: a`.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from pefttools.errors import UserError
from pefttools.settings import Settings

NULL = ("null", "Null", "NULL", "~", "")
"""YAML's notations of null."""


@dataclass(frozen=True)
class Chosen:
    """The type of a section that is one of a registry's choices, picked by its `name`."""

    find: Callable[[str], type[Settings] | None]
    """Returns the class of the settings by name, or None for an unknown name."""


@dataclass(frozen=True)
class Named:
    """The type of a section that maps names of choices to their settings."""

    find: Callable[[str], type[Settings] | None]


@dataclass(frozen=True)
class Dotted:
    """The type of a mapping whose keys are dotted keys of another type: `{data.labels.0: no}`."""

    kind: Any
    values: Mapping[str, Any]
    """Values that contain the names of choices."""


def parse(text: str, kind: Any) -> Any:
    """The value of an override. Raises yaml.YAMLError."""
    if not _takes_text(kind):
        return load(text, kind) if text else None
    if _takes_null(kind) and text in ("", "null"):
        return None
    if text.lstrip()[:1] in ("[", "{") and _takes_parts(kind):
        try:
            return load(text, kind)
        except yaml.YAMLError:
            if str not in members(kind):
                raise
    return text


def load(text: str, kind: Any) -> Any:
    """The value of a YAML document.

    Raises:
        yaml.YAMLError: the text is not YAML, is nested too deeply, or a mapping has a key twice.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _value(loader, node, kind)
    except RecursionError as error:
        raise yaml.YAMLError("its lists and mappings are nested too deeply") from error
    except ValueError as error:  # a date that does not exist, or a number of more digits than Python reads
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


def inner(kind: Any, path: Sequence[str], values: Any) -> Any:
    """The type of the value at a path; `values` contain the names of choices. `Any` where the type is unknown."""
    for key in path:
        kind = _of_key(kind, key, _name_in(values))
        values = values.get(key) if isinstance(values, Mapping) else None
    return kind


def _value(loader: yaml.SafeLoader, node: yaml.Node, kind: Any) -> Any:
    if isinstance(node, yaml.MappingNode) and _takes_parts(kind):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
            raise yaml.YAMLError(f"{twice[0]!r} is set twice in one mapping; remove one")
        loader.flatten_mapping(node)
        pairs = [(str(key.value), value) for key, value in node.value]
        name = next((value.value for key, value in pairs if key == "name"), None)
        return {key: _value(loader, value, _of_key(kind, key, name)) for key, value in pairs}
    if isinstance(node, yaml.SequenceNode) and _takes_parts(kind):
        return [_value(loader, item, _of_item(kind, i)) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode) and _takes_text(kind):
        is_null = node.style is None and node.value in NULL
        return None if is_null else node.value
    return loader.construct_object(node, deep=True)


def members(kind: Any) -> list[Any]:
    """The types of a union, without annotations."""
    if get_origin(kind) is Annotated:
        return members(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [member for one in get_args(kind) for member in members(one)]
    return [kind]


def _takes_null(kind: Any) -> bool:
    return bool({None, type(None)} & {*map(_hashable, members(kind))}) or isinstance(kind, (Chosen, Named))


def _hashable(kind: Any) -> Any:
    return kind if isinstance(kind, type) or kind is None else repr(kind)


def _takes_text(kind: Any) -> bool:
    """Whether a scalar of this type is always a text or null, which includes shorthands for sections and lists."""
    found = [member for member in members(kind) if member not in (None, type(None))]
    return bool(found) and all(_is_text(member) for member in found)


def _is_text(kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return all(isinstance(value, str) for value in get_args(kind))
    if get_origin(kind) in (tuple, list, Sequence):
        return all(_takes_text(item) for item in get_args(kind) if item is not Ellipsis)
    is_section = isinstance(kind, type) and issubclass(kind, Settings)
    return kind is str or is_section or isinstance(kind, (Chosen, Named))


def _takes_parts(kind: Any) -> bool:
    """Whether a value of this type can be a mapping or a list."""
    return any(
        isinstance(member, (Chosen, Named, Dotted, Mapping))
        or get_origin(member) in (tuple, list, dict, Mapping, Sequence)
        or (isinstance(member, type) and issubclass(member, Settings))
        for member in members(kind)
    )


def _of_key(kind: Any, key: str, name: Any) -> Any:
    """The type under a key of a mapping.

    Args:
        name: the mapping's value under `name`, which selects a choice.
    """
    for member in members(kind):
        if isinstance(member, Chosen):
            cls = member.find(name) if isinstance(name, str) else None
            return str if key == "name" else _of_key(cls, key, None)
        if isinstance(member, Named):
            return member.find(key) or Any
        if isinstance(member, Dotted):
            return inner(member.kind, key.split("."), member.values)
        if isinstance(member, Mapping):
            return member.get(key, Any)
        if isinstance(member, type) and issubclass(member, Settings):
            return field.annotation if (field := member.model_fields.get(key)) else Any
        if get_origin(member) in (dict, Mapping):
            return get_args(member)[1]
    return Any


def _of_item(kind: Any, index: int) -> Any:
    """The type of an item of a list."""
    for member in members(kind):
        if get_origin(member) in (tuple, list, Sequence):
            items: Any = get_args(member)
            return items[0] if len(items) < 2 or items[1] is Ellipsis else items[min(index, len(items) - 1)]
    return str if _takes_text(kind) else Any  # several names or files, where one would be allowed


def _name_in(values: Any) -> Any:
    """The name of a section's choice, in either notation."""
    return values.get("name") if isinstance(values, Mapping) else values


def read_file(path: Path, known: Iterable[str] = (), kind: Any = Any) -> dict[str, Any]:
    """The mapping in a YAML file, parsed by this type.

    Raises:
        UserError: the file is not YAML, or not a mapping; the message lists the known keys.
    """
    try:
        values = load(path.read_text("utf-8"), kind)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a mapping of sections. Known: {', '.join(known)}")
    return values
