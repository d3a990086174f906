"""Tags of every scheme as BIO and as spans, equal to seqeval; splitting text into words and joining words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from pefttools.data import tags, words

GOLD = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "I-LOC", "I-LOC", "O", "B-PER"]
"""Smith J . Rome / New York City - Ann"""
SCHEMES = {
    "bio": GOLD,
    "iob1": ["I-PER", "I-PER", "O", "I-LOC", "B-LOC", "I-LOC", "I-LOC", "O", "I-PER"],
    "bmes": ["B-PER", "E-PER", "O", "S-LOC", "B-LOC", "M-LOC", "E-LOC", "O", "S-PER"],
    "bilou": ["B-PER", "L-PER", "O", "U-LOC", "B-LOC", "I-LOC", "L-LOC", "O", "U-PER"],
}
VARIANTS = {
    "BMEWO": ["B-PER", "E-PER", "O", "W-LOC", "B-LOC", "M-LOC", "E-LOC", "O", "W-PER"],
    "IOBES": ["B-PER", "E-PER", "O", "S-LOC", "B-LOC", "I-LOC", "E-LOC", "O", "S-PER"],
}
SPANS = [("PER", 0, 2), ("LOC", 3, 4), ("LOC", 4, 7), ("PER", 8, 9)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_converts_to_the_same_bio_tags(scheme: tags.Scheme) -> None:
    assert tags.to_bio(SCHEMES[scheme], scheme) == (GOLD, [])
    assert tags.detect([SCHEMES[scheme], ["O"]]) == scheme
    assert tags.spans(GOLD) == SPANS


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_bmes_are_detected_and_converted(name: str) -> None:
    assert tags.detect([VARIANTS[name]]) == "bmes"
    assert tags.to_bio(VARIANTS[name], "bmes") == (GOLD, [])


@pytest.mark.parametrize(
    ("tagged", "scheme"),
    [
        ("NN VB DT NN O", "none"),
        ("PER O LOC O", "none"),
        ("B M E S", "bmes"),  # word segmentation
        ("B I I B", "bio"),
        ("N V B I", "none"),
        ("B B B", "none"),
        ("I-PER O I-PER", "iob1"),
        ("B-PER O I-LOC B-LOC I-LOC O B-PER", "bio"),  # one mistake does not make it IOB1
        ("B-PER I-PER O B-LOC PER", "bio"),
        ("B-New-York I-New-York", "bio"),
        ("NN-SB VB-HD", "none"),
        ("O O", "none"),
        ("U-PER O", "bilou"),
        ("S-PER O", "bmes"),
    ],
)
def test_scheme_is_detected(tagged: str, scheme: str) -> None:
    assert tags.detect([tagged.split()]) == scheme


def test_mixed_schemes_are_refused() -> None:
    with pytest.raises(ValueError, match="no single scheme has the prefixes B, E, L, S; the schemes have bio: B, I;"):
        tags.detect([["B-A", "E-A", "S-A", "B-A", "L-A"]])
    assert tags.outside_scheme(["B-PER", "O", "I-LOC", "M-LOC", "LOC", "o"], "bio") == ["LOC", "M-LOC", "o"]
    assert tags.outside_scheme(["B-PER", "O", "I-LOC", "M-LOC", "LOC", "o"], "none") == []


@pytest.mark.parametrize(
    ("scheme", "tagged", "read", "why"),
    [
        ("bio", "O I-PER", "O B-PER", [(1, "I-PER after O")]),
        ("bio", "I-PER I-PER", "B-PER I-PER", [(0, "I-PER at the start")]),
        ("bio", "B-PER I-LOC I-LOC", "B-PER B-LOC I-LOC", [(1, "I-LOC after B-PER")]),
        ("iob1", "O B-PER I-PER", "O B-PER I-PER", [(1, "B-PER with no PER right before it")]),
        ("bmes", "B-PER M-PER O", "B-PER I-PER O", [(1, "M-PER is not closed before O")]),
        ("bmes", "O B-PER", "O B-PER", [(1, "B-PER is not closed at the end")]),
        ("bmes", "O E-PER O", "O B-PER O", [(1, "E-PER after O")]),
        ("bmes", "S-PER M-PER E-PER", "B-PER B-PER I-PER", [(1, "M-PER after S-PER")]),
        ("bmes", "B-PER E-PER E-PER", "B-PER I-PER B-PER", [(2, "E-PER after E-PER")]),
        (
            "bilou",
            "B-PER L-LOC U-LOC",
            "B-PER B-LOC B-LOC",
            [(0, "B-PER is not closed before L-LOC"), (1, "L-LOC after B-PER")],
        ),
        ("none", "NN VB", "NN VB", []),
        ("bmes", "B E S M", "B-_ I-_ B-_ B-_", [(3, "M after S"), (3, "M is not closed at the end")]),
    ],
)
def test_invalid_tags_are_repaired_and_reported(
    scheme: tags.Scheme, tagged: str, read: str, why: list[tuple[int, str]]
) -> None:
    assert tags.to_bio(tagged.split(), scheme) == (read.split(), why)


def tag_lists(prefixes: str) -> st.SearchStrategy[list[str]]:
    some = [f"{prefix}-{kind}" for prefix in prefixes for kind in ("PER", "LOC")]
    return st.lists(st.sampled_from(["O", *some]), max_size=12)


@given(tag_lists("BI"))
def test_bio_spans_equal_seqeval(tagged: list[str]) -> None:
    inclusive = [(kind, start, end - 1) for kind, start, end in tags.spans(tagged)]
    assert inclusive == get_entities(tagged)
    for scheme in ("bio", "iob1"):
        assert get_entities(tags.to_bio(tagged, scheme)[0]) == get_entities(tagged)


@given(tag_lists("BIES"))
def test_iobes_spans_equal_seqeval(tagged: list[str]) -> None:
    made, breaches = tags.to_bio(tagged, "bmes")
    assert get_entities(made) == get_entities(tagged)
    assert tags.to_bio(made, "bio") == (made, [])
    assert (not breaches) == (as_iobes(made) == tagged)


def as_iobes(bio: list[str]) -> list[str]:
    """BIO as IOBES."""
    made = list(bio)
    for kind, start, end in tags.spans(bio):
        made[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 2), f"E-{kind}"][: end - start]
        if end - start == 1:
            made[start] = f"S-{kind}"
    return made


def test_labels_of_a_scheme() -> None:
    assert tags.labels([["O", "B-PER"], ["I-LOC"]], "bio") == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert tags.labels([["NN", "VB", "NN", "DT"]], "none") == ("NN", "DT", "VB")
    assert tags.without(GOLD, ("PER",)) == ["B-PER", "I-PER", "O", "O", "O", "O", "O", "O", "B-PER"]
    assert tags.without(GOLD, ()) == GOLD


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Angela Merkel's  visit (in Paris).", ["Angela", "Merkel", "'s", "visit", "(", "in", "Paris", ")", "."]),
        ("the U.S. army can't :) ...", ["the", "U.S.", "army", "can't", ":)", "..."]),
        ("@ann #now http://a.b/c? “Yes!”", ["@ann", "#now", "http://a.b/c", "?", "“", "Yes", "!", "”"]),
        ("我在2024年去iPhone店。", ["我", "在", "2024", "年", "去", "iPhone", "店", "。"]),
        ("東京タワー\u3000서울 시", ["東", "京", "タ", "ワ", "ー", "서울", "시"]),
        ("'s", ["'", "s"]),
        (" \n\t\u3000 ", []),
    ],
)
def test_text_is_split_into_words(text: str, expected: list[str]) -> None:
    found = words.split(text)
    assert found == expected
    offsets = words.places(text, found)
    assert offsets is not None
    assert [text[start:end] for start, end in offsets] == expected


@given(st.text(alphabet="aB1.'’s()!,@ \n中国。\u3000é서😀"))
def test_splitting_loses_only_spaces(text: str) -> None:
    found = words.split(text)
    offsets = words.places(text, found)
    assert offsets is not None
    assert "".join(found) == "".join(text.split())
    assert [text[start:end] for start, end in offsets] == found


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["New", "York", ",", "NY"], "New York , NY"),
        (list("我在北京。"), "我在北京。"),
        (list("在2008年"), "在2008年"),
        (["用", "iPhone", "拍", "照"], "用iPhone拍照"),
        (["中国", "北京", "iPhone", "2"], "中国北京iPhone 2"),
        (["2", "0", "x"], "2 0 x"),
        (["한국", "서울"], "한국 서울"),
        (["a", "", "b"], "a b"),
    ],
)
def test_words_are_joined_into_text(tokens: list[str], text: str) -> None:
    made, offsets = words.join(tokens)
    assert made == text
    assert [made[start:end] for start, end in offsets] == tokens


def test_words_that_are_not_in_a_text_have_no_offsets() -> None:
    assert words.places("a b c", ["a", "c"]) is None
    assert words.places("a b", ["b", "a"]) is None
    assert words.places("a  b\n", ["a", "b"]) == [(0, 1), (3, 4)]
