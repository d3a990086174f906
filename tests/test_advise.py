"""`pefttools advise`: the budget, and a recommendation on rows that are easy to learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pefttools import cli
from pefttools.bench import budget
from pefttools.errors import UserError
from pefttools.recipe import recipes


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("1.5h", 5400), ("1h", 3600)]
)
def test_budget_is_parsed_to_seconds(text: str, seconds: float) -> None:
    assert budget.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "half an hour", "0s", "-5m", "5 m"])
def test_invalid_budget_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--budget: must be"):
        budget.seconds(text)


@pytest.fixture(scope="module")
def advised(
    tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path], rows_file: Path
) -> tuple[int, Path]:
    out = tmp_path_factory.mktemp("advice") / "out"
    code = cli.run(
        [
            "advise",
            "--base",
            str(bases("bert")),
            "--task",
            "text_classification",
            "--data",
            str(rows_file),
            "--budget",
            "50s",
            "--out",
            str(out),
            "train.epochs=2",
            "task.max_length=32",
            "train.precision=fp32",
            "--strategies",
            "lora",
            "--strategies",
            "head",
        ]
    )
    return code, out


@pytest.mark.slow
def test_the_recommendation_is_a_recipe_and_its_run(advised: tuple[int, Path]) -> None:
    code, out = advised
    assert code == 0
    values = json.loads((out / "advice.json").read_text())
    chosen = recipes.load(str(out / "recipe.yaml")).recipe
    assert chosen.strategy.as_dict()["name"] == values["recommended"]["strategy"]["name"]
    assert chosen.train.learning_rate == values["recommended"]["learning_rate"]
    assert values["test"]["accuracy"] > 0.9
    assert values["test"]["rows"] == values["rows"]["test"] != values["rows"]["validation"]
    assert values["spent_seconds"] <= 1.1 * values["budget_seconds"]
    assert json.loads((out / "recommended" / "result.json").read_text())["digest"] == chosen.digest


@pytest.mark.slow
def test_finalists_are_chosen_without_test_rows(advised: tuple[int, Path]) -> None:
    records = [json.loads(file.read_text()) for file in (advised[1] / "trials").glob("[!.]*.json")]
    assert len(records) >= 2
    assert all(record.get("test") is None for record in records)


@pytest.mark.slow
def test_every_strategy_is_a_finalist_or_ruled_out(advised: tuple[int, Path]) -> None:
    values = json.loads((advised[1] / "advice.json").read_text())
    labels = [row["label"] for row in values["finalists"]] + list(values["ruled_out"])
    accounted_for = {label.partition(",")[0] for label in labels}
    assert {"lora", "head"} <= accounted_for


def test_budget_below_one_trial_is_refused(
    bases: Callable[[str], Path], rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--base", str(bases("bert")), "--task", "text_classification", "--data", str(rows_file)]
    assert cli.run(["advise", *words, "--budget", "1s", "--out", str(tmp_path / "out")]) == 2
    assert "--budget: 1 s is too little" in capsys.readouterr().err


@pytest.mark.slow
def test_folder_with_advice_for_other_settings_is_refused(
    advised: tuple[int, Path], bases: Callable[[str], Path], rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--base", str(bases("bert")), "--task", "text_classification", "--data", str(rows_file)]
    assert cli.run(["advise", *words, "--out", str(advised[1])]) == 2
    assert "contains advice for other settings" in capsys.readouterr().err
