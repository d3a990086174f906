"""Split texts into words and join words to texts, with exact character offsets, for scripts with and without spaces.

Each Chinese or Japanese character (including kana, their punctuation and full-width forms) is a word. Other words are
separated by spaces; brackets, quotes and punctuation at their ends are words of their own, as is an English possessive
's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

CJK = "\u2e80-\u2fdf\u3000-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff9f\U00020000-\U0003ffff"
CHUNK = re.compile(rf"[{CJK}]|[^\s{CJK}]+")
IS_CJK = re.compile(f"[{CJK}]")
BEFORE, AFTER = "([{<\"'“‘«„¿¡", ")]}>\"'”’».,;:!?…"
POSSESSIVE = re.compile(r"(?<=\w)['’][sS]$")
ABBREVIATION = re.compile(r"\w(\.\w)+\.")


def split(text: str) -> list[str]:
    """The words of a text."""
    return [word for chunk in CHUNK.findall(text) for word in _without_punctuation(chunk) if not word.isspace()]


def _without_punctuation(chunk: str) -> Iterator[str]:
    if not any(c.isalnum() for c in chunk):
        yield chunk  # "...", ":)"
        return
    start, end = 0, len(chunk)
    while chunk[start] in BEFORE:
        start += 1
    while chunk[end - 1] in AFTER and not ABBREVIATION.fullmatch(chunk, start, end):
        end -= 1
    core = chunk[start:end]
    own = POSSESSIVE.search(core)
    yield from chunk[:start]
    yield from [core[: own.start()], own.group()] if own else [core]
    yield from chunk[end:]


def join(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The text of the words, and the start and end of each word in it.

    Words are joined by spaces, except next to a Chinese or Japanese character, and between single characters of a
    sentence with such characters (one character per line: 2 0 2 4 年).
    """
    texts, places, at = [], [], 0
    for gap, word in zip(gaps(words), words, strict=True):
        at += len(gap)
        texts += [gap, word]
        places.append((at, at + len(word)))
        at += len(word)
    return "".join(texts), places


def gaps(words: Sequence[str]) -> list[str]:
    """The separator before each word in the joined text: a space or nothing."""
    by_character = any(IS_CJK.search(word) for word in words)
    found, before = [], ""
    for word in words:
        touching = (
            not before
            or not word
            or (by_character and len(before) == len(word) == 1)
            or IS_CJK.match(before[-1])
            or IS_CJK.match(word)
        )
        found.append("" if touching else " ")
        before = word or before
    return found


def places(text: str, words: Sequence[str]) -> list[tuple[int, int]] | None:
    """Start and end of each word in a text, in sequence; None if the text does not consist of these words."""
    found, at = [], 0
    for word in words:
        start = text.find(word, at)
        if start < 0 or text[at:start].strip():
            return None
        at = start + len(word)
        found.append((start, at))
    return found
