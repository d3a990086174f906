"""The overview of rows before training, and the classes that macro averages are taken over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Listener, make_rows, train_tiny, write_csv

from pefttools.data.overview import overview, remarks
from pefttools.data.rows import Splits
from pefttools.data.settings import DataSettings
from pefttools.data.splitting import load_splits
from pefttools.metrics import combined
from pefttools.metrics.relation_f1 import RelationF1
from pefttools.recipe import recipes
from pefttools.tasks.text_classification import TextClassification
from pefttools.training.driver import train
from pefttools.training.merging import merge
from pefttools.training.run import Run

TASK = TextClassification()


def rows_of(**classes: int) -> list[dict[str, str]]:
    return [{"text": f"{name} {i}", "label": name} for name, number in classes.items() for i in range(number)]


def test_overview_is_one_line(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{**row, "date": "today", "by": "me"} for row in rows_of(yes=40, no=40)]
    rows[3]["text"] = ""
    test = write_csv(tmp_path / "test.csv", [{key: row[key] for key in ("text", "label")} for row in rows[10:14]])
    train_file = write_csv(tmp_path / "train.csv", rows)
    values = {"train": str(train_file), "test": str(test), "invalid_rows": "skip", "validation_share": 0.2}
    splits = load_splits(DataSettings.model_validate(values), TASK)
    counts = [len(splits.train), len(splits.validation)]
    assert sum(counts) == 75
    labels = [row["label"] for row in splits.train]
    assert overview(splits) == (
        f"{counts[0]} rows to train on, {counts[1]} to validate, 4 to test;"
        f" classes in training: no {labels.count('no')}, yes {labels.count('yes')};"
        " columns that are not read: 'date', 'by'; left out: 1 (invalid), 4 (also in test)"
    )


def test_overview_shortens_many_classes() -> None:
    splits = Splits(rows_of(**{f"c{i}": 50 - i for i in range(40)}), rows_of(c1=1), [])
    assert overview(splits).endswith("c0 50, c1 49, c2 48, c3 47, c4 46, c5 45, …, c38 12, c39 11 (40 in all)")


@pytest.mark.parametrize(
    ("one", "other"), [("Neg", "neg"), ("caf\u00e9", "cafe\u0301"), ("not good", "not  good"), ("ﬁne", "fine")]
)
def test_labels_that_differ_only_in_spelling_are_remarked(one: str, other: str) -> None:
    for rows in (rows_of(**{one: 3, other: 2}), [{"tokens": ["a"] * 5, "tags": [one] * 3 + [other] * 2}]):
        (remark,) = remarks(Splits(rows, [], []))
        assert f"{one!r} (3)" in remark
        assert f"data.labels={{{other!r}: {one!r}}} merges them" in remark
    assert remarks(Splits(rows_of(neg=3, pos=2, neu=1), [], [])) == []


def test_suggested_renaming_merges_the_labels(tmp_path: Path, recipe_file: Path) -> None:
    """The override is pasted from the warning into the command."""
    rows = [{**row, "label": "Fruit" if row["label"] == "fruit" and i % 9 == 0 else row["label"]}
            for i, row in enumerate(make_rows(120))]  # fmt: skip
    listener = Listener()
    file = write_csv(tmp_path / "rows.csv", rows)
    resolved = recipes.load(str(recipe_file), [f"data.train={file}"]).recipe
    splits = load_splits(resolved.data, TASK, listener)
    (message,) = [remark for remark in remarks(splits) if "case" in remark]
    override = message.split("; ")[1].removesuffix(" merges them")
    resolved = recipes.load(str(recipe_file), [f"data.train={file}", override]).recipe
    assert {row["label"] for row in load_splits(resolved.data, TASK).train} == {"fruit", "tool", "colour"}


def test_classes_without_evaluation_rows_are_remarked() -> None:
    splits = Splits(rows_of(a=3, b=2, c=1), rows_of(a=1, b=1, c=1), rows_of(a=1))
    assert remarks(splits) == [
        "data.test: no row has the class 'b', 'c'; means over classes (macro-F1) ignore these classes"
    ]


def test_macro_f1_averages_over_classes_of_the_references() -> None:
    """Scores before and after training are means over the same classes, whatever is predicted."""

    def f1(name: str, predictions: Any, labels: Any) -> dict[str, Any]:
        return combined(name).compute(predictions=predictions, references=labels) or {}

    references = [0, 0, 1, 1]
    assert f1("f1", [2, 0, 1, 1], references)["f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert f1("f1", [3, 0, 1, 1], references)["f1"] == f1("f1", [2, 0, 1, 1], references)["f1"]
    several = f1("multi_label", [[1, 0, 1], [0, 1, 0]], [[1, 0, 0], [0, 1, 0]])
    assert several["f1"] == 1.0
    assert several["per_class"]["2"]["support"] == 0
    tags = f1("per_tag", [["O", "B-X"]], [["O", "O"]])
    assert tags["tag_f1"] == pytest.approx(2 / 3)
    entities = f1("entities", [["B-X", "B-Y"]], [["B-X", "O"]])
    assert entities["f1_macro"] == 1.0
    assert entities["f1"] == pytest.approx(2 / 3)
    assert f1("entities", [["B-X"]], [["O"]])["f1_macro"] == 0.0
    one = RelationF1(keep_in_memory=True).compute(predictions=["A", "B", "C"], references=["A", "B", "B"], other=None)
    assert one is not None
    assert one["f1"] == one["f1_directed"] == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.slow
def test_run_reports_its_rows_and_skipped_ones(recipe_file: Path, tmp_path: Path) -> None:
    """The result lists skipped rows by number."""
    rows = [{**row, "source": "web"} for row in make_rows(90)]
    rows[6]["label"] = ""
    file = write_csv(tmp_path / "rows.csv", rows)
    listener = Listener()
    overrides = [f"data.train={file}", "data.invalid_rows=skip", "train.epochs=0.5"]
    result = train(recipes.load(str(recipe_file), overrides).recipe, tmp_path / "run", reporter=listener)
    (line,) = [note for note in listener.notes if "rows to train on" in note]
    assert line.endswith("columns that are not read: 'source'; left out: 1 (invalid)")
    assert result["data"]["left_out"] == {"invalid": 1}
    assert result["data"]["invalid"] == {"train": {"has no label": ["7"]}}
    resumed = train(recipes.load(str(recipe_file), overrides).recipe, tmp_path / "run", resume=True)
    assert resumed == result


@pytest.mark.slow
def test_merged_run_is_scored_on_the_rows_of_its_runs(recipe_file: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "rows.csv", make_rows(90))
    words = (f"data.train={file}", "train.epochs=0.5")
    runs = [train_tiny(recipe_file, tmp_path / f"run{seed}", *words, f"seed={seed}")[0] for seed in (0, 1)]
    same = merge([runs[0], runs[0]], [0.5, 0.5], tmp_path / "same", "parameters")
    write_csv(file, [*make_rows(60, seed=8), *reversed(make_rows(90))])
    merged = merge([runs[0], runs[0]], [0.5, 0.5], tmp_path / "merged", "parameters")
    assert merged["test"] == same["test"] == Run(runs[0]).result()["test"]
    assert merged["validation"] == same["validation"]
    assert Run(tmp_path / "merged").predictions()[0] == Run(runs[0]).predictions()[0]
    assert Run(tmp_path / "merged").scored_rows() == Run(runs[0]).scored_rows()
    other = merge(runs, [0.5, 0.5], tmp_path / "other", "parameters")
    assert other["data"] == Run(runs[0]).result()["data"]
