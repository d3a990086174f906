"""Convert tags of words from any scheme to BIO and to spans.

| scheme | an entity of type X |
|---|---|
| `bio` (IOB2) | B-X, then I-X |
| `iob1` | I-X; it starts with B-X only directly after another X |
| `bmes` (BMEWO, IOBES) | B-X, M-X or I-X, E-X; a single word is S-X or W-X |
| `bilou` | B-X, I-X, L-X; a single word is U-X |
| `none` | tags without prefixes, such as parts of speech: no entities |

All schemes are read as in the CoNLL-2000 scorer: an entity starts at B (or S, U, W), at any other prefix that does not
follow an open entity of the same type, and after E or L; no tag is dropped. A prefix without a type (`B`, as in word
segmentation) has the type `_`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from pefttools.data.units import Piece, Units

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
    """A tag that breaks its scheme."""

    word: int
    why: str


def parts(tag: str) -> tuple[str, str]:
    """Prefix and type of a tag; both are empty for O, and the prefix is empty for a tag without one."""
    if tag == OUTSIDE:
        return "", ""
    prefix, dash, kind = tag.partition("-")
    if len(prefix) != 1 or (not dash and prefix not in "".join(PREFIXES.values())):
        return "", tag
    return prefix, kind or UNTYPED


def with_prefix_first(tags: Sequence[str]) -> list[str]:
    """A sentence's tags with `PER-B`, `PER_B` and `B_PER` rewritten as `B-PER`, if all tags have the same one of these
    forms."""
    tags = list(tags)
    kinds = {tag for tag in tags if tag != OUTSIDE}
    letters = "".join(sorted({letter for known in PREFIXES.values() for letter in known}))
    for pattern, template in (
        (rf"([{letters}])-(.+)", None),
        (rf"([{letters}])_(.+)", r"\1-\2"),
        (rf"(.+)[-_]([{letters}])", r"\2-\1"),
    ):
        if kinds and all(re.fullmatch(pattern, tag) for tag in kinds):
            return tags if template is None else [re.sub(f"^{pattern}$", template, tag) for tag in tags]
    return tags


def detect(sentences: Iterable[Sequence[str]]) -> Scheme:
    """The scheme of the tags.

    Raises:
        ValueError: no single scheme has all their prefixes.
    """
    sentences = list(sentences)
    kinds = {tag for tags in sentences for tag in tags} - {OUTSIDE}
    known = {letter for letters in PREFIXES.values() for letter in letters}
    prefixed = {tag for tag in kinds if parts(tag)[0] in known and parts(tag)[0]}
    letters = {parts(tag)[0] for tag in prefixed}
    untyped = prefixed and all(len(tag) == 1 for tag in prefixed)
    # a few tags without prefixes among many with prefixes are mistakes; bare letters must be the only tags
    if 2 * len(prefixed) <= len(kinds) or (untyped and (prefixed != kinds or "B" not in letters or len(letters) == 1)):
        return "none"
    fits: list[Scheme] = [scheme for scheme in ("bio", "bmes", "bilou") if letters <= set(PREFIXES[scheme])]
    if not fits:
        found = ", ".join(sorted(letters))
        raise ValueError(f"no single scheme has the prefixes {found}; the schemes have {described()}")
    if fits[0] != "bio":
        return fits[0]
    needless = sum(len(to_bio(tags, "iob1")[1]) for tags in sentences)
    missing = sum(len(to_bio(tags, "bio")[1]) for tags in sentences)
    return "iob1" if missing > needless else "bio"


def almost_prefixed(labels: Iterable[str]) -> list[str]:
    """The tags like `b-per`, `B.PER` and `B:PER`, if all tags except O have this form; else empty."""
    found = [label for label in labels if label.upper() not in (OUTSIDE, "0")]
    return found if all(re.fullmatch(r"[bilBIL][-_.:/]\S+", label) for label in found) else []


def joined_by(tags: Sequence[str]) -> str:
    """The separator of a sentence's tags that were read as one tag; empty if there is none."""
    if len(tags) != 1:
        return ""
    known = "".join(sorted({letter for letters in PREFIXES.values() for letter in letters}))
    tag = rf"(O|[{known}]-[^,;|]+)"
    return next((m for m in ",;|" if re.fullmatch(rf"{tag}(\s*{re.escape(m)}\s*{tag})+", tags[0])), "")


