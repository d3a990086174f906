"""What `doctor` finds in rows and settings: each fault is planted, and sound rows give no finding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import WORDS, make_rows, write_recipe, write_rows
from examining import examine

from pefttools import cli

pytestmark = pytest.mark.slow

TRAIN = {"epochs": 3, "learning_rate": 0.003}


def long_rows(number: int, seed: int) -> list[dict[str, str]]:
    """Rows of about 24 words."""
    parts = [make_rows(number, seed=seed * 10 + i) for i in range(4)]
    return [
        {"text": " ".join(row["text"] for row in four), "label": four[0]["label"]} for four in zip(*parts, strict=True)
    ]


@pytest.fixture
def recipe_on(tmp_path: Path, bases: Callable[[str], Path]) -> Callable[..., Path]:
    """Rows -> a recipe that trains the tiny BERT on them."""

    def recipe(rows: list[dict[str, Any]], task: str = "text_classification", **data: Any) -> Path:
        file = write_rows(tmp_path / "train.jsonl", rows)
        settings = {"name": task, "max_length": 48}
        data = {"train": str(file), **data}
        return write_recipe(tmp_path / "tiny.yaml", bases("bert"), file, data=data, task=settings, train=TRAIN)

    return recipe


def test_sound_recipe_has_no_findings(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", str(recipe_file), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["findings"], values["warnings"]) == ([], [])
    assert {"class imbalance", "near-duplicates", "dead gradients", "range of the learning rate"} <= {
        *values["checked"]
    }
    assert values["skipped"]["labels that do not line up"] == "the head is new"


def test_findings_and_their_absence_are_printed(
    recipe_file: Path, recipe_on: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["doctor", str(recipe_file)]) == 0
    assert f"{recipe_file}: no problem found\nchecked: " in capsys.readouterr().out
    file = recipe_on([*make_rows(300), {**make_rows(1)[0], "label": "tool"}])
    assert cli.run(["doctor", str(file)]) == 0
    output = capsys.readouterr().out
    assert "1. conflicting duplicates: data.train: 1 rows repeat the text of an earlier row" in output
    assert "\n   evidence: 1 of 301 rows, for example row 301 that of row 1" in output
    assert f"\n   to correct it: pefttools train {file} data.deduplicate=train\n{file}: 1 problem found" in output


def test_invalid_targets_are_refused(
    recipe_file: Path, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["question-type-lra"], [str(tmp_path)], [str(recipe_file), "strategy.rnk=4"], [str(finished_run), "seed=1"]
    ):  # fmt: skip
        assert cli.run(["doctor", *words]) == 2
        assert "error: " in capsys.readouterr().err


def test_overlap_of_train_and_test(
    recipe_on: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = long_rows(240, seed=1)
    test = write_rows(tmp_path / "test.jsonl", [*rows[:30], *long_rows(30, seed=2)])
    found = examine(capsys, recipe_on(rows, test=str(test), deduplicate="none"))
    assert "30 of 240 rows are in data.test too" in found["overlap of train and test"]["what"]
    assert found["overlap of train and test"]["cure"].endswith("data.deduplicate=overlap")
    assert examine(capsys, recipe_on(rows, test=str(test))) == {}


def test_near_duplicates_of_test_rows(
    recipe_on: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = long_rows(240, seed=1)
    near = [{**row, "text": f"{row['text']} word7"} for row in rows[:20]]
    test = write_rows(tmp_path / "test.jsonl", [*near, *long_rows(30, seed=2)])
    validation = write_rows(tmp_path / "validation.jsonl", long_rows(30, seed=3))
    file = recipe_on(rows, test=str(test), validation=str(validation))
    found = examine(capsys, file)["overlap of train and test"]
    assert found["what"].startswith("data.test: 20 rows are nearly the same as a training row")
    assert "40.0% of 50 test rows" in found["evidence"]
    assert "row 1 and training row " in found["evidence"]


def test_rows_that_are_cut_or_unknown(recipe_on: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = examine(capsys, recipe_on(long_rows(120, seed=1)), "task.max_length=8")
    assert "train rows are longer than 8 tokens" in found["truncated rows"]["what"]
    assert found["truncated rows"]["cure"].endswith("task.max_length=16")
    foreign = [{**row, "text": f"{row['text']} 苹果"} for row in make_rows(240)]
    found = examine(capsys, recipe_on(foreign))
    assert "tokens are unknown to the tokenizer" in found["unknown tokens"]["what"]
    assert "tokens are [UNK]" in found["unknown tokens"]["evidence"]


def test_class_imbalance(recipe_on: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    rows = make_rows(400, labels=("fruit", "tool"))
    fruit, tool = ([row for row in rows if row["label"] == name] for name in ("fruit", "tool"))
    found = examine(capsys, recipe_on([*fruit, *tool[:12]]))["class imbalance"]
    assert "'fruit' has " in found["evidence"]
    assert found["cure"].endswith("objectives=class_weights")
    assert "class imbalance" not in examine(capsys, recipe_on([*fruit, *tool[:60]]))
    weighted = recipe_on([*fruit, *tool[:12]])
    assert "class imbalance" not in examine(capsys, weighted, "objectives=class_weights")


def test_leaking_and_constant_columns(recipe_on: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "text": row["text"].replace("word39", "word38")} for row in make_rows(300)]
    marked = [{**row, "text": f"word39 {row['text']}"} if row["label"] == "tool" else row for row in rows]
    found = examine(capsys, recipe_on(marked))["leaking column"]
    assert "a single word of text predicts the label of 1 of 3 classes" in found["what"]
    assert "'word39' is in " in found["evidence"]
    assert found["cure"].endswith("--sample 20")
    pairs = [{**row, "text_pair": "word1 word2"} for row in rows]
    found = examine(capsys, recipe_on(pairs))
    assert list(found) == ["constant column"]
    assert "'word1 word2' in all " in found["constant column"]["evidence"]
    varied = [{**row, "text_pair": f"word{i % 30} word2"} for i, row in enumerate(rows)]
    assert examine(capsys, recipe_on(varied)) == {}


def test_ignored_columns(recipe_on: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = examine(capsys, recipe_on([{**row, "date": "today"} for row in make_rows(240)]))
    assert list(found) == ["ignored columns"]
    assert found["ignored columns"]["evidence"] == "1 not read: 'date'"
    assert found["ignored columns"]["is_fault"] is False


@pytest.mark.parametrize(("rate", "side"), [("0.3", "above"), ("1e-8", "below")])
def test_learning_rate_far_from_its_range(
    rate: str, side: str, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["doctor", str(recipe_file), f"train.learning_rate={rate}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["findings"]
    assert [finding["check"] for finding in found] == ["learning rate", "learning rate"]
    assert f"is far {side} the range of lora" in found[0]["what"]
    assert found[0]["cure"].endswith("train.learning_rate=0.001")
    assert f"is so {'high' if side == 'above' else 'low'} that" in found[1]["what"]
    assert "in 100 steps of rising rate the loss falls from " in found[1]["evidence"]


def test_too_few_steps_at_a_good_rate(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cure is more epochs, not the rate that the recipe already has."""
    words = ["train.learning_rate=0.001", "train.epochs=0.1", "--json"]
    assert cli.run(["doctor", str(recipe_file), *words]) == 0
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert "steps are too few: with train.learning_rate=0.001 they hardly change the loss" in found["what"]
    assert float(found["cure"].rpartition("train.epochs=")[2]) > 0.1


