"""Tables of settings: key, what it may be, default and meaning, from the fields of a class."""

from __future__ import annotations

from collections.abc import Collection

from generator import values
from generator.markdown import code, escaped, table
from pefttools.settings import NOT_IN_DIGEST, Settings, explain_field

HEADER = ("key", "may be", "default", "meaning")
KEEPS_RESULT = "Does not change the trained model."


def settings_table(cls: type[Settings], prefix: str = "", without: Collection[str] = ()) -> str:
    """The table of a class's settings; "" if it has none.

    Args:
        prefix: what stands before each key in a recipe, with its dot.
        without: settings that are described somewhere else.
    """
    return table(HEADER, (_row(cls, name, prefix) for name in cls.model_fields if name not in without))


def _row(cls: type[Settings], name: str, prefix: str) -> list[str]:
    field = cls.model_fields[name]
    meaning = [escaped(explain_field(field))]
    if name in cls.only_with:
        meaning.append(f"Has an effect only with {escaped(cls.only_with[name][0])}.")
    if field.json_schema_extra == NOT_IN_DIGEST:
        meaning.append(KEEPS_RESULT)
    return [code(f"{prefix}{name}"), values.allowed(field), values.default(field), " ".join(meaning)]
