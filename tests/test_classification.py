"""Text classification with several labels a row: file formats, training, metrics; and invalid labels."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import KEYS, WORDS, make_tokenizer, train_tiny, write_csv, write_rows
from sklearn import metrics

import pefttools
from pefttools.data.settings import DataSettings
from pefttools.data.splitting import Splits, load_splits
from pefttools.errors import UserError
from pefttools.inference.prediction import predict_rows
from pefttools.metrics import combined
from pefttools.tasks.text_classification import TextClassification

SEVERAL = TextClassification(multi_label=True)
FITTED = TextClassification(multi_label=True, labels=("a", "b", "c"), pair=False)


def tagged(number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts with keywords of any of the three kinds, or of none."""
    draw = random.Random(seed)
    rows = []
    for _ in range(number):
        kinds = [kind for kind in sorted(KEYS) if draw.random() < 0.4]
        words = [*draw.choices(WORDS, k=draw.randint(1, 3)), *(draw.choice(KEYS[kind]) for kind in kinds)]
        draw.shuffle(words)
        rows.append({"text": " ".join(words), "label": kinds})
    return rows


def split(train: list[dict[str, Any]], validation: list[dict[str, Any]] | None = None) -> Splits:
    return Splits(train, validation or train[:1], [])


@pytest.fixture(scope="module")
def run(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagged")
    data = f"data.train={write_rows(folder / 'rows.jsonl', tagged(600))}"
    task = "task={name: text_classification, max_length: 32, multi_label: true}"
    train = ["strategy=full", "train.epochs=4", "train.learning_rate=0.001"]
    return train_tiny(recipe_file, folder / "run", task, data, *train)[0]


@pytest.mark.parametrize("seed", range(3))
def test_multi_label_metrics_equal_scikit_learn(seed: int) -> None:
    draw = random.Random(seed)
    right = [[draw.randint(0, 1) for _ in range(4)] + [0] for _ in range(40)]  # the last class never comes up
    predictions = [[value if draw.random() < 0.7 else 1 - value for value in row[:4]] + [0] for row in right]
    found = combined("multi_label").compute(predictions=predictions, references=right)
    assert found is not None
    assert found["accuracy"] == metrics.accuracy_score(right, predictions)
    macro = metrics.f1_score(right, predictions, labels=range(4), average="macro", zero_division=0)  # type: ignore[arg-type]
    assert found["f1"] == pytest.approx(macro, rel=1e-12)
    assert found["f1_micro"] == pytest.approx(metrics.f1_score(right, predictions, average="micro"), rel=1e-12)
    report: Any = metrics.classification_report(right, predictions, output_dict=True, zero_division=0)  # type: ignore[arg-type]
    for name, scores in found["per_class"].items():
        assert scores == pytest.approx({n.replace("-score", ""): value for n, value in report[name].items()}, rel=1e-12)


def test_multi_label_metrics_of_three_rows_by_hand() -> None:
    predictions, right = (
        [{"prediction": ["a"]}, {"prediction": []}, {"prediction": ["b", "c"]}],
        [["a", "b"], [], ["b", "c"]],
    )
    found = FITTED.metrics(predictions, right)
    assert (found["accuracy"], found["f1"], found["f1_micro"]) == pytest.approx((2 / 3, (1 + 2 / 3 + 1) / 3, 6 / 7))
    assert found["per_class"]["b"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}


def test_accuracy_and_f1_of_single_labels() -> None:
    task = TextClassification(labels=("a", "b", "c"))
    found = task.metrics([{"prediction": name} for name in "abba"], list("abca"))
    assert (found["accuracy"], found["f1"]) == pytest.approx((0.75, (1 + 2 / 3 + 0) / 3))
    assert list(found) == ["accuracy", "f1", "per_class"]


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        (["b", "a"], ["a", "b"]),
        (("a",), ["a"]),
        ("b | a|b", ["a", "b"]),
        ("a", ["a"]),
        ([10, 9.0, "9"], ["9", "10"]),
        (7, ["7"]),
        ("", []),
        ("|", []),
        ([], []),
        (None, []),
        (float("nan"), []),
    ],
)
def test_labels_are_read_from_every_notation(value: Any, labels: list[str]) -> None:
    assert SEVERAL.read({"text": "x", "label": value})["label"] == labels