def test_training_warns_of_what_costs_little_once(
    recipe_on: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_rows(200, labels=("fruit", "tool"))
    few = [row for i, row in enumerate(rows) if row["label"] == "fruit" or i < 12]
    file = recipe_on([*few, {**few[0], "label": "tool"}])
    assert cli.run(["train", str(file), "--out", str(tmp_path / "run"), "train.epochs=1"]) == 0
    errors = capsys.readouterr().err
    assert errors.count("warning: the classes are very unequal") == 1
    assert errors.count("rows repeat the text of an earlier row with another label") == 1


def test_words_of_all_classes_are_no_leak() -> None:
    """A word in every row, or in every row of a class that nearly all rows have, predicts nothing."""
    from pefttools.checks.shortcuts import shortcuts
    from pefttools.recipe import recipes

    recipe = recipes.load("question-type-lora").recipe
    rows = [{"text": f"the {WORDS[i % 40]} of {WORDS[i % 7]}", "label": "ab"[i % 50 == 0]} for i in range(500)]
    assert [*shortcuts(recipe, rows)] == []
    assert [*shortcuts(recipe, rows[:10])] == []


def test_chinese_words_that_predict_a_class_are_found() -> None:
    from pefttools.checks.shortcuts import shortcuts
    from pefttools.recipe import recipes

    recipe = recipes.load("question-type-lora").recipe
    characters = "春夏秋冬山水风云花鸟"
    parts = ["".join(characters[(i * k) % 10] for k in (1, 3, 7)) for i in range(200)]
    rows = [
        {
            "text": f"{part}退款{part[::-1]}" if i % 2 else f"{part}发货{part[0]}" if i % 4 else part,
            "label": "ab"[i % 2],
        }
        for i, part in enumerate(parts)
    ]
    (found,) = shortcuts(recipe, rows)
    assert found.check == "leaking column"
    assert "'退款' is in 100 of 100 rows of 'b'" in found.evidence