def described() -> str:
    """The prefixes of every scheme, for messages."""
    return "; ".join(f"{scheme}: {', '.join(letters)}" for scheme, letters in PREFIXES.items() if letters)


def outside_scheme(tags: Iterable[str], scheme: Scheme) -> list[str]:
    """The tags whose prefix does not belong to the scheme."""
    if scheme == "none":
        return []
    return sorted({tag for tag in tags if tag != OUTSIDE and parts(tag)[0] not in list(PREFIXES[scheme])})


def to_bio(tags: Sequence[str], scheme: Scheme) -> tuple[list[str], list[Breach]]:
    """The entities in BIO tags, and the breaches of the scheme; tags of `none` stay unchanged."""
    if scheme == "none":
        return list(tags), []
    bio, breaches = [], []
    prefix, kind = "", ""
    for i, tag in enumerate(tags):
        before, (prefix, kind) = (prefix, kind), parts(tag)
        after = before[1] == kind != "" and not _closed(
            before[0]
        )  # the words before belong to an open entity of this type
        opens = prefix in OPENING or not after
        if before[0] and scheme in ("bmes", "bilou") and not _closed(before[0]) and (opens or not kind):
            breaches.append(Breach(i - 1, f"{tags[i - 1]} is not closed before {tag}"))
        if not kind:
            bio.append(OUTSIDE)
            continue
        if scheme == "iob1" and prefix == "B" and not after:
            breaches.append(Breach(i, f"{tag} with no {kind} right before it"))
        elif scheme != "iob1" and prefix not in OPENING and opens:
            breaches.append(Breach(i, f"{tag} after {tags[i - 1]}" if i else f"{tag} at the start"))
        bio.append(f"{'B' if opens else 'I'}-{kind}")
    if tags and prefix and scheme in ("bmes", "bilou") and not _closed(prefix):
        breaches.append(Breach(len(tags) - 1, f"{tags[-1]} is not closed at the end"))
    return bio, breaches


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
    """BIO tags with all other types replaced by O; unchanged if `types` is empty."""
    return [tag if not types or parts(tag)[1] in types else OUTSIDE for tag in tags]


def labels(sentences: Iterable[Sequence[str]], scheme: Scheme) -> tuple[str, ...]:
    """The labels of a model for normalised tags: O, then B and I of every type; for `none`, the most frequent tag
    first."""
    counts = Counter(tag for tags in sentences for tag in tags)
    if scheme == "none":
        return tuple(sorted(counts, key=lambda tag: (-counts[tag], tag)))
    types = sorted({parts(tag)[1] for tag in counts} - {""})
    return (OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BI"))


def units(tokens: Sequence[str], bio: Sequence[str]) -> Units:
    """The words of a sentence for an edit: an entity is one unit that is not free. Tags of `none` are all free."""
    groups = _groups(bio)
    texts = tuple(" ".join(tokens[start:end]) for start, end in groups)
    return Units(texts, tuple(parts(bio[start])[0] == "" for start, _ in groups))


def edited(tokens: Sequence[str], bio: Sequence[str], pieces: Sequence[Piece]) -> tuple[list[str], list[str]]:
    """Tokens and tags after an edit of `units`: each word takes its tag along, and an inserted one has its source's."""
    groups, found, tags = _groups(bio), list[str](), list[str]()
    for piece in pieces:
        start, end = groups[piece.source]
        is_entity = parts(bio[start])[0] != ""
        found += tokens[start:end] if is_entity else [piece.text]
        tags += bio[start:end]
    return found, tags


def _groups(bio: Sequence[str]) -> list[tuple[int, int]]:
    """The first word and the word after the last of each unit: an entity, or a word outside of entities."""
    prefixed = [parts(tag)[0] for tag in bio]
    starts = [i for i, prefix in enumerate(prefixed) if prefix != "I"]
    return list(zip(starts, [*starts[1:], len(bio)], strict=True))