def test_the_separator_is_a_setting() -> None:
    row = {"text": "x", "label": "a, b|c"}
    assert TextClassification(multi_label=True, label_separator=",").read(row)["label"] == ["a", "b|c"]
    assert TextClassification().read(row)["label"] == "a, b|c"


@pytest.mark.parametrize(
    ("several", "value", "message"),
    [
        (False, ["a", "b"], r"has a list as label, \['a', 'b'\]; set task.multi_label=true"),
        (False, {"name": "a"}, "has a label that is not a single text: {'name': 'a'}"),
        (False, None, "has no label"),
        (False, " ", "has no label"),
        (False, float("nan"), "has no label"),
        (True, {"a": 1, "b": 2}, "has the value 2 for the label 'b'; it must be 0 or 1"),
        (True, ["a", None], "has no label"),
        (True, ["a", ""], "has no label"),
        (True, ["a", {"b": 1}], "has a label that is not a single text: {'b': 1}"),
        (True, [["a", "b"]], r"has a list among its labels: \['a', 'b'\]"),
    ],
)
def test_invalid_labels_are_refused(several: bool, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextClassification(multi_label=several).read({"text": "x", "label": value})


def test_every_file_format_gives_the_same_label_sets(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = tagged(80)
    write_rows(tmp_path / "a.jsonl", rows)
    write_csv(tmp_path / "b.csv", [{**row, "label": "|".join(row["label"])} for row in rows])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    found = [load_splits(DataSettings.model_validate({"train": str(file)}), SEVERAL) for file in tmp_path.iterdir()]
    assert len({splits.digest for splits in found}) == 1
    assert SEVERAL.fit(found[0]).labels == ("colour", "fruit", "tool")


def test_renamed_and_rare_labels(tmp_path: Path) -> None:
    rows = [{"text": f"x{i}", "label": ["a", "b"] if i % 2 else ["c"]} for i in range(60)]
    rows += [{"text": "rare", "label": ["a", "z"]}]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    values = {"train": str(file), "labels": {"b": "a"}, "min_class_rows": 5}
    splits = load_splits(DataSettings.model_validate(values), SEVERAL)
    assert splits.left_out == {"of a rare class": 1}
    task = SEVERAL.fit(splits)
    assert task.labels == ("a", "c")
    assert {tuple(task.reference(row)) for row in splits.train} == {("a",), ("c",)}
    assert {tuple(labels) for labels in task.encode(splits.train, make_tokenizer())["labels"]} == {(1, 0), (0, 1)}


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        (SEVERAL, [(["a"], ["a"], ["a"])], r"data.train: has one class only \('a'\)"),
        (SEVERAL, [([], [], [])], "data.train: has no labels; give rows of at least two classes"),
        (
            SEVERAL,
            [(["a"], ["b"], []), (["q"],)],
            "data.validation: labels that no training row has: 'q'. Training has 'a', 'b'",
        ),
        (FITTED, [(["a"], ["b"])], "task.labels: no training row has 'c'"),
        (TextClassification(), [("a", "a")], r"data.train: has one class only \('a'\)"),
    ],
)
def test_data_without_usable_classes_is_refused(task: TextClassification, rows: list[Any], message: str) -> None:
    train, validation = ([{"text": "x", "label": label} for label in part] for part in (rows[0], rows[-1]))
    with pytest.raises(UserError, match=message):
        task.fit(split(train, validation))


def test_labels_the_model_does_not_know_are_refused() -> None:
    with pytest.raises(UserError, match=r"data.test: labels the model does not know: 'q'. It has 'a', 'b', 'c'"):
        FITTED.check_scorable("data.test", [{"text": "x", "label": ["a", "q"]}])


def test_labels_that_look_like_several_warn() -> None:
    rows = split([{"text": "x", "label": label} for label in ("a", "b", "a, b", "R|D")])
    assert TextClassification().fit(rows).remarks(rows, make_tokenizer()) == [
        "labels like 'a, b' look like several labels in one text, but count as one class; if rows have several"
        " labels, set task.multi_label=true and task.label_separator"
    ]
    assert FITTED.remarks(rows, make_tokenizer()) == []


