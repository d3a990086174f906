"""SQuAD's exact match and F1, against an independent implementation."""

from __future__ import annotations

import collections
import random
import re
import string

import pytest

from pefttools.metrics.squad import Squad


def squad(predictions: list[str], references: list[list[str]]) -> dict[str, float]:
    values = Squad(keep_in_memory=True).compute(predictions=predictions, references=references)
    assert values is not None
    return values


def official(prediction: str, reference: str) -> tuple[float, float]:
    """Exact match and F1 of one pair by the definitions of SQuAD's paper and script."""

    def normal(text: str) -> str:
        characters = [c for c in text.lower() if c not in set(string.punctuation)]
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", "".join(characters)).split())

    ours, theirs = normal(prediction).split(), normal(reference).split()
    exact = float(normal(prediction) == normal(reference))
    if not ours or not theirs:
        return exact, float(ours == theirs)
    same = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    if same == 0:
        return exact, 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return exact, 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize(
    ("prediction", "reference", "exact", "f1"),
    [
        ("the Eiffel Tower", "Eiffel tower.", 1, 1),
        ("Eiffel", "the Eiffel Tower", 0, 2 / 3),
        ("a tower in Paris", "Paris, the tower", 0, 4 / 5),
        ("dog", "cat", 0, 0),
        ("", "", 1, 1),
        ("dog", "", 0, 0),
        ("", "dog", 0, 0),
        ("1,000 men", "1000 men", 1, 1),
        ("to to be", "to be be", 0, 2 / 3),
        ("anthem", "them", 0, 0),  # articles are words, not letters
    ],
)
def test_exact_match_and_f1_equal_squad(prediction: str, reference: str, exact: float, f1: float) -> None:
    values = squad([prediction], [[reference] if reference else []])
    assert values["exact_match"] == exact
    assert values["f1"] == pytest.approx(f1)
    assert official(prediction, reference) == pytest.approx((exact, f1))


def test_metrics_with_several_references_equal_squad() -> None:
    draw = random.Random(0)
    words = ["the", "a", "Tower", "tower,", "in", "Paris", "Paris.", "1999", "An", "over-all"]

    def text() -> str:
        return " ".join(draw.choices(words, k=draw.randint(2, 5))) + " x"

    predictions, references = (
        [text() for _ in range(300)],
        [[text() for _ in range(draw.randint(1, 3))] for _ in range(300)],
    )
    values = squad(predictions, references)
    pairs = [[official(p, r) for r in rs] for p, rs in zip(predictions, references, strict=True)]
    assert values["exact_match"] == pytest.approx(sum(max(e for e, _ in row) for row in pairs) / 300)
    assert values["f1"] == pytest.approx(sum(max(f for _, f in row) for row in pairs) / 300)
    assert set(values) == {"exact_match", "f1"}


def test_unanswerable_rows_are_scored_separately() -> None:
    values = squad(["", "x", "y", "y z"], [[], [], ["y"], ["z"]])
    assert values == pytest.approx(
        {
            "exact_match": 0.5, "f1": (1 + 0 + 1 + 2 / 3) / 4, "exact_match_answerable": 0.5,
            "f1_answerable": (1 + 2 / 3) / 2, "no_answer_accuracy": 0.5,
        }
    )  # fmt: skip
    assert squad([""], [[]]) == {"exact_match": 1.0, "f1": 1.0, "no_answer_accuracy": 1.0}


@pytest.mark.parametrize(
    ("prediction", "reference", "exact", "f1"),
    [
        ("北京市", "北京", 0, 4 / 5),  # 2 of 3 predicted characters, 2 of 2 in the reference
        ("《红楼梦》。", "红楼梦", 1, 1),
        ("1999年", "在1999年", 0, 4 / 5),  # a number is a word: 2 of 2 predicted, 2 of 3 in the reference
        ("iPhone 手机", "iphone手机", 1, 1),
        ("东京", "北京", 0, 1 / 2),
        ("さくら", "サクラ", 0, 0),
    ],
)
def test_chinese_is_compared_by_characters(prediction: str, reference: str, exact: float, f1: float) -> None:
    values = squad([prediction], [[reference]])
    assert values["exact_match"] == exact
    assert values["f1"] == pytest.approx(f1)
