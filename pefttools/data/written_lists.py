"""Parse lists and mappings from one text: JSON, or as Python, numpy and pandas print them."""

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
"""Spellings of the numbers of a vector."""
VECTOR = re.compile(r"[01](?:\.0*)?(?:\s*[\s,;|]\s*[01](?:\.0*)?){2,}")
"""Three or more numbers 0 or 1: a vector with a number for every class, not a class."""
BARE = re.compile(r"\[[^\[\]]*\]")
"""A list of words without quotes, as some programs print it."""
ARRAY = re.compile(r"\barray\(\s*(\[.*?\])\s*(?:,\s*dtype=[\w.<>'\"]+)?\s*\)", re.DOTALL)


def parsed(text: str) -> Any:
    """The list or mapping that a text spells; None for any other text.

    Raises:
        ValueError: the text looks like a list or mapping with quotes, but cannot be parsed.
    """
    text = ARRAY.sub(r"\1", text.strip())
    if (text[:1], text[-1:]) not in (("[", "]"), ("{", "}"), ("(", ")")):
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    if re.search(r"""['"]\s+\.\.\.\s+['"]|\d\s+\.\.\.\s+\d""", text):
        raise ValueError(f"contains a list that was abbreviated when it was printed: {text[:80]}")
    if (items := _printed_by_numpy(text)) is not None:
        return items
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        if re.match(r"""[\[({]\s*['"]""", text) and re.search(r"""['"]\s*[\])}]$""", text):
            raise ValueError(
                f"contains a text that looks like a list but cannot be parsed as one: {text[:80]}"
            ) from None
        return None
    return sorted(value) if isinstance(value, set) else list(value) if isinstance(value, tuple) else value


def is_list(text: Any) -> bool:
    """Whether a value is a text that spells a list of words, or of several numbers."""
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
    """Whether a value is a text that spells a mapping."""
    try:
        return isinstance(text, str) and isinstance(parsed(text), dict)
    except ValueError:
        return False


def is_vector(items: Sequence[Any]) -> bool:
    """Whether a row's labels are a vector of 0 and 1, recognised by a repeated number."""
    found = [str(item) for item in items]
    return bool(found) and set(found) <= ZERO_OR_ONE and len(set(found)) < len(found)


def is_one(value: Any) -> bool:
    """Whether a number of a vector is 1."""
    return str(value).lower() in ("1", "1.0", "1.", "true")


def joint(names: Sequence[str], alone: bool) -> list[str]:
    """The names that look like several names in one text: their parts are also names, or parts of other names.

    Args:
        alone: whether rows may have several names but none has; then one known part is enough, and spaces also
            separate.
    """
    divided = {name: [p for p in re.split(r"[|;,/\s]+" if alone else "[|;,]", name.strip()) if p] for name in names}
    divided = {name: [part.strip() for part in found] for name, found in divided.items()}
    known = Counter(part for found in divided.values() for part in set(found))
    enough = any if alone else all
    return [
        name for name, found in divided.items() if len(found) > 1 and enough(known[part] > 1 for part in set(found))
    ]


def _printed_by_numpy(text: str) -> list[Any] | None:
    """The items of `['a' 'b']` or `[0 1]`, lists without commas; None for other texts."""
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
