"""Lists and mappings that a program wrote into one text: JSON, or the way Python, numpy and pandas print them."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections import Counter
from collections.abc import Sequence
from typing import Any

ZERO_OR_ONE = frozenset({"0", "1", "0.0", "1.0", "0.", "1.", "True", "False", "true", "false"})
"""Numbers of a vector as text."""
VECTOR = re.compile(r"[01](?:\.0*)?(?:\s*[\s,;|]\s*[01](?:\.0*)?){2,}")
"""Three numbers 0 or 1 or more: no class, but a number for every class."""
BARE = re.compile(r"\[[^\[\]]*\]")
"""A list whose words have no quotes, as some programs print it."""
ARRAY = re.compile(r"\barray\(\s*(\[.*?\])\s*(?:,\s*dtype=[\w.<>'\"]+)?\s*\)", re.DOTALL)


def parsed(text: str) -> Any:
    """The list or mapping that a text is; None where it is just a text.

    Raises:
        ValueError: it begins and ends like one, with quotes or commas in it, and cannot be read.
    """
    text = ARRAY.sub(r"\1", text.strip())
    if (text[:1], text[-1:]) not in (("[", "]"), ("{", "}"), ("(", ")")):
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    if re.search(r"""['"]\s+\.\.\.\s+['"]|\d\s+\.\.\.\s+\d""", text):
        raise ValueError(f"holds a list that was shortened when it was printed: {text[:80]}")
    if (items := _printed_by_numpy(text)) is not None:
        return items
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        if re.match(r"""[\[({]\s*['"]""", text) and re.search(r"""['"]\s*[\])}]$""", text):
            raise ValueError(f"holds a text that looks like a list but cannot be read as one: {text[:80]}") from None
        return None
    return sorted(value) if isinstance(value, set) else list(value) if isinstance(value, tuple) else value


def is_list(text: Any) -> bool:
    """Whether a value is a text that a list was written into: of words, or of several numbers."""
    if not isinstance(text, str):
        return False
    if VECTOR.fullmatch(text.strip()) or (BARE.fullmatch(text.strip()) and "," in text):
        return True
    try:
        value = parsed(text)
    except ValueError:
        return True
    if not isinstance(value, list):
        return False
    return len(value) > 1 or bool(value and isinstance(value[0], (str, list))) or text.strip() == "[]"


def is_mapping(text: Any) -> bool:
    """Whether a value is a text that a mapping was written into."""
    try:
        return isinstance(text, str) and isinstance(parsed(text), dict)
    except ValueError:
        return False


def is_vector(items: Sequence[Any]) -> bool:
    """Whether a row's labels are a 0 or 1 for every class: one of the two stands there twice."""
    found = [str(item) for item in items]
    return bool(found) and set(found) <= ZERO_OR_ONE and len(set(found)) < len(found)


def is_one(value: Any) -> bool:
    """Whether a number of a vector stands for yes."""
    return str(value).lower() in ("1", "1.0", "1.", "true")


def joint(names: Sequence[str], alone: bool) -> list[str]:
    """The names that look like several: parts of them are names too, or parts of other names.

    Args:
        alone: whether no row has several names although rows may: then one part that is known, and a space, will do.
    """
    divided = {name: [p for p in re.split(r"[|;,/\s]+" if alone else "[|;,]", name.strip()) if p] for name in names}
    divided = {name: [part.strip() for part in found] for name, found in divided.items()}
    known = Counter(part for found in divided.values() for part in set(found))
    enough = any if alone else all
    return [
        name for name, found in divided.items() if len(found) > 1 and enough(known[part] > 1 for part in set(found))
    ]


def _printed_by_numpy(text: str) -> list[Any] | None:
    """The items of `['a' 'b']` or `[0 1]`, which no commas part; None where it is written otherwise."""
    if not text.startswith("["):
        return None
    if re.fullmatch(r"\[\s*-?[\d.]+(?:\s+-?[\d.]+)+\s*\]", text):
        return [json.loads(number.rstrip(".")) for number in text[1:-1].split()]
    try:
        tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.string.strip()]
    except (tokenize.TokenError, SyntaxError, IndentationError):
        return None
    strings = [t.string for t in tokens if t.type == tokenize.STRING]
    if len(strings) < 2 or len(strings) != len(tokens) - 2:
        return None
    return [ast.literal_eval(string) for string in strings]
