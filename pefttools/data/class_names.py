"""Convert class numbers to names with the metadata that the `datasets` library stores in a table, also in lists and
structs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pefttools.errors import UserError

Namer = Callable[[Any], Any]
KEY = b"huggingface"


def of_metadata(metadata: Mapping[bytes, bytes] | None, source: str) -> dict[str, Namer]:
    """Column -> function that converts its class numbers to names, from an Arrow schema's metadata. Raises UserError if
    the metadata is damaged."""
    text = (metadata or {}).get(KEY)
    if text is None:
        return {}
    try:
        features = (json.loads(text).get("info") or {}).get("features") or {}
        return of_features(features)
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise UserError(
            f"{source}: the metadata that names its classes cannot be read ({error}); write the file again"
        ) from error


def of_features(features: Mapping[str, Any]) -> dict[str, Namer]:
    """The functions of `of_metadata`, from features as JSON (`Features.to_dict()`)."""
    found = {column: _namer(feature, column) for column, feature in features.items()}
    return {column: namer for column, namer in found.items() if namer is not None}


def _namer(feature: Any, column: str) -> Namer | None:
    """The function that converts a column's class numbers to names; None if it has no class numbers."""
    if isinstance(feature, list):
        feature = {"_type": "List", "feature": feature[0]}
    kind = feature.get("_type")
    if kind == "ClassLabel":
        names = [str(name) for name in feature.get("names") or ()]
        return (lambda value: _name(value, names, column)) if names else None
    if kind is None or isinstance(kind, dict):  # a struct; a field of it may be called `_type`
        return _struct({name: inner for name, one in feature.items() if (inner := _namer(one, column))})
    inner = _namer(feature["feature"], column) if kind in ("Sequence", "List", "LargeList") else None
    return partial(_of_any, inner) if inner else None


def _struct(fields: dict[str, Namer]) -> Namer | None:
    return partial(_of_struct, fields) if fields else None


def _of_struct(fields: dict[str, Namer], value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return value | {name: _of_any(namer, value[name]) for name, namer in fields.items() if name in value}


def _of_any(namer: Namer, value: Any) -> Any:
    """Convert a value, or each item of a list; a sequence of structs may be stored as a struct of lists."""
    return [namer(item) for item in value] if isinstance(value, list) else namer(value)


def _name(value: Any, names: list[str], column: str) -> Any:
    if isinstance(value, list):
        return [_name(item, names, column) for item in value]
    if isinstance(value, str):
        return value
    if value is None or value != value or value < 0:  # NaN differs from itself; hidden test labels are -1
        return None
    if value >= len(names):
        raise UserError(
            f"the column {column!r} contains the class {value}, but its metadata names {len(names)} classes"
        )
    return names[int(value)]
