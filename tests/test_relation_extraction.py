"""Relation extraction: markers, truncation that keeps them, and F1 without the class for no relation."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import KEYS, WORDS, make_tokenizer, train_tiny, write_recipe, write_rows
from sklearn.metrics import f1_score, precision_recall_fscore_support

from pefttools.data import marked
from pefttools.data.splitting import Splits
from pefttools.errors import UserError
from pefttools.metrics.relation_f1 import RelationF1
from pefttools.tasks.relation_extraction import RelationExtraction

LABELS = ("Other", "Cause-Effect(e1,e2)", "Cause-Effect(e2,e1)", "Part-Whole(e1,e2)", "Part-Whole(e2,e1)")


def tokenizer() -> Any:
    from transformers import AddedToken

    made = make_tokenizer()
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in marked.MARKERS], True)
    return made


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The <e1>child</e1> has a <e2>cradle</e2>.", "The <e1>child</e1> has a <e2>cradle</e2>."),
        ("The <e1> child </e1> has a <e2> cradle </e2>.", "The <e1>child</e1> has a <e2>cradle</e2>."),
        ("The<e1> child</e1> has a<e2> cradle</e2> .", "The <e1>child</e1> has a <e2>cradle</e2> ."),
        ("<e2> student </e2> <e1> group </e1>", "<e2>student</e2> <e1>group</e1>"),
        ("<e1>小明</e1>在<e2>北京</e2>工作", "<e1>小明</e1>在<e2>北京</e2>工作"),
        ("<e1>the <e2>glass</e2> door</e1>", "<e1>the <e2>glass</e2> door</e1>"),
        ("(<e1> a </e1>) and <e2> b </e2>c", "(<e1>a</e1>) and <e2>b</e2> c"),
    ],
)
def test_spaces_around_markers_are_normalized(text: str, normalized: str) -> None:
    assert RelationExtraction().read({"text": text, "label": " Other "}) == {"text": normalized, "label": "Other"}


def test_other_markers_and_offsets_give_the_same_row() -> None:
    spelled = RelationExtraction(markers=("[E1]", "[/E1]", "[E2]", "[/E2]"))
    row = spelled.read({"text": "The [E1] child [/E1] has a [E2]cradle[/E2].", "label": 3.0})
    assert row == {"text": "The <e1>child</e1> has a <e2>cradle</e2>.", "label": "3"}
    offsets = {"e1_start": "4", "e1_end": 9, "e2_start": 16.0, "e2_end": 22}
    assert RelationExtraction().read({"text": "The child has a cradle.", **offsets, "label": 3}) == row
    nested = {"e1_start": 0, "e1_end": 10, "e2_start": 0, "e2_end": 5}
    assert RelationExtraction().read({"text": "glass door", **nested})["text"] == "<e1><e2>glass</e2> door</e1>"
    touching = {"e1_start": 2, "e1_end": 4, "e2_start": 0, "e2_end": 2}
    assert RelationExtraction().read({"text": "北京小明", **touching})["text"] == "<e2>北京</e2><e1>小明</e1>"
    same = {"e1_start": 0, "e1_end": 2, "e2_start": 0, "e2_end": 2}
    assert RelationExtraction().read({"text": "北京", **same})["text"] == "<e1><e2>北京</e2></e1>"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": "no entity"}, "has no marker <e1>"),
        ({"text": "<e1>a</e1> <e2>b"}, "has no marker </e2>"),
        ({"text": "<e1>a</e1> <e1>a</e1> <e2>b</e2>"}, "has the marker <e1> 2 times"),
        ({"text": "</e1>a<e1> <e2>b</e2>"}, "has </e1> before <e1>"),
        ({"text": "<e1>a <e2>b</e1> c</e2>"}, "has entities that cross: <e1> … <e2> … </e1> … </e2>"),
        ({"text": "<e1> </e1> <e2>b</e2>"}, "has nothing between <e1> and </e1>"),
        ({"text": "<e1><e2>b</e2></e1>", "label": " "}, "has no label"),
        ({"text": "  "}, "has no text"),
        ({"text": "a b", "e1_start": 0, "e1_end": 1, "e2_start": 2}, "has no e2_end"),
        ({"text": "a b", "e1_start": 0, "e1_end": 1, "e2_start": 2, "e2_end": 9}, "has a e2_end of 9 in a text of 3"),
        ({"text": "a b", "e1_start": 0.5, "e1_end": 1, "e2_start": 2, "e2_end": 3}, "has a e1_start of 0.5"),
        (
            {"text": "a b", "e1_start": "x", "e1_end": 1, "e2_start": 2, "e2_end": 3},
            "has a e1_start that is not a number",
        ),
        ({"text": "a b", "e1_start": 1, "e1_end": 1, "e2_start": 2, "e2_end": 3}, "has an e1_end of 1, not after"),
        ({"text": "a b", "e1_start": 1, "e1_end": 2, "e2_start": 2, "e2_end": 3}, "has nothing between <e1> and </e1>"),
        (
            {"text": "<e1> b", "e1_start": 0, "e1_end": 1, "e2_start": 2, "e2_end": 3},
            "marks its entities twice: by '<e1>' in the text",
        ),
    ],
)
def test_invalid_rows_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RelationExtraction().read(values)


def test_two_kinds_of_markers_in_one_row_are_refused() -> None:
    task = RelationExtraction(markers=("[E1]", "[/E1]", "[E2]", "[/E2]"))
    with pytest.raises(ValueError, match="has <e1> in its text"):
        task.read({"text": "[E1]a[/E1] [E2]b[/E2] <e1>"})
    with pytest.raises(ValueError, match="has no marker \\[E1\\]"):
        task.read({"text": "a"})
    for wrong in (("$", "$", "#", "#"), ("", "a", "b", "c"), ("e1", "/e1", "e2", "/e2")):
        with pytest.raises(ValueError, match="none of them empty or part of another"):
            RelationExtraction(markers=wrong)


def test_truncation_keeps_markers_and_nearby_tokens() -> None:
    words = random.Random(0).choices(WORDS, k=60)
    made = tokenizer()

    def tokens(first: int, second: int, limit: int) -> tuple[list[str], bool]:
        parts = [*words]
        parts[first] = f"<e1>{parts[first]}</e1>"
        parts[second] = f"<e2>{parts[second]}</e2>"
        encoded = RelationExtraction(max_length=limit, labels=LABELS).encode([{"text": " ".join(parts)}], made)
        return made.convert_ids_to_tokens(encoded["input_ids"][0]), encoded["cut"][0]

    def spelled(first: int, second: int, low: int, high: int) -> list[str]:
        out = []
        for i in range(low, high):
            mark = 1 if i == first else 2
            out += [f"<e{mark}>", words[i], f"</e{mark}>"] if i in (first, second) else [words[i]]
        return out

    inside, cut = tokens(20, 30, 25)  # from 20 to 30 are 15 tokens, and 8 more fit about them
    assert (inside, cut) == (["[CLS]", *spelled(20, 30, 16, 35), "[SEP]"], True)
    apart, cut = tokens(5, 50, 24)  # two entities of three tokens, and 16 more fit about them
    assert (apart, cut) == (["[CLS]", *spelled(5, 50, 1, 10), *spelled(5, 50, 46, 55), "[SEP]"], True)
    made.model_max_length = 100
    assert tokens(5, 6, 66) == (["[CLS]", *spelled(5, 6, 0, 60), "[SEP]"], False)


def test_two_long_entities_keep_their_markers() -> None:
    words = [WORDS[i % 40] for i in range(40)]
    text = f"<e1>{' '.join(words[:20])}</e1> <e2>{' '.join(words[20:])}</e2>"
    made = tokenizer()
    encoded = RelationExtraction(max_length=16, labels=LABELS).encode([{"text": text}], made)
    assert made.convert_ids_to_tokens(encoded["input_ids"][0]) == [
        "[CLS]", "<e1>", *words[:3], *words[17:20], "</e1>", "<e2>", *words[20:22], *words[38:40], "</e2>", "[SEP]"
    ]  # fmt: skip
    made.model_max_length = 5
    with pytest.raises(UserError, match=r"task\.max_length: 5 tokens have no room for 4 markers"):
        RelationExtraction(labels=LABELS).encode([{"text": text}], made)


def test_space_before_an_entity_moves_inside_its_marker() -> None:
    assert marked.for_tokens("A <e1>b</e1> c <e2>d</e2>") == "A<e1> b</e1> c<e2> d</e2>"
    assert marked.for_tokens("A <e1><e2>b</e2> c</e1>") == "A<e1><e2> b</e2> c</e1>"
    assert marked.for_tokens("<e1>a</e1><e2>b</e2>") == "<e1>a</e1><e2>b</e2>"


def test_labels_are_encoded_if_present() -> None:
    task = RelationExtraction(labels=LABELS)
    row = {"text": "<e1>word1</e1> <e2>word2</e2>"}
    encoded = task.encode([{**row, "label": LABELS[3]}, {**row, "label": "Other"}], tokenizer())
    assert (encoded["labels"], encoded["num_targets"], encoded["cut"]) == ([3, 0], [1, 1], [False, False])
    assert "labels" not in task.encode([row], tokenizer())
    assert task.reference(row) is None


def test_loss_and_predictions() -> None:
    task = RelationExtraction(labels=LABELS)
    logits = torch.tensor([[0.0, 2.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 3.0]])
    outputs = SimpleNamespace(logits=logits)
    loss = task.loss(outputs, {"labels": torch.tensor([1, 0])})
    expected = -logits.log_softmax(-1)[[0, 1], [1, 0]].sum()
    assert loss.item() == pytest.approx(expected.item())
    predictions = task.predict(outputs, {})
    assert [p["prediction"] for p in predictions] == ["Cause-Effect(e1,e2)", "Part-Whole(e2,e1)"]
    assert list(predictions[0]["probabilities"]) == list(LABELS)
    assert predictions[0]["probabilities"]["Other"] == pytest.approx(logits[0].softmax(-1)[0].item())


def f1(predictions: list[str], references: list[str], other: str | None = "Other") -> dict[str, float]:
    values = RelationF1(keep_in_memory=True).compute(predictions=predictions, references=references, other=other)
    assert values is not None
    return values


def test_f1_without_directions_equals_scikit_learn() -> None:
    draw = random.Random(1)
    names = ["Other", "a", "b", "c"]
    references, predictions = ([draw.choice(names) for _ in range(200)] for _ in range(2))
    values = f1(predictions, references)
    for name, average in (("f1", "macro"), ("f1_directed", "macro"), ("f1_micro", "micro")):
        assert values[name] == pytest.approx(f1_score(references, predictions, labels=names[1:], average=average))
    with_other = f1(predictions, references, other=None)
    assert with_other["f1"] == pytest.approx(f1_score(references, predictions, average="macro"))
    assert with_other["f1_micro"] == pytest.approx(f1_score(references, predictions, average="micro"))


def test_f1_merges_directions_but_counts_only_the_right_direction() -> None:
    ce, ec, pw, wp = LABELS[1:]
    references = [ce, ce, ec, ec, "Other", "Other", pw, pw, wp]
    predictions = [ce, ec, ec, "Other", ce, "Other", pw, "Other", pw]
    # Cause-Effect: 2 right (1 and 3) of 4 predicted and 4 true: P = 2/4, R = 2/4, F1 = 1/2
    # Part-Whole: 1 right (7) of 2 predicted and 3 true: P = 1/2, R = 1/3, F1 = 2/5
    values = f1(predictions, references)
    assert values["f1"] == pytest.approx((1 / 2 + 2 / 5) / 2)
    # both together: 3 right of 6 predicted and 7 true
    assert values["f1_micro"] == pytest.approx(2 * 3 / 13)
    # e1,e2: 1 of 2 and 2; e2,e1: 1 of 2 and 2; Part-Whole e1,e2: 1 of 2 and 2, e2,e1: none of 0 and 1
    assert values["f1_directed"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 2 + 0) / 4)


def test_f1_without_relations_is_zero() -> None:
    assert f1(["Other"], ["Other"]) == {"f1": 0.0, "f1_micro": 0.0, "f1_directed": 0.0}
    assert f1(["a(e1,e2)"], ["Other"])["f1"] == 0.0
    assert f1(["a(e1,e2)"], ["a(e2,e1)"])["f1"] == 0.0
    assert f1(["(e1,e2)"], ["(e1,e2)"])["f1"] == 1.0


def test_metrics_and_majority_baseline() -> None:
    task = RelationExtraction(labels=LABELS)
    draw = random.Random(2)
    references, predictions = ([draw.choice(LABELS) for _ in range(100)] for _ in range(2))
    values = task.metrics([{"prediction": name} for name in predictions], references)
    assert values["accuracy"] == sum(a == b for a, b in zip(predictions, references, strict=True)) / 100
    precision, _, _, support = precision_recall_fscore_support(references, predictions, labels=list(LABELS))
    assert list(values["per_class"]) == list(LABELS)
    assert [v["precision"] for v in values["per_class"].values()] == pytest.approx(list(precision))  # type: ignore[arg-type]
    assert [v["support"] for v in values["per_class"].values()] == list(support)  # type: ignore[arg-type]
    rows = [{"label": name} for name in ("Other", "Other", LABELS[1])]
    assert task.majority_baseline(rows, rows) == {"f1": 0.0, "f1_micro": 0.0, "f1_directed": 0.0, "accuracy": 2 / 3}


def test_fit_takes_labels_and_refuses_unusable_data() -> None:
    def rows(*labels: str) -> list[dict[str, Any]]:
        return [{"text": f"<e1>{i}</e1> <e2>b</e2>", "label": label} for i, label in enumerate(labels)]

    task = RelationExtraction().fit(Splits(rows("b", "Other", "a"), rows("a"), rows("b")))
    assert task.labels == ("Other", "a", "b")
    assert task.config_values()["id2label"] == {0: "Other", 1: "a", 2: "b"}
    assert task.remarks(Splits([], [], []), tokenizer()) == []
    one_way = Splits(rows("a(e1,e2)", "Other"), rows("Other"), rows("a(e2,e1)"))
    both_ways = RelationExtraction().fit(one_way)
    assert both_ways.labels == ("Other", "a(e1,e2)", "a(e2,e1)")
    assert both_ways.fit(one_way) == both_ways
    with pytest.raises(UserError, match="has one class only \\('a'\\)"):
        RelationExtraction().fit(Splits(rows("a", "a"), rows("a"), []))
    with pytest.raises(UserError, match=r"data\.test: labels that no training row has: 'c'"):
        RelationExtraction().fit(Splits(rows("a", "b"), rows("a"), rows("c")))
    with pytest.raises(UserError, match=r"task\.labels: no training row has 'z'"):
        RelationExtraction(labels=("a", "b", "z")).fit(Splits(rows("a", "b"), rows("a"), []))
    with pytest.raises(UserError, match=r"data\.test: labels the model does not know: 'c'"):
        task.check_scorable("data.test", rows("c"))


def test_class_that_looks_like_other_is_remarked() -> None:
    task = RelationExtraction(labels=("no_relation", "per:title"))
    (remark,) = task.remarks(Splits([], [], []), tokenizer())
    assert "set task.other='no_relation'" in remark
    assert RelationExtraction(labels=("no_relation", "a"), other="no_relation").remarks(Splits([], [], []), None) == []  # type: ignore[arg-type]
    assert RelationExtraction(labels=("a", "b")).remarks(Splits([], [], []), None) == []  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run_trains_saves_and_merges_the_markers(tmp_path: Path, bases: Callable[[str], Path]) -> None:
    """From a file to an exported folder whose tokenizer has the markers."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import pefttools
    from pefttools.exporters.driver import export

    draw = random.Random(0)
    lines = []
    for i in range(120):
        label = ("fruit", "tool")[i % 2]
        words = [*draw.choices(WORDS, k=4), f"<e2>{draw.choice(WORDS)}</e2>"]
        words.insert(draw.randrange(5), f"<e1>{draw.choice(KEYS[label])}</e1>")
        lines.append({"text": " ".join(words), "label": f"{label}(e1,e2)"})
    rows = write_rows(tmp_path / "rows.jsonl", lines)
    task = {"name": "relation_extraction", "max_length": 32}
    train = {"epochs": 3, "learning_rate": 0.01}
    recipe_file = write_recipe(tmp_path / "tiny.yaml", bases("bert"), rows, task=task, train=train)
    run, result = train_tiny(recipe_file, tmp_path / "run")
    assert result["before"]["f1"] < 0.7
    assert result["test"]["f1"] == result["test"]["f1_micro"] == 1.0

    trained = pefttools.load(run)
    row = trained.task.read({"text": "word1 <e2>word2</e2> word3 <e1> word4 </e1>"})
    columns = trained.task.encode([row], trained.base.tokenizer)
    inputs = {"input_ids": torch.tensor(columns["input_ids"])}
    with torch.no_grad():
        ours = trained.model(**inputs).logits
    export(run, "merged", tmp_path / "merged")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer(row["text"])["input_ids"] == columns["input_ids"][0]
    assert plain.config.vocab_size == len(tokenizer) == len(make_tokenizer()) + 4
    with torch.no_grad():
        theirs = plain(**inputs).logits
    assert (ours - theirs).abs().max() <= 1e-5
    assert list(plain.config.id2label.values()) == ["fruit(e1,e2)", "fruit(e2,e1)", "tool(e1,e2)", "tool(e2,e1)"]
