"""Tags of words to BIO and to spans, whatever scheme they were written in.

| scheme | an entity of type X |
|---|---|
| `bio` (IOB2) | B-X, then I-X |
| `iob1` | I-X; it opens with B-X only right after another X |
| `bmes` (BMEWO, IOBES) | B-X, M-X or I-X, E-X; a single word is S-X or W-X |
| `bilou` | B-X, I-X, L-X; a single word is U-X |
| `none` | tags without prefixes, such as parts of speech: no entities |

All are read as the CoNLL-2000 scorer reads chunks: an entity opens at B (or S, U, W), at any other prefix that nothing
open of the same type comes before, and after E or L; nothing is dropped. A prefix alone (`B`, as in word segmentation)
has the type `_`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

Scheme = Literal["bio", "iob1", "bmes", "bilou", "none"]
OUTSIDE = "O"
PREFIXES: dict[Scheme, str] = {"bio": "BI", "iob1": "BI", "bmes": "BMIESW", "bilou": "BILU", "none": ""}
OPENING, SINGLE, CLOSING = "BSUW", "SUW", "EL"
UNTYPED = "_"


class Span(NamedTuple):
    """An entity: its type, its first word, and the word after its last."""

    type: str
    start: int
    end: int


class Breach(NamedTuple):
    """Where tags break their scheme."""

    word: int
    why: str


def parts(tag: str) -> tuple[str, str]:
    """Prefix and type; both empty outside of entities, the prefix empty in a tag that has none."""
    if tag == OUTSIDE:
        return "", ""
    prefix, dash, kind = tag.partition("-")
    if len(prefix) != 1 or (not dash and prefix not in "".join(PREFIXES.values())):
        return "", tag
    return prefix, kind or UNTYPED


def with_prefix_first(tags: Sequence[str]) -> list[str]:
    """A sentence's tags with `PER-B`, `PER_B` and `B_PER` as `B-PER`, where all are of one of these kinds."""
    tags = list(tags)
    kinds = {tag for tag in tags if tag != OUTSIDE}
    letters = "".join(sorted({letter for known in PREFIXES.values() for letter in known}))
    for pattern, turned in (
        (rf"([{letters}])-(.+)", None),
        (rf"([{letters}])_(.+)", r"\1-\2"),
        (rf"(.+)[-_]([{letters}])", r"\2-\1"),
    ):
        if kinds and all(re.fullmatch(pattern, tag) for tag in kinds):
            return tags if turned is None else [re.sub(f"^{pattern}$", turned, tag) for tag in tags]
    return tags


def detect(sentences: Iterable[Sequence[str]]) -> Scheme:
    """The scheme of these tags.

    Raises:
        ValueError: their prefixes are of several schemes.
    """
    sentences = list(sentences)
    kinds = {tag for tags in sentences for tag in tags} - {OUTSIDE}
    known = {letter for letters in PREFIXES.values() for letter in letters}
    prefixed = {tag for tag in kinds if parts(tag)[0] in known and parts(tag)[0]}
    letters = {parts(tag)[0] for tag in prefixed}
    untyped = prefixed and all(len(tag) == 1 for tag in prefixed)
    # a few tags without prefixes among many with are mistakes to tell; letters alone must be all there is
    if 2 * len(prefixed) <= len(kinds) or (untyped and (prefixed != kinds or "B" not in letters or len(letters) == 1)):
        return "none"
    fits: list[Scheme] = [scheme for scheme in ("bio", "bmes", "bilou") if letters <= set(PREFIXES[scheme])]
    if not fits:
        found = ", ".join(sorted(letters))
        raise ValueError(f"the prefixes {found} are of no single scheme; schemes have {described()}")
    if fits[0] != "bio":
        return fits[0]
    needless = sum(len(to_bio(tags, "iob1")[1]) for tags in sentences)
    missing = sum(len(to_bio(tags, "bio")[1]) for tags in sentences)
    return "iob1" if missing > needless else "bio"