@pytest.mark.parametrize("labels", [("a,b", "b"), ("a; b", "b; c"), ("a b", "b c", "c a")])
def test_labels_that_the_separator_does_not_divide_warn(labels: tuple[str, ...]) -> None:
    rows = split([{"text": "x", "label": [label]} for label in labels])
    remarks = TextClassification(multi_label=True).fit(rows).remarks(rows, make_tokenizer())
    assert remarks == [
        f"labels like {labels[0]!r} look like several labels in one text, but count as one class;"
        " task.label_separator='|' does not separate them"
    ]
    divided = split([{"text": "x", "label": label} for label in (["a b", "c"], ["b c"])])
    assert TextClassification(multi_label=True).fit(divided).remarks(divided, make_tokenizer()) == []


def test_multi_label_loss_and_predictions_by_hand() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.0], [0.5, 0.5, -3.0]])
    batch = {"labels": torch.tensor([[1, 0, 1], [0, 0, 0]])}
    p = logits.sigmoid()
    by_hand = -sum(map(torch.log, (p[0, 0], 1 - p[0, 1], p[0, 2], 1 - p[1, 0], 1 - p[1, 1], 1 - p[1, 2])))
    assert FITTED.loss(SimpleNamespace(logits=logits), batch).item() == pytest.approx(float(by_hand), rel=1e-6)
    predictions = FITTED.predict(SimpleNamespace(logits=logits), batch)
    assert [one["prediction"] for one in predictions] == [["a", "c"], ["a", "b"]]
    assert predictions[0]["probabilities"]["b"] == pytest.approx(0.268941, abs=1e-6)
    sure = FITTED.with_values(threshold=0.7).predict(SimpleNamespace(logits=logits), batch)
    assert [one["prediction"] for one in sure] == [["a"], []]
    assert FITTED.config_values()["problem_type"] == "multi_label_classification"


def test_label_vectors_are_not_padded_like_tokens() -> None:
    rows = [{"text": "word1", "label": ["b"]}, {"text": "word2", "label": []}]
    columns = FITTED.encode(rows, make_tokenizer())
    assert [len(ids) for ids in columns["input_ids"]] == [3, 3]
    assert columns["num_targets"] == [3, 3]
    assert FITTED.collate(columns, make_tokenizer(), 8)["labels"].tolist() == [[0, 1, 0], [0, 0, 0]]
    full = FITTED.repeat_to_length({name: values[0] for name, values in columns.items()}, 20)
    assert (len(full["input_ids"]), full["labels"]) == (20, [0, 1, 0])


def test_majority_baseline_is_the_most_frequent_set() -> None:
    train = [{"label": ["a", "b"]}, {"label": ["b", "a"]}, {"label": []}]
    found = FITTED.majority_baseline(train, [{"label": ["a", "b"]}, {"label": ["b"]}])
    assert (found["accuracy"], found["f1_micro"]) == pytest.approx((0.5, 6 / 7))
    assert "per_class" not in found


@pytest.mark.slow
def test_multi_label_run_learns_and_reports_scores(run: Path) -> None:
    import pyarrow.parquet

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[0] == pytest.approx(0.69, abs=0.1)  # ln 2 for every class of every row
    assert sum(losses[-10:]) / 10 < 0.25
    result = json.loads((run / "result.json").read_text())
    assert result["test"]["accuracy"] > 0.85
    assert result["test"]["f1_micro"] > 0.93
    assert set(result["test"]["per_class"]) == {"colour", "fruit", "tool"}
    assert 0 < result["before"]["majority"]["accuracy"] < 0.5
    predictions = pyarrow.parquet.read_table(run / "predictions.parquet").to_pylist()
    right = [row["reference"] == row["prediction"] for row in predictions]
    assert sum(right) / len(right) == result["test"]["accuracy"]
    both, none = predict_rows(run, [{"text": "word1 saw word2 pear"}, {"text": "word3 word4 word5"}])
    assert (both["prediction"], none["prediction"]) == (["fruit", "tool"], [])


@pytest.mark.slow
def test_merged_model_has_the_multi_label_configuration(run: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    trained = pefttools.load(run)
    trained.recipe.strategy.merge(trained.model).save_pretrained(tmp_path / "merged")
    config: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").config
    assert config.problem_type == "multi_label_classification"
    assert config.id2label == dict(enumerate(trained.task.config_values()["label2id"]))
