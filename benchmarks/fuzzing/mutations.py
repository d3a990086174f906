"""Mutations of bytes, of values as in JSON and YAML, and of texts on a command line; all are drawn from a `Random`."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

BYTES: Sequence[bytes] = (
    b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc3(", b'"', b"'", b'""', b"\\", b"\\u",
    b"\\ud800", b"\n", b"\r", b"\r\n", b"\n\n", b"\x0b", b"\x1a", b"\xe2\x80\xa8", b",", b";", b"\t", b"|", b"{",
    b"}", b"[", b"]", b":", b"[" * 3000, b'{"a":' * 3000, b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"-1",
    b"0", b"null", b"true", b"None", b"#", b"&a", b"*a", b"<<: ", b"!!python/object/apply:os.system", b"---\n",
    b"...", b"%", b"- ", b"{{", b"{% x %}", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\0" * 64, b"\xd9\x85\xd8\xb1", b"\xf0\x9f\x98\x80", b"a" * 70000,
)  # fmt: skip
"""Pieces that readers of one format or another treat specially."""
VALUES: Sequence[Any] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 1.5, -0.0, 1e308, float("nan"), float("inf"), "",
    " ", "a", "\0", "\ud800", "no", "1", "007", "a\nb", "é" * 50, "=", "~", [], {}, [[]], [None], [{}], ["a"],
    [1, "a"], {"": None}, {"a": {"a": []}}, {"name": "lora"}, {"name": None}, {"source": []}, ["a", ["b"]],
    {"1": "a"},
)  # fmt: skip
MOST = 4
"""Number of mutations of one input at most."""


def mutated_bytes(data: bytes, draw: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """The bytes with one to `MOST` mutations.

    Args:
        others: inputs of the same format, from which parts may be copied.
    """
    for _ in range(draw.randint(1, MOST)):
        mutate = draw.choice(_OF_BYTES)
        data = _copy(data, draw, [data, *others]) if mutate is None else mutate(data, draw)
    return data


def _flip(data: bytes, draw: random.Random) -> bytes:
    if not data:
        return data
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]


def _overwrite(data: bytes, draw: random.Random) -> bytes:
    at, piece = draw.randint(0, len(data)), draw.choice(BYTES)
    return data[:at] + piece + data[at + len(piece) :]


def _insert(data: bytes, draw: random.Random) -> bytes:
    at = draw.randint(0, len(data))
    return data[:at] + draw.choice((draw.choice(BYTES), draw.randbytes(draw.randint(1, 16)))) + data[at:]


def _noise(data: bytes, draw: random.Random) -> bytes:
    at = draw.randint(0, len(data))
    piece = draw.randbytes(draw.randint(1, 64))
    return data[:at] + piece + data[at + len(piece) :]


def _cut(data: bytes, draw: random.Random) -> bytes:
    start, end = sorted((draw.randint(0, len(data)), draw.randint(0, len(data))))
    return data[:start] + data[min(end, start + draw.choice((1, 4, 64, len(data)))) :]


def _truncate(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randint(0, len(data))]


def _copy(data: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    other = draw.choice(others)
    start, at = draw.randint(0, len(other)), draw.randint(0, len(data))
    return data[:at] + other[start : start + draw.randint(1, 200)] + data[at:]


def _number(data: bytes, draw: random.Random) -> bytes:
    """Change a digit, which in text formats is more often valid than a changed bit."""
    places = [i for i, byte in enumerate(data[:20_000]) if 48 <= byte <= 57]
    if not places:
        return _flip(data, draw)
    at = draw.choice(places)
    return data[:at] + draw.choice((b"-", b"", b"9", b"99999999999", b"0", b"a", b".", b"1e9")) + data[at + 1 :]


_OF_BYTES: Sequence[Callable[[bytes, random.Random], bytes] | None] = (
    _flip, _flip, _overwrite, _insert, _noise, _cut, _truncate, _number, None,
)  # fmt: skip
"""The mutations of bytes; None stands for `_copy`, which takes other inputs."""


def mutated_value(value: Any, draw: random.Random) -> Any:
    """A value of dicts and lists with one to `MOST` of its parts replaced, removed, renamed or repeated."""
    value = copy.deepcopy(value)
    for _ in range(draw.randint(1, MOST)):
        places = list(_places(value))
        if not places:
            return draw.choice(VALUES)
        parent, key = draw.choice(places)
        match draw.randrange(6):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[draw.choice(("", "name", "source", f"{key}s", "0", str(key).upper()))] = parent.pop(key)
            case 1:
                parent.insert(key, copy.deepcopy(parent[key]))
            case 2:
                parent[key] = copy.deepcopy(_at(draw.choice(places)))
            case 3:
                parent[key] = draw.choice(([parent[key]], {"a": parent[key]}, str(parent[key])))
            case _:
                parent[key] = copy.deepcopy(draw.choice(VALUES))
    return value


def _places(value: Any) -> Any:
    """The containers and keys of all parts of a value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _at(place: tuple[Any, Any]) -> Any:
    return place[0][place[1]]


def mutated_json(text: str, draw: random.Random) -> str:
    """A JSON document, or JSON lines, with mutated values; one line of the latter is mutated."""
    lines = text.splitlines()
    if len(lines) > 1 and all(line.startswith("{") and line.endswith("}") for line in lines):
        at = draw.randrange(len(lines))
        return "\n".join([*lines[:at], json.dumps(mutated_value(json.loads(lines[at]), draw)), *lines[at + 1 :]]) + "\n"
    return json.dumps(mutated_value(json.loads(text), draw))