def almost_prefixed(labels: Iterable[str]) -> list[str]:
    """The tags like `b-per`, `B.PER` and `B:PER`, where all but O are such."""
    found = [label for label in labels if label.upper() not in (OUTSIDE, "0")]
    return found if all(re.fullmatch(r"[bilBIL][-_.:/]\S+", label) for label in found) else []


def joined_by(tags: Sequence[str]) -> str:
    """The character between the tags of a whole sentence that were read as one; empty where they were not."""
    if len(tags) != 1:
        return ""
    known = "".join(sorted({letter for letters in PREFIXES.values() for letter in letters}))
    tag = rf"(O|[{known}]-[^,;|]+)"
    return next((m for m in ",;|" if re.fullmatch(rf"{tag}(\s*{re.escape(m)}\s*{tag})+", tags[0])), "")


def described() -> str:
    """The prefixes of every scheme, for messages."""
    return "; ".join(f"{scheme}: {', '.join(letters)}" for scheme, letters in PREFIXES.items() if letters)


def strange(tags: Iterable[str], scheme: Scheme) -> list[str]:
    """The tags that have no prefix of the scheme."""
    if scheme == "none":
        return []
    return sorted({tag for tag in tags if tag != OUTSIDE and parts(tag)[0] not in list(PREFIXES[scheme])})


def to_bio(tags: Sequence[str], scheme: Scheme) -> tuple[list[str], list[Breach]]:
    """The same entities in BIO, and where the tags break their scheme; tags of `none` stay as they are."""
    if scheme == "none":
        return list(tags), []
    made, breaches = [], []
    prefix, kind = "", ""
    for i, tag in enumerate(tags):
        before, (prefix, kind) = (prefix, kind), parts(tag)
        after = before[1] == kind != "" and not _closed(before[0])  # words before belong to an open X
        opens = prefix in OPENING or not after
        if before[0] and scheme in ("bmes", "bilou") and not _closed(before[0]) and (opens or not kind):
            breaches.append(Breach(i - 1, f"{tags[i - 1]} is not closed before {tag}"))
        if not kind:
            made.append(OUTSIDE)
            continue
        if scheme == "iob1" and prefix == "B" and not after:
            breaches.append(Breach(i, f"{tag} with no {kind} right before it"))
        elif scheme != "iob1" and prefix not in OPENING and opens:
            breaches.append(Breach(i, f"{tag} after {tags[i - 1]}" if i else f"{tag} at the start"))
        made.append(f"{'B' if opens else 'I'}-{kind}")
    if tags and prefix and scheme in ("bmes", "bilou") and not _closed(prefix):
        breaches.append(Breach(len(tags) - 1, f"{tags[-1]} is not closed at the end"))
    return made, breaches


def _closed(prefix: str) -> bool:
    return prefix in SINGLE + CLOSING


def spans(tags: Sequence[str]) -> list[Span]:
    """The entities of BIO tags, in order."""
    found: list[Span] = []
    for i, tag in enumerate(to_bio(tags, "bio")[0]):
        prefix, kind = parts(tag)
        if prefix == "B":
            found.append(Span(kind, i, i + 1))
        elif prefix:
            found[-1] = found[-1]._replace(end=i + 1)
    return found


def without(tags: Sequence[str], types: Sequence[str]) -> list[str]:
    """BIO tags with every type but these outside; all as they are where none are named."""
    return [tag if not types or parts(tag)[1] in types else OUTSIDE for tag in tags]


def labels(sentences: Iterable[Sequence[str]], scheme: Scheme) -> tuple[str, ...]:
    """What a model of these normalised tags says: O, then B and I of every type; of `none` the most frequent first."""
    counts = Counter(tag for tags in sentences for tag in tags)
    if scheme == "none":
        return tuple(sorted(counts, key=lambda tag: (-counts[tag], tag)))
    types = sorted({parts(tag)[1] for tag in counts} - {""})
    return (OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BI"))
